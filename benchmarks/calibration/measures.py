"""How well stated confidence held on some episodes: one row of a benchmark's table."""

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
"""Frames ahead that count."""
NUM_RESAMPLES = 200
"""Redrawn sets of episodes behind every interval."""
MEASURES: dict[str, Callable[[ReliabilityBins], float]] = {
    "ece": lambda bins: float(expected_calibration_error(bins.pooled())),
    "per_video_ece": per_video_calibration_error,
    "mce": lambda bins: float(max_calibration_error(bins.pooled())),
    "brier": lambda bins: brier_decomposition(bins).brier,
    "brier_skill": lambda bins: brier_decomposition(bins).skill,
}
"""Name -> measure of bins whose leading axis is the episode."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95% interval over redrawn episodes."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One way to state confidence, on one kind of episodes."""

    method: str
    group: str
    num_episodes: int
    num_forecasts: int
    """Subpatches times error levels."""
    ece: Estimate
    """Pooled expected calibration error."""
    per_video_ece: Estimate
    """Mean over episodes of each one's own error, as C3 reports it."""
    mce: Estimate
    """Largest gap among bins with at least 0.1% of the forecasts."""
    brier: Estimate
    brier_skill: Estimate
    """Against stating the base rate."""
    pi: Estimate
    """Shepherd's π of confidence and error."""
    ause: Estimate
    """Area under the sparsification error curve."""
    stated: Sequence[float | None]
    """Mean confidence in every bin of the reliability diagram; None where a bin is empty."""
    observed: Sequence[float | None]
    """Share of the bin's forecasts that came true."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


Score = Sequence[Float[Tensor, "time view channel h w"]]
"""How surprising every subpatch of every episode is, higher = more."""


def measure(
    rollouts: Sequence[Forecasts],
    *,
    method: str,
    group: str,
    scores: Score | None = None,
    seed: int = 0,
) -> CalibrationRow:
    """Every measure of stated confidence, with its interval.

    Args:
        rollouts: What was stated and what came of it, one per episode.
        method: Name of the row.
        group: Name of the kind of episodes.
        scores: What π and AUSE rank by; None: the expected error that the confidence implies, cut
            off at the largest ε.
        seed: Of the redrawn episodes.
    """
    names = [str(number) for number in range(len(rollouts))]
    reliability = count_reliability(rollouts, names=names, horizons=HORIZONS)
    bins, rng = reliability.episode_bins(), np.random.default_rng(seed)
    figures = {}
    for name, function in MEASURES.items():
        low, high = episode_bootstrap(bins, function, rng=rng, num_resamples=NUM_RESAMPLES)
        figures[name] = Estimate(value=function(bins), low=low, high=high)
    pooled = bins.pooled()
    diagram = [
        [float(x / n) if n else None for x, n in zip(column, pooled.count, strict=True)]
        for column in (pooled.confidence, pooled.correct)
    ]
    calibration, errors = ranked(rollouts, scores)
    rank = summarize_association(calibration, errors, rng=rng, num_resamples=NUM_RESAMPLES)
    return CalibrationRow(
        method=method,
        group=group,
        num_episodes=len(rollouts),
        num_forecasts=int(bins.count.sum()),
        **figures,
        pi=Estimate(value=rank.pi, low=rank.pi_interval[0], high=rank.pi_interval[1]),
        ause=Estimate(value=rank.ause, low=rank.ause_interval[0], high=rank.ause_interval[1]),
        stated=diagram[0],
        observed=diagram[1],
    )


def ranked(
    rollouts: Sequence[Forecasts], scores: Score | None
) -> tuple[list[Float[np.ndarray, " n"]], list[Float[np.ndarray, " n"]]]:
    """Trust in every subpatch that counts, higher = more, and its error, episode by episode."""
    calibration, errors = [], []
    for number, rollout in enumerate(rollouts):
        rows = np.flatnonzero(np.isin(rollout.horizon, HORIZONS))
        if scores is None:
            stated = rollout.confidence[rows].float().mean(-1)
        else:
            stated = -scores[number][rows].float()
        error = rollout.error[rows]
        if rollout.view_valid is not None:
            view_mask = rollout.view_valid[rows]
            stated, error = stated[view_mask], error[view_mask]
        calibration.append(stated.reshape(-1).double().numpy())
        errors.append(error.reshape(-1).double().numpy())
    return calibration, errors
