"""Further tables of a model's confidence: larger events, risk control and localisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.calibration.episodes import NOMINAL, VISUAL
from benchmarks.calibration.interventions import marked_episodes
from benchmarks.calibration.localisation import HORIZONS, LocalisationRow, localisation_table
from benchmarks.calibration.methods import Comparison
from worldmodel.envs.collect import Collection
from worldmodel.monitors.guarantees.risk_control import RiskControl
from worldmodel.monitors.reliability.counts import CalibrationSummary
from worldmodel.monitors.reliability.event_table import evaluate_events
from worldmodel.monitors.reliability.events import EventConfidence
from worldmodel.report.html import Table
from worldmodel.rollouts.open_loop import EPSILONS, START, EpisodeRollouts
from worldmodel.rollouts.reliability import count_reliability

EPSILON = 0.5
"""Error threshold of risk control, in latent standard deviations."""
ALPHAS = (0.05, 0.1, 0.2)
"""Guaranteed maximum shares of wrong subpatches among the trusted ones."""
RISK_HORIZONS = tuple(range(1, 17))
NUM_BINS = 100
Rows = list[list[str | int | float | None]]


@dataclass(frozen=True, kw_only=True)
class RiskControlRow:
    """Result of conformal risk control on one group of episodes."""

    alpha: float
    group: str
    num_calibration: int
    num_episodes: int
    threshold: float
    wrong: float
    """Share of wrong subpatches among the trusted ones, mean over episodes."""
    standard_error: float
    trusted: float
    """Share of trusted subpatches."""


@dataclass(frozen=True)
class Extras:
    """Further tables of the model's own head."""

    events: Mapping[str, Mapping[str, CalibrationSummary]]
    """Group of episodes -> event -> its row."""
    promises: Sequence[RiskControlRow]
    places: Sequence[LocalisationRow]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "events": {
                group: {event: row.as_dict() for event, row in rows.items()}
                for group, rows in self.events.items()
            },
            "promises": [asdict(row) for row in self.promises],
            "places": [row.as_dict() for row in self.places],
        }


def extras(comparison: Comparison, *, marked: int, seed: int) -> Extras:
    """Measure all tables; `marked` nominal episodes get interventions at known pixels."""
    assert comparison.alarm_rule is not None, "the tabletop's checkpoint has a monitor"
    groups = {NOMINAL: list(comparison.data.groups[NOMINAL].rollouts)}
    groups["visual shifts"] = [
        rollout for name in VISUAL for rollout in comparison.data.groups[name].rollouts
    ]
    collection = Collection(renderer="ray", seed=seed)
    length = START + max(HORIZONS)
    episodes = marked_episodes(comparison.model, collection, number=marked, num_steps=length)
    return Extras(
        events(comparison, groups, seed),
        [row for alpha in ALPHAS for row in promises(comparison, groups, alpha)],
        localisation_table(comparison.model, comparison.alarm_rule, episodes, seed=seed),
    )


def events(
    comparison: Comparison, groups: Mapping[str, Sequence[EpisodeRollouts]], seed: int
) -> dict[str, dict[str, CalibrationSummary]]:
    """Evaluate confidence of regions, frames and rollouts, fitted on the calibration episodes."""
    rng = np.random.default_rng(seed)
    fitted = EventConfidence(EPSILONS).fit(comparison.data.calibrate.rollouts, rng=rng)
    return {
        name: evaluate_events(fitted, {str(i): r for i, r in enumerate(rollouts)}, rng=rng)
        for name, rollouts in groups.items()
    }


def promises(
    comparison: Comparison, groups: Mapping[str, Sequence[EpisodeRollouts]], alpha: float
) -> list[RiskControlRow]:
    """Apply risk control at `alpha` and measure the share of wrong subpatches."""
    calibrate = comparison.data.calibrate.rollouts
    control = RiskControl(alpha=alpha).fit_bins(
        count_reliability(
            calibrate, names=[str(i) for i in range(len(calibrate))], horizons=RISK_HORIZONS,
            num_bins=NUM_BINS,
        ).episode_bins(epsilon=EPSILON)
    )  # fmt: skip
    rows = []
    for name, rollouts in groups.items():
        wrong, trusted = zip(*(_share(control, rollout) for rollout in rollouts), strict=True)
        rows.append(
            RiskControlRow(
                alpha=alpha,
                group=name,
                num_calibration=len(calibrate),
                num_episodes=len(rollouts),
                threshold=control.threshold_,
                wrong=float(np.mean(wrong)),
                standard_error=float(np.std(wrong, ddof=1) / len(wrong) ** 0.5),
                trusted=float(np.mean(trusted)),
            )
        )
    return rows


def _share(control: RiskControl, rollout: EpisodeRollouts) -> tuple[float, float]:
    """Share of wrong among trusted (0 if none is) and of trusted among all, of one episode."""
    rows = np.isin(rollout.horizon, RISK_HORIZONS)
    confidence = rollout.confidence[rows][..., EPSILONS.index(EPSILON)].float().numpy()
    trusted = control.trusted(confidence)
    wrong = rollout.error[rows].numpy() > EPSILON
    return float(wrong[trusted].mean()) if trusted.any() else 0.0, float(trusted.mean())


def tables(extra: Extras) -> list[Table]:
    """Tables of events, risk control and localisation."""
    event_rows: Rows = [
        [event, group, row.num_episodes, _interval(row.ece, row.ece_interval), row.per_video_ece,
         row.mce, row.brier, row.brier_skill]
        for group, rows in extra.events.items()
        for event, row in rows.items()
    ]  # fmt: skip
    risk_rows: Rows = [
        [f"{row.alpha:g}", row.group, row.num_calibration, row.num_episodes, row.threshold,
         f"{row.wrong:.3f} (SE {row.standard_error:.3f})", row.trusted]
        for row in extra.promises
    ]  # fmt: skip
    location_rows: Rows = [
        [f"{row.surprise}, horizon {row.horizon}", row.kind, row.result.num_episodes,
         *(_interval(*pair) for pair in _figures(row))]
        for row in extra.places
    ]  # fmt: skip
    return [
        Table(
            caption="Events: mean error of a region or a frame, or largest frame error of a "
            "rollout's first steps at most ε; pooled over ε.",
            columns=["event", "episodes", "n", "ECE", "C3-style ECE", "MCE", "Brier", "skill"],
            rows=event_rows,
        ),
        Table(
            caption="Risk control: at most alpha of the trusted subpatches are wrong (error above "
            f"{EPSILON:g}), for episodes like those of the calibration set.",
            columns=["alpha", "episodes", "calibrated on", "n", "threshold", "wrong", "trusted"],
            rows=risk_rows,
        ),
        Table(
            caption="Localisation: interventions in the frames that a rollout starts from, against "
            "their pixel masks.",
            columns=["map", "kind", "n", "pixel AUROC", "AUPRO", "pointing game"],
            rows=location_rows,
        ),
    ]


def _figures(row: LocalisationRow) -> list[tuple[float, tuple[float, float] | None]]:
    result = row.result
    return [
        (result.auroc, result.auroc_interval),
        (result.aupro, result.aupro_interval),
        (result.pointing, result.pointing_interval),
    ]


def _interval(value: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
