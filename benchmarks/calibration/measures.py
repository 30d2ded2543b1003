"""Calibration measures of one method on one group of episodes: a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from worldmodel.monitors.metrics.rank_correlation import summarize_association
from worldmodel.monitors.reliability.measures import (
    ReliabilityBins,
    brier_decomposition,
    episode_bootstrap,
    expected_calibration_error,
    max_calibration_error,
    per_video_calibration_error,
)
from worldmodel.rollouts.reliability import Forecasts, count_reliability

HORIZONS = (1, 4, 8, 16)
"""Evaluated horizons, in frames."""
NUM_RESAMPLES = 200
"""Bootstrap resamples of episodes per interval."""
MEASURES: dict[str, Callable[[ReliabilityBins], float]] = {
    "ece": lambda bins: float(expected_calibration_error(bins.pooled())),
    "per_video_ece": per_video_calibration_error,
    "mce": lambda bins: float(max_calibration_error(bins.pooled())),
    "brier": lambda bins: brier_decomposition(bins).brier,
    "brier_skill": lambda bins: brier_decomposition(bins).skill,
}
"""Name -> measure of bins with the episode as leading axis."""


@dataclass(frozen=True, kw_only=True)
class IntervalEstimate:
    """Value with its 95% bootstrap interval over episodes."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """Calibration of one method on one group of episodes."""

    method: str
    group: str
    num_episodes: int
    num_forecasts: int
    """Subpatches times error thresholds."""
    ece: IntervalEstimate
    """Pooled expected calibration error."""
    per_video_ece: IntervalEstimate
    """Mean of the per-episode calibration errors, as C3 reports it."""
    mce: IntervalEstimate
    """Largest gap among bins with at least 0.1% of the forecasts."""
    brier: IntervalEstimate
    brier_skill: IntervalEstimate
    """Skill relative to the base rate."""
    pi: IntervalEstimate
    """Shepherd's π of confidence and error."""
    ause: IntervalEstimate
    """Area under the sparsification error curve."""
    stated: Sequence[float | None]
    """Mean confidence per bin of the reliability diagram; None for an empty bin."""
    observed: Sequence[float | None]
    """Observed frequency per bin."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


EpisodeScores = Sequence[Float[Tensor, "time view channel h w"]]
"""Anomaly score of every subpatch of every episode, higher is more surprising."""


def measure(
    rollouts: Sequence[Forecasts],
    *,
    method: str,
    group: str,
    scores: EpisodeScores | None = None,
    seed: int = 0,
) -> CalibrationRow:
    """Compute every measure of confidence with its interval.

    Args:
        rollouts: Forecasts and outcomes, one per episode.
        method: Name of the method.
        group: Name of the group of episodes.
        scores: Scores that π and AUSE rank by; None: the expected error implied by the confidence,
            capped at the largest ε.
        seed: Seed of the bootstrap.
    """
    names = [str(number) for number in range(len(rollouts))]
    reliability = count_reliability(rollouts, names=names, horizons=HORIZONS)
    bins, rng = reliability.episode_bins(), np.random.default_rng(seed)
    figures = {}
    for name, function in MEASURES.items():
        low, high = episode_bootstrap(bins, function, rng=rng, num_resamples=NUM_RESAMPLES)
        figures[name] = IntervalEstimate(value=function(bins), low=low, high=high)
    pooled = bins.pooled()
    diagram = [
        [float(x / n) if n else None for x, n in zip(column, pooled.count, strict=True)]
        for column in (pooled.confidence, pooled.correct)
    ]
    trust, errors = ranked(rollouts, scores)
    rank = summarize_association(trust, errors, rng=rng, num_resamples=NUM_RESAMPLES)
    return CalibrationRow(
        method=method,
        group=group,
        num_episodes=len(rollouts),
        num_forecasts=int(bins.count.sum()),
        **figures,
        pi=IntervalEstimate(value=rank.pi, low=rank.pi_interval[0], high=rank.pi_interval[1]),
        ause=IntervalEstimate(
            value=rank.ause, low=rank.ause_interval[0], high=rank.ause_interval[1]
        ),
        stated=diagram[0],
        observed=diagram[1],
    )


def ranked(
    rollouts: Sequence[Forecasts], scores: EpisodeScores | None
) -> tuple[list[Float[np.ndarray, " n"]], list[Float[np.ndarray, " n"]]]:
    """Trust in every evaluated subpatch, higher is more, and its error, per episode."""
    trust, errors = [], []
    for number, rollout in enumerate(rollouts):
        rows = np.flatnonzero(np.isin(rollout.horizon, HORIZONS))
        if scores is None:
            value = rollout.confidence[rows].float().mean(-1)
        else:
            value = -scores[number][rows].float()
        error = rollout.error[rows]
        if rollout.view_valid is not None:
            view_mask = rollout.view_valid[rows]
            value, error = value[view_mask], error[view_mask]
        trust.append(value.reshape(-1).double().numpy())
        errors.append(error.reshape(-1).double().numpy())
    return trust, errors
