"""Calibrate the confidence and the monitor of a model on held-out episodes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.cli._device import AUTOMATIC, Networks
from worldmodel.monitors.nuisances import DEFAULTS

if TYPE_CHECKING:
    from worldmodel.calibration.calibrate import CalibrationResult
    from worldmodel.calibration.choose_episodes import Plan
    from worldmodel.calibration.trusted_share import TrustedShare
    from worldmodel.monitors.alarm_rule import MonitorConfig
    from worldmodel.monitors.reliability.counts import CalibrationSummary
    from worldmodel.report.html import Table

MOST_DAYS = 3650
"""Longest validity (10 years); None stands for no expiry."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel calibrate`."""

    model: str
    """Folder of a checkpoint, or the name of a shipped one ("tabletop")."""
    data: Path
    """Nominal episodes, in any format that `worldmodel data info` reads. If this is the model's
    training store, its held-out episodes set the thresholds, and its training episodes are the
    reference set."""
    reference: Path | None = None
    """Episodes of the reference set; None: every second episode of the data."""
    alpha: float | None = None
    """Probability of an alarm in a nominal episode, from 0 to 1; None: 0.05, or the lowest that
    this many episodes can guarantee."""
    delta: float | None = None
    """Probability over calibration sets, from 0 to 1, that the alarm rate exceeds `alpha`; None:
    `alpha` holds on average over them. 0.05 with an alpha of 0.05 needs 59 episodes."""
    valid_days: int | None = 180
    """Days until the calibration expires; later verdicts are "degrade" or worse; None: no
    expiry."""
    recalibration: str = "isotonic"
    """Recalibration curve: "isotonic" (any increasing curve), "beta", "platt" or "temperature"
    (each smoother, with fewer parameters)."""
    horizon: int = 16
    """Imagined frames per segment, before the rollout restarts from real frames."""
    nuisance: tuple[str, ...] = DEFAULTS
    """Changes of the picture that do no harm, each with its largest amount: the alarm rate holds
    under each of them alone, too. "jpeg:75" is the lowest quality, "scale:0.75" a reduction before
    enlargement, "exposure:0.1" and "gamma:0.1" are relative changes in both directions, "noise:3"
    grey levels, "shift:1" and "blur:0.7" pixels of the model's frames; "none": no nuisances."""
    out: Path | None = None
    """Folder of the monitor; None: `monitor` in the checkpoint, the default of `watch`."""
    skip_bad: bool = False
    """Leave out episodes that cannot be read, and name them; default: stop at the first. Decodes
    every episode once more, beforehand."""
    sign_key: Path | None = None
    """File with a key of 32 bytes or more that signs the monitor; None: the file that the
    environment variable WORLDMODEL_SIGN_KEY names, or no signature if it is not set. Where that
    variable is set, no command loads a monitor that this key did not sign."""
    json: bool = False
    """Print the result as JSON."""
    networks: Networks = AUTOMATIC


def run(command: Command) -> int:
    """Fit and save the monitor and the recalibration; print the calibration of the confidence."""
    from worldmodel.calibration.calibrate import calibrate, monitor_config
    from worldmodel.calibration.calibrated import check_target, save_calibration
    from worldmodel.calibration.choose_episodes import plan_calibration
    from worldmodel.calibration.seal import environment_key, read_key
    from worldmodel.certificate import log_certificate
    from worldmodel.checkpoint import check_trained, checkpoint_folder, content_hash, short_hash
    from worldmodel.episodes.load import open_for
    from worldmodel.model import WorldModel
    from worldmodel.monitors.nuisances import declared
    from worldmodel.monitors.reliability.recalibration import curve_kind
    from worldmodel.monitors.validity import MonitorMetadata

    curve_kind(command.recalibration)
    nuisances = declared(command.nuisance)
    if command.horizon < 1:
        raise ValueError(f"`--horizon` must be at least 1 frame, got {command.horizon}.")
    expires = expiry(command.valid_days)
    folder = checkpoint_folder(command.model)
    log_certificate(folder)
    target = command.out or folder / "monitor"
    check_target(target)
    key = read_key(command.sign_key) if command.sign_key else environment_key()
    model = WorldModel.load(command.model, **command.networks.placement)
    check_trained(model.config.provenance, folder, "confidence")
    reference = None if command.reference is None else open_for(model, command.reference)
    data = open_for(model, command.data)
    plan = plan_calibration(model, data, reference, skip_bad=command.skip_bad)
    config = monitor_config(len(plan.calibration), command.alpha, command.delta)
    note_limits(command, plan, config, trained_horizon=model.config.trained_horizon)
    model_sha256 = content_hash(folder)
    metadata = MonitorMetadata(model_hash=short_hash(model_sha256), expires=expires)
    fitted = calibrate(
        model, plan, config=config, horizon=command.horizon, method=command.recalibration,
        nuisances=nuisances, metadata=metadata,
    )  # fmt: skip
    record = make_record(command, plan, fitted)
    save_calibration(
        fitted.calibration, fitted.gate, target, record, key=key, model_sha256=model_sha256
    )
    if command.json:
        print(json.dumps({"monitor": str(target), **record}))
    else:
        print_result(fitted, record)
        print(f"\nMonitor: {target}")
    return 0


def expiry(valid_days: int | None) -> datetime | None:
    """Time at which a calibration made now expires."""
    if valid_days is None:
        return None
    if not 1 <= valid_days <= MOST_DAYS:
        raise ValueError(
            f"`--valid-days` must be 1 to {MOST_DAYS} days, or None for no expiry, "
            f"got {valid_days}."
        )
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=valid_days)


