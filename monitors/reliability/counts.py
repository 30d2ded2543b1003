"""Reliability counted while forecasts stream by, per tolerance, camera, horizon and episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from worldmodel.monitors.reliability.measures import (
    ReliabilityBins,
    bin_rows,
    brier_decomposition,
    episode_bootstrap,
    expected_calibration_error,
    max_calibration_error,
    per_video_calibration_error,
)


class Reliability:
    """Streaming sums of confidence and outcome; equal to binning all forecasts at once.

    Memory does not depend on the number of forecasts: 32 bytes per bin, tolerance, camera and
    horizon, and as much again per episode (15 bins, 10 tolerances, 1 camera, 4 horizons: 19 kB an
    episode). With `keep_episodes=False` it does not depend on the number of episodes either; only
    pooled measures are left then.
    """

    def __init__(
        self,
        *,
        epsilons: Sequence[float],
        horizons: Sequence[int] = (1,),
        cameras: Sequence[str] = ("main",),
        num_bins: int = 15,
        keep_episodes: bool = True,
    ) -> None:
        self.epsilons, self.horizons, self.cameras = (
            tuple(epsilons),
            tuple(horizons),
            tuple(cameras),
        )
        self.num_bins, self.keep_episodes = num_bins, keep_episodes
        self.episodes: dict[str, Float64[np.ndarray, "horizon camera epsilon 4 bins"]] = {}
        self.total = self._zeros()

    def _zeros(self) -> Float64[np.ndarray, "horizon camera epsilon 4 bins"]:
        groups = (len(self.horizons), len(self.cameras), len(self.epsilons))
        return np.zeros((*groups, 4, self.num_bins))

    def update(
        self,
        confidence: Float[np.ndarray, " epsilon *any"],
        correct: Bool[np.ndarray, " epsilon *any"],
        *,
        episode: str,
        horizon: int = 1,
        camera: str = "main",
    ) -> None:
        """Count forecasts: P(error <= epsilon) per subpatch, and whether it came true."""
        if len(confidence) != len(self.epsilons):
            raise ValueError(
                f"`confidence` needs {len(self.epsilons)} rows (epsilons), got {len(confidence)}."
            )
        cell = (_index("horizon", horizon, self.horizons), _index("camera", camera, self.cameras))
        sums = bin_rows(confidence, correct, num_bins=self.num_bins).sums
        self.total[cell] += sums
        if self.keep_episodes:
            self.episodes.setdefault(episode, self._zeros())[cell] += sums

    def bins(
        self, *, epsilon: float | None = None, horizon: int | None = None, camera: str | None = None
    ) -> ReliabilityBins:
        """Bins of everything, or of the chosen epsilon, horizon and camera, pooled."""
        return ReliabilityBins(
            self.total[self._cells(epsilon, horizon, camera)].sum(axis=(0, 1, 2))
        )

    def episode_bins(
        self, *, epsilon: float | None = None, horizon: int | None = None, camera: str | None = None
    ) -> ReliabilityBins:
        """The same with episodes as leading axis, in order of first appearance."""
        if not self.episodes:
            raise ValueError("No episode was kept; update first, with `keep_episodes=True`.")
        cells = self._cells(epsilon, horizon, camera)
        return ReliabilityBins(
            np.stack([sums[cells].sum(axis=(0, 1, 2)) for sums in self.episodes.values()])
        )

    def _cells(
        self, epsilon: float | None, horizon: int | None, camera: str | None
    ) -> tuple[slice, slice, slice]:
        return (
            _chosen("horizon", horizon, self.horizons),
            _chosen("camera", camera, self.cameras),
            _chosen("epsilon", epsilon, self.epsilons),
        )


@dataclass(frozen=True, kw_only=True)
class CalibrationSummary:
    """One row of a calibration table; intervals are 95% ones over redrawn episodes."""

    num_episodes: int
    num_forecasts: int
    base_rate: float
    """Share of forecasts that came true."""
    mean_confidence: float
    ece: float
    """Pooled expected calibration error."""
    ece_interval: tuple[float, float]
    per_video_ece: float
    """Mean over videos of each video's own error, as C3 reports it."""
    per_video_ece_interval: tuple[float, float]
    mce: float
    """Largest gap among bins with at least 0.1% of the forecasts."""
    brier: float
    brier_skill: float
    """Against always stating the base rate."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def summarize(
    bins: ReliabilityBins, *, rng: np.random.Generator, num_resamples: int = 500
) -> CalibrationSummary:
    """Every measure of `bins`, whose leading axis is the episode."""
    pooled, brier = bins.pooled(), brier_decomposition(bins)
    total = pooled.count.sum()

    def pooled_error(sample: ReliabilityBins) -> float:
        return float(expected_calibration_error(sample.pooled()))

    def interval(measure: Callable[[ReliabilityBins], float]) -> tuple[float, float]:
        return episode_bootstrap(bins, measure, rng=rng, num_resamples=num_resamples)

    return CalibrationSummary(
        num_episodes=int((bins.count.sum(axis=-1) > 0).sum()),
        num_forecasts=int(total),
        base_rate=float(pooled.correct.sum() / total),
        mean_confidence=float(pooled.confidence.sum() / total),
        ece=pooled_error(bins),
        ece_interval=interval(pooled_error),
        per_video_ece=per_video_calibration_error(bins),
        per_video_ece_interval=interval(per_video_calibration_error),
        mce=float(max_calibration_error(pooled)),
        brier=brier.brier,
        brier_skill=brier.skill,
    )


def _index(name: str, value: object, known: Sequence[object]) -> int:
    if value not in known:
        raise ValueError(f"`{name}` must be one of {list(known)}, got {value!r}.")
    return known.index(value)


def _chosen(name: str, value: object, known: Sequence[object]) -> slice:
    """A slice that keeps the axis: all of it, or the one entry asked for."""
    if value is None:
        return slice(None)
    index = _index(name, value, known)
    return slice(index, index + 1)
