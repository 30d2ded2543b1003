"""Provenance and expiry of a fitted monitor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from worldmodel.monitors.verdict import Evidence, Level, Verdict

STALE = "monitor.stale_calibration"
"""Cause of a verdict whose monitor has expired."""
NOT_CERTIFIED = "monitor.model_not_certified"
"""Cause of a verdict on a model that failed its certificate."""
SKEW = timedelta(days=1)
"""Tolerated difference between the clocks of two machines."""


def utc_now() -> datetime:
    """Current date and time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class MonitorMetadata:
    """Provenance and intended use of a fitted monitor; None: not known."""

    created: datetime | None = None
    """Must have a time zone, like `expires`."""
    expires: datetime | None = None
    """Valid until; None: no expiry."""
    model_hash: str | None = None
    """Hash of the model's weights and config, in any scheme."""
    action_spec: Mapping[str, Any] | None = None
    """Meaning of the actions, as plain JSON values; "name" is a label and is not compared."""
    features: str | None = None
    """Name of the feature function: its attribute `name`."""
    cameras: Sequence[str] | None = None
    """Display names of the views, in order."""
    data_hash: str | None = None
    """Hash of the calibration and reference episodes, in any scheme."""
    nuisances: Sequence[str] | None = None
    """Names of the declared nuisances, under each of which the alarm rates hold."""

    def __post_init__(self) -> None:
        for name in ("created", "expires"):
            date = getattr(self, name)
            if date is not None and date.tzinfo is None:
                raise ValueError(f"`{name}` must have a time zone, got {date}.")

    @property
    def action_rows(self) -> int:
        """Canonical actions commanded per frame, concatenated."""
        return int((self.action_spec or {}).get("rows", 1))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; dates in ISO 8601."""
        dates = {"created": self.created, "expires": self.expires}
        return {**vars(self), **{name: date and date.isoformat() for name, date in dates.items()}}

    def check_fits(self, where: str, other: MonitorMetadata) -> None:
        """Raise if model, action spec or features differ; unknown values pass.

        Raises:
            ValueError: both sides are known and differ.
        """
        for kind, name in {"model": "model_hash", "features": "features"}.items():
            one, two = getattr(self, name), getattr(other, name)
            if None not in (one, two) and one != two:
                raise ValueError(
                    f"The monitor in {where} was fitted for the {kind} {one!r}, not for {two!r}; "
                    "load the monitor of this model, or calibrate one."
                )
        if self.action_spec is None or other.action_spec is None:
            return
        specs = [json.loads(json.dumps(dict(a.action_spec or {}))) for a in (self, other)]
        for name in sorted({*specs[0], *specs[1]} - {"name"}):
            one, two = (spec.get(name) for spec in specs)
            if one != two:
                raise ValueError(
                    f"The monitor in {where} was fitted for actions whose `{name}` is {one!r}, not "
                    f"{two!r}; load the monitor of this action spec, or calibrate one."
                )


def staleness(metadata: MonitorMetadata, now: datetime) -> Evidence | None:
    """Evidence that the calibration has expired; None if it is valid.

    The score is the number of days since expiry; None if the clock is implausible.
    """
    expires, created = metadata.expires, metadata.created
    if expires is None:
        return None
    if created is not None and now < created - SKEW:
        note = (
            f"the clock says {now:%Y-%m-%d}, but the calibration was made on {created:%Y-%m-%d}; "
            "set the clock."
        )
        return Evidence(None, 0.0, note)
    if now <= expires:
        return None
    days = (now - expires) / timedelta(days=1)
    note = f"the calibration expired on {expires:%Y-%m-%d}, {days:.0f} days ago; calibrate again."
    return Evidence(days, 0.0, note)


def doubted(verdict: Verdict, stale: Evidence | None, not_certified: Evidence | None) -> Verdict:
    """Raise a verdict to at least `DEGRADE` if the monitor has expired or the model failed.

    The verdict keeps its own causes.
    """
    found = {STALE: stale, NOT_CERTIFIED: not_certified}
    doubts = {cause: evidence for cause, evidence in found.items() if evidence is not None}
    if not doubts:
        return verdict
    return replace(
        verdict,
        level=max(verdict.level, Level.DEGRADE),
        causes=(*verdict.causes, *doubts),
        evidence={**verdict.evidence, **doubts},
    )
