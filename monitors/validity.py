"""What a monitor was fitted on and for, and until when its calibration counts as fresh."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from worldmodel.monitors.verdict import Evidence, Level, Verdict

STALE = "monitor.stale_calibration"
"""Cause of a verdict whose monitor has expired."""
SKEW = timedelta(days=1)
"""How far two machines' clocks may lie apart."""


def utc_now() -> datetime:
    """This machine's date and time."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class MonitorMetadata:
    """Where a fitted monitor comes from and what it may be used for; None: not known."""

    created: datetime | None = None
    """With a time zone, as `expires`."""
    expires: datetime | None = None
    """When the calibration goes stale; None: never."""
    model_hash: str | None = None
    """Of the model's weights and config, however its owner makes it."""
    action_spec: Mapping[str, Any] | None = None
    """What the actions mean, as plain JSON values; "name" is for people and compared with none."""
    features: str | None = None
    """What the feature function calls itself: its attribute `name`."""
    cameras: Sequence[str] | None = None
    """Names of the views in order, for people."""
    data_hash: str | None = None
    """Of the calibration and reference episodes, however its owner makes it."""

    def __post_init__(self) -> None:
        for name in ("created", "expires"):
            date = getattr(self, name)
            if date is not None and date.tzinfo is None:
                raise ValueError(f"`{name}` must have a time zone, got {date}.")

    @property
    def action_rows(self) -> int:
        """Canonical actions that are commanded, side by side, at a frame."""
        return int((self.action_spec or {}).get("rows", 1))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; dates as in ISO 8601."""
        dates = {"created": self.created, "expires": self.expires}
        return {**vars(self), **{name: date and date.isoformat() for name, date in dates.items()}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MonitorMetadata:
        """The inverse of `as_dict`; what is missing is not known, what is more is left alone."""
        known: dict[str, Any] = {name: fields.get(name) for name in cls.__dataclass_fields__}
        for name in ("created", "expires"):
            if known[name] is not None:
                known[name] = datetime.fromisoformat(known[name])
        return cls(**known)

    def check_fits(self, where: str, other: MonitorMetadata) -> None:
        """Refuse a use for another model, other actions or other features; unknown ones pass.

        Raises:
            ValueError: both sides are known and differ.
        """
        for kind, name in {"model": "model_hash", "features": "features"}.items():
            one, two = getattr(self, name), getattr(other, name)
            if None not in (one, two) and one != two:
                raise ValueError(
                    f"The monitor in {where} was fitted for the {kind} {one!r}, not for {two!r}; "
                    "give the monitor of this model, or calibrate one for it."
                )
        if self.action_spec is None or other.action_spec is None:
            return
        specs = [json.loads(json.dumps(dict(a.action_spec or {}))) for a in (self, other)]
        for name in sorted({*specs[0], *specs[1]} - {"name"}):
            one, two = (spec.get(name) for spec in specs)
            if one != two:
                raise ValueError(
                    f"The monitor in {where} was fitted for actions whose `{name}` is {one!r}, not "
                    f"{two!r}; give the monitor of this action spec, or calibrate one for it."
                )


def staleness(metadata: MonitorMetadata, now: datetime) -> Evidence | None:
    """Why the calibration can no longer be relied on; None: it can.

    The score is the number of days since it expired; None if the clock cannot be right.
    """
    expires, created = metadata.expires, metadata.created
    if expires is None:
        return None
    if created is not None and now < created - SKEW:
        note = (
            f"the clock says {now:%Y-%m-%d}, but the calibration is of {created:%Y-%m-%d}, so its "
            "age is not known; set the clock."
        )
        return Evidence(None, 0.0, note)
    if now <= expires:
        return None
    days = (now - expires) / timedelta(days=1)
    note = f"the calibration expired on {expires:%Y-%m-%d}, {days:.0f} days ago; calibrate again."
    return Evidence(days, 0.0, note)


def degraded(verdict: Verdict, found: Evidence) -> Verdict:
    """A verdict of a stale monitor: it keeps what was found, and is at least a `DEGRADE`."""
    return replace(
        verdict,
        level=max(verdict.level, Level.DEGRADE),
        causes=(*verdict.causes, STALE),
        evidence={**verdict.evidence, STALE: found},
    )
