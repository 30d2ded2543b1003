"""Which episodes calibrate a model, how well it is calibrated, and where the result is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from worldmodel.calibration.calibrated import WATCH_HORIZON, WATCH_START, Calibration
from worldmodel.calibration.choose_episodes import Plan
from worldmodel.calibration.fit_monitor import fit_monitor
from worldmodel.calibration.gate import Gate, fit_gate
from worldmodel.calibration.trusted_share import TrustedShare, trusted_shares
from worldmodel.episodes.episode import unstretched
from worldmodel.episodes.load import load_named
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.guarantees.episode_threshold import episodes_needed, smallest_alpha
from worldmodel.monitors.reliability.counts import CalibrationSummary
from worldmodel.monitors.validity import MonitorMetadata
from worldmodel.rollouts.open_loop import roll_out_all
from worldmodel.rollouts.recalibrate import cross_fitted, fit_recalibration
from worldmodel.rollouts.reliability import calibration_table

GATE_REFERENCE = 60
"""About so many of them are imagined for the gate, which looks at confidence alone."""


def monitor_config(
    num_episodes: int, alpha: float | None, delta: float | None = None
) -> MonitorConfig:
    """Alarm rates for so many calibration episodes.

    Args:
        num_episodes: Calibration episodes.
        alpha: Chance of any alarm in a nominal episode; None is 0.05, or the least they support.
        delta: Share of calibration sets that may give a higher chance than that; None: it is kept
            on average over them.

    Raises:
        ValueError: if they do not support `alpha`.
    """
    asked = MonitorConfig(delta=delta).alpha_notice if alpha is None else alpha
    needed = episodes_needed(asked, delta)
    supported = MonitorConfig.for_episodes(num_episodes, delta=delta)
    if alpha is None:
        return supported
    if num_episodes < needed:
        promise = f"`alpha`={alpha:g}" + ("" if delta is None else f" with `delta`={delta:g}")
        raise ValueError(
            f"{promise} needs {needed} calibration episodes, got {num_episodes}, which support "
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
    """What calibration learned, and how well the confidence held."""

    calibration: Calibration
    gate: Gate
    tables: dict[str, dict[int, CalibrationSummary]]
    """"as stated" and, with two or more episodes, "recalibrated" (cross-fitted): per horizon."""
    trusted: list[TrustedShare]
    """One per share of `RISKS`."""


def calibrate(
    model: WorldModel,
    plan: Plan,
    *,
    config: MonitorConfig,
    horizon: int,
    method: str = "isotonic",
    metadata: MonitorMetadata | None = None,
) -> CalibrationResult:
    """Fit monitor, recalibration (of the kind `method`) and gate to the episodes of a plan.

    `metadata` says what hash the model has, and how long the calibration is good; None: for ever.

    Raises:
        ValueError: frames of other proportions than the model's, at which the monitor would stop.
    """
    held_out = load_named(model, plan.data, plan.calibration)
    if unstretched(held_out[0]) is not held_out[0].frames:
        raise ValueError(
            f"Frames of {plan.data.path} have other proportions than the model's, so the monitor "
            "would stop at every one; calibrate on frames like those it was trained on."
        )
    familiar = load_named(model, plan.reference_data, plan.reference)
    rollouts = roll_out_all(model, held_out, horizon=horizon)
    ahead = min(horizon, WATCH_HORIZON)
    claims = partial(roll_out_all, model, horizon=ahead, start=WATCH_START)
    monitor = fit_monitor(
        model,
        list(zip(held_out, claims(held_out), strict=True)),
        list(zip(familiar, claims(familiar), strict=True)),
        config=config,
        metadata=metadata,
    )
    calibration = Calibration(monitor, fit_recalibration(rollouts, method=method), horizon, ahead)
    tables = {"as stated": calibration_table(rollouts)}
    if len(rollouts) > 1:
        tables["recalibrated"] = calibration_table(cross_fitted(rollouts, method=method))
    gate = fit_gate(
        model,
        [e.batch for e in held_out],
        [e.batch for e in familiar[:: max(1, len(familiar) // GATE_REFERENCE)]],
        metadata=calibration.monitor.metadata_,
    )
    return CalibrationResult(calibration, gate, tables, trusted_shares(rollouts))
