"""What else is asked of a model's confidence: events beyond a subpatch, a promise, and where."""

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
"""Error level of the promise, in latent standard deviations."""
ALPHAS = (0.05, 0.1, 0.2)
"""Promised shares of wrong subpatches among the trusted."""
RISK_HORIZONS = tuple(range(1, 17))
NUM_BINS = 100
Rows = list[list[str | int | float | None]]


@dataclass(frozen=True, kw_only=True)
class PromiseRow:
    """Subpatches trusted by conformal risk control, on one kind of episodes."""

    alpha: float
    group: str
    num_calibration: int
    num_episodes: int
    threshold: float
    wrong: float
    """Share of wrong subpatches among the trusted, mean over episodes."""
    standard_error: float
    trusted: float
    """Share of subpatches that are trusted."""


@dataclass(frozen=True)
class Extras:
    """Tables beside the comparison of methods, of the model's own head."""

    events: Mapping[str, Mapping[str, CalibrationSummary]]
    """Kind of episodes -> event -> its row."""
    promises: Sequence[PromiseRow]
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


def extras(bench: Comparison, *, marked: int, seed: int) -> Extras:
    """Measure them; `marked` nominal episodes get things put into them at known pixels."""
    assert bench.alarm_rule is not None, "the tabletop's checkpoint has a monitor"
    groups = {NOMINAL: list(bench.materials.groups[NOMINAL].rollouts)}
    groups["visual shifts"] = [
        rollout for name in VISUAL for rollout in bench.materials.groups[name].rollouts
    ]
    collection = Collection(renderer="ray", seed=seed)
    length = START + max(HORIZONS)
    episodes = marked_episodes(bench.model, collection, number=marked, num_steps=length)
    return Extras(
        events(bench, groups, seed),
        [row for alpha in ALPHAS for row in promises(bench, groups, alpha)],
        localisation_table(bench.model, bench.alarm_rule, episodes, seed=seed),
    )


def events(
    bench: Comparison, groups: Mapping[str, Sequence[EpisodeRollouts]], seed: int
) -> dict[str, dict[str, CalibrationSummary]]:
    """Confidence of regions, frames and rollouts, fitted on the calibration episodes."""
    rng = np.random.default_rng(seed)
    fitted = EventConfidence(EPSILONS).fit(bench.materials.calibrate.rollouts, rng=rng)
    return {
        name: evaluate_events(fitted, {str(i): r for i, r in enumerate(rollouts)}, rng=rng)
        for name, rollouts in groups.items()
    }


def promises(
    bench: Comparison, groups: Mapping[str, Sequence[EpisodeRollouts]], alpha: float
) -> list[PromiseRow]:
    """Trust at a promised share of wrong subpatches, and what came of it."""
    calibrate = bench.materials.calibrate.rollouts
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
            PromiseRow(
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
    """Wrong among the trusted (0 if none is), and trusted among all, of one episode."""
    rows = np.isin(rollout.horizon, RISK_HORIZONS)
    stated = rollout.confidence[rows][..., EPSILONS.index(EPSILON)].float().numpy()
    trusted = control.trusted(stated)
    wrong = rollout.error[rows].numpy() > EPSILON
    return float(wrong[trusted].mean()) if trusted.any() else 0.0, float(trusted.mean())


def tables(found: Extras) -> list[Table]:
    """The three tables."""
    judged: Rows = [
        [event, group, row.num_episodes, _interval(row.ece, row.ece_interval), row.per_video_ece,
         row.mce, row.brier, row.brier_skill]
        for group, rows in found.events.items()
        for event, row in rows.items()
    ]  # fmt: skip
    kept: Rows = [
        [f"{row.alpha:g}", row.group, row.num_calibration, row.num_episodes, row.threshold,
         f"{row.wrong:.3f} (SE {row.standard_error:.3f})", row.trusted]
        for row in found.promises
    ]  # fmt: skip
    places: Rows = [
        [f"{row.surprise}, horizon {row.horizon}", row.kind, row.result.num_episodes,
         *(_interval(*pair) for pair in _figures(row))]
        for row in found.places
    ]  # fmt: skip
    return [
        Table(
            caption="Events: mean error of a region or a frame, or the largest frame error of a "
            "rollout's first steps, at most ε; all ε pooled.",
            columns=["event", "episodes", "n", "ECE", "C3-style ECE", "MCE", "Brier", "skill"],
            rows=judged,
        ),
        Table(
            caption="Promise: at most alpha of the subpatches called trusted are wrong (error "
            f"above {EPSILON:g}), for episodes like those of the calibration.",
            columns=["alpha", "episodes", "calibrated on", "n", "threshold", "wrong", "trusted"],
            rows=kept,
        ),
        Table(
            caption="Localisation: things put into the frames a rollout starts from, found at "
            "their pixels.",
            columns=["map", "kind", "n", "pixel AUROC", "AUPRO", "pointing game"],
            rows=places,
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
