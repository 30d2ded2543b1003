"""Calibration of a model: monitor, recalibration, gate, and the figures of the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from worldmodel.calibration.calibrated import WATCH_HORIZON, Calibration
from worldmodel.calibration.choose_episodes import Plan
from worldmodel.calibration.fit_monitor import fit_monitor
from worldmodel.calibration.gate import Gate, fit_gate
from worldmodel.calibration.trusted_share import TrustedShare, trusted_shares
from worldmodel.episodes.episode import unstretched
from worldmodel.episodes.load import load_named
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.guarantees.episode_threshold import episodes_needed, smallest_alpha
from worldmodel.monitors.nuisances import Nuisance
from worldmodel.monitors.reliability.counts import CalibrationSummary
from worldmodel.monitors.validity import MonitorMetadata
from worldmodel.rollouts.open_loop import EpisodeRollouts, roll_out_all
from worldmodel.rollouts.quality import CopyGain, copy_gain_table
from worldmodel.rollouts.recalibrate import cross_fitted, fit_recalibration
from worldmodel.rollouts.reliability import calibration_table

GATE_REFERENCE = 60
"""Approximate number of reference episodes for the gate, which needs only their confidence."""


def monitor_config(
    num_episodes: int, alpha: float | None, delta: float | None = None
) -> MonitorConfig:
    """Alarm rates that a number of calibration episodes supports.

    Args:
        num_episodes: Calibration episodes.
        alpha: Probability of any alarm in a nominal episode; None: 0.05, or the lowest supported
            rate.
        delta: Fraction of calibration sets for which that probability may be higher; None: it holds
            on average over calibration sets.

    Raises:
        ValueError: Too few episodes for `alpha`.
    """
    requested = MonitorConfig(delta=delta).alpha_notice if alpha is None else alpha
    needed = episodes_needed(requested, delta)
    supported = MonitorConfig.for_episodes(num_episodes, delta=delta)
    if alpha is None:
        return supported
    if num_episodes < needed:
        guarantee = f"`alpha`={alpha:g}" + ("" if delta is None else f" with `delta`={delta:g}")
        raise ValueError(
            f"{guarantee} needs {needed} calibration episodes, got {num_episodes}, which support "
            f"{smallest_alpha(num_episodes, delta):.3g} at best."
        )
    return replace(
        supported,
        alpha_notice=alpha,
        alpha_degrade=min(alpha, supported.alpha_degrade),
        alpha_stop=min(alpha, supported.alpha_stop),
    )


@dataclass(frozen=True)
class CalibrationResult:
    """Calibration, gate, and the measured reliability of the confidence."""

    calibration: Calibration
    gate: Gate
    tables: dict[str, dict[int, CalibrationSummary]]
    """Figures per horizon: "as stated" and, with two or more episodes, "recalibrated"
    (cross-fitted)."""
    trusted: list[TrustedShare]
    """One entry per risk of `RISKS`."""
    gains: dict[int, CopyGain]
    """Horizon -> gain of the pictures over copying the last frame."""


def confidence_tables(
    rollouts: Sequence[EpisodeRollouts], method: str
) -> dict[str, dict[int, CalibrationSummary]]:
    """Calibration per horizon: "as stated", and "recalibrated" with two or more episodes."""
    tables = {"as stated": calibration_table(rollouts)}
    if len(rollouts) > 1:
        tables["recalibrated"] = calibration_table(cross_fitted(rollouts, method=method))
    return tables


def calibrate(
    model: WorldModel,
    plan: Plan,
    *,
    config: MonitorConfig,
    horizon: int,
    method: str = "isotonic",
    nuisances: Sequence[Nuisance] = (),
    metadata: MonitorMetadata | None = None,
) -> CalibrationResult:
    """Fit the monitor, the recalibration and the gate to the episodes of a plan.

    Args:
        model: The world model.
        plan: Calibration and reference episodes.
        config: Alarm rates.
        horizon: Longest horizon of the recalibration, in frames.
        method: Kind of recalibration.
        nuisances: Changes of the picture under each of which the alarm rates shall hold, too.
        metadata: Hash of the model and expiry date; None: no hash and no expiry.

    Raises:
        ValueError: The frames have another aspect ratio than the model's.
    """
    held_out = load_named(model, plan.data, plan.calibration)
    if unstretched(held_out[0]) is not held_out[0].frames:
        raise ValueError(
            f"Frames of {plan.data.path} have another aspect ratio than the model's, so the "
            "monitor would stop on every frame; calibrate on frames like the training frames."
        )
    reference = load_named(model, plan.reference_data, plan.reference)
    rollouts = roll_out_all(model, held_out, horizon=horizon)
    ahead = min(horizon, WATCH_HORIZON)
    monitor = fit_monitor(
        model, held_out, reference, horizon=ahead, config=config, nuisances=nuisances,
        metadata=metadata,
    )  # fmt: skip
    calibration = Calibration(monitor, fit_recalibration(rollouts, method=method), horizon, ahead)
    tables = confidence_tables(rollouts, method)
    gate = fit_gate(
        model,
        [e.batch for e in held_out],
        [e.batch for e in reference[:: max(1, len(reference) // GATE_REFERENCE)]],
        metadata=calibration.monitor.metadata_,
    )
    gains = copy_gain_table(model, held_out, rollouts, list(tables["as stated"]))
    return CalibrationResult(calibration, gate, tables, trusted_shares(rollouts), gains)