def make_record(command: Command, plan: Plan, fitted: CalibrationResult) -> dict[str, Any]:
    """Human-readable record of this run, as JSON values."""
    from worldmodel.episodes.load import renderer_of

    monitor = fitted.calibration.monitor
    made = monitor.metadata_.as_dict()
    return {
        "model": made["model_hash"],
        "created": made["created"],
        "expires": made["expires"],
        "data": str(plan.data.path),
        "calibration": list(plan.calibration),
        "reference_data": str(plan.reference_data.path),
        "reference": list(plan.reference),
        "left_out": dict(plan.left_out),
        "renderer": renderer_of(getattr(plan.data, "attributes", {})),
        "recalibration": command.recalibration,
        "horizon": command.horizon,
        "delta": command.delta,
        "dtype": command.networks.dtype,
        "nuisances": list(command.nuisance),
        "alphas": {level.name.lower(): alpha for level, alpha in monitor.config.alphas.items()},
        "thresholds": {n.name.lower(): t for n, t in monitor.alarm_rule_.thresholds_.items()},
        "table": table_as_json(fitted.tables),
        "gain_over_copy": {horizon: asdict(gain) for horizon, gain in fitted.gains.items()},
        "trusted": [asdict(row) for row in fitted.trusted],
    }


def note_limits(
    command: Command, plan: Plan, config: MonitorConfig, *, trained_horizon: int
) -> None:
    """Print the limits that few or short calibration episodes set."""
    from worldmodel.monitors.guarantees.episode_threshold import episodes_needed
    from worldmodel.rollouts.open_loop import START

    notes = []
    if command.alpha is None and config.alpha_notice > 0.05:
        promise = "" if command.delta is None else f" with `--delta {command.delta:g}`"
        notes.append(
            f"{len(plan.calibration)} calibration episodes support an alarm rate of "
            f"{config.alpha_notice:.3g} at best{promise}; 0.05 needs "
            f"{episodes_needed(0.05, command.delta)}."
        )
    longest = max(plan.data.summary(name).num_frames for name in plan.calibration)
    reached = min(command.horizon, longest - START)
    if reached < command.horizon:
        notes.append(
            f"the longest calibration episode has {longest} frames, so rollouts reach horizon "
            f"{reached}, not {command.horizon}."
        )
    if reached > trained_horizon:
        notes.append(
            f"the confidence head was trained up to horizon {trained_horizon}, not {reached}; "
            "beyond it, only the recalibration is fitted."
        )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def table_as_json(tables: dict[str, dict[int, CalibrationSummary]]) -> list[dict[str, Any]]:
    """Rows of the calibration table, one flat object per confidence and horizon."""
    return [
        {"confidence": stage, "horizon": horizon, **summary.as_dict()}
        for stage, table in tables.items()
        for horizon, summary in table.items()
    ]


def print_result(fitted: CalibrationResult, record: dict[str, Any]) -> None:
    """Print the calibration table, the trust thresholds and the monitor's thresholds."""
    from worldmodel.report.format import reliability_table

    summaries = {
        f"{stage}, horizon {horizon}": summary
        for stage, table in fitted.tables.items()
        for horizon, summary in table.items()
    }
    gains = {
        f"{stage}, horizon {horizon}": fitted.gains[horizon]
        for stage, table in fitted.tables.items()
        for horizon in table
    }
    caption = (
        f"Calibration set: {len(record['calibration'])} episodes of {record['data']}. "
        f"Reference set: {len(record['reference'])} episodes of {record['reference_data']}.\n"
    )
    if "recalibrated" in fitted.tables:
        caption += "Recalibrated rows are cross-fitted: curves fitted on one half of the episodes "
        caption += "are applied to the other half."
    else:
        caption += "Recalibration cannot be checked with a single episode."
    print(reliability_table(summaries, gains, heading="confidence", caption=caption).to_text())
    print(f"\n{trusted_table(fitted.trusted).to_text()}")
    print("\nLevel    alarm rate per nominal episode  threshold (spreads above the usual maximum)")
    for level, alpha in record["alphas"].items():
        print(f"{level:<7}  {alpha:>30.3g}  {record['thresholds'][level]:>9.3f}")
    if record["delta"] is not None:
        share = f"{1 - record['delta']:.3g}"
        print(f"These rates hold for at least a share {share} of calibration sets.")
    if record["nuisances"] != ["none"]:
        print(f"They hold under each of these alone, too: {', '.join(record['nuisances'])}.")
    expires = record["expires"]
    print(f"\nValid until: {expires[:10] if expires else 'no expiry'}")


def trusted_table(trusted: list[TrustedShare]) -> Table:
    """Thresholds on stated confidence, or the number of episodes that they need."""
    from worldmodel.report.html import Table

    def threshold(row: TrustedShare) -> str:
        if row.threshold is None:
            return f"needs {row.num_needed} episodes"
        return "trust nothing" if row.threshold > 1 else f"{row.threshold:.2f}"

    return Table(
        caption=f"Trust subpatches whose stated confidence of an error within "
        f"{trusted[0].epsilon:g} is at least the threshold:\nin a new episode like these, the "
        "expected share of wrong ones among them stays below the limit. Recalibrated confidence "
        "has no such guarantee.",
        columns=["wrong at most", "threshold", "episodes", "share trusted"],
        rows=[
            (f"{row.alpha:g}", threshold(row), row.num_episodes, row.share_trusted)
            for row in trusted
        ],
    )
