"""Streaming reliability counts per tolerance, camera, horizon and episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Shaped

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
    """Streaming sums of confidence and outcome, equal to binning all forecasts at once.

    Memory does not grow with the number of forecasts: 32 bytes per bin, tolerance, camera and
    horizon, and the same per episode (15 bins, 10 tolerances, 1 camera, 4 horizons: 19 kB per
    episode). With `keep_episodes=False` it does not grow with episodes either, but only pooled
    metrics are available.
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
        correct: Shaped[np.ndarray, ...],
        *,
        episode: str,
        horizon: int = 1,
        camera: str = "main",
    ) -> None:
        """Add forecasts P(error <= epsilon) per subpatch, and their outcomes, booleans.

        Raises:
            ValueError: An outcome is not boolean, a confidence is no probability, shapes differ,
                or epsilons, horizon or camera are not those of the constructor.
        """
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
        """Pooled bins, of all forecasts or of one epsilon, horizon or camera."""
        return ReliabilityBins(
            self.total[self._cells(epsilon, horizon, camera)].sum(axis=(0, 1, 2))
        )

    def episode_bins(
        self, *, epsilon: float | None = None, horizon: int | None = None, camera: str | None = None
    ) -> ReliabilityBins:
        """Like `bins`, with episodes as leading axis, in order of first appearance."""
        if not self.episodes:
            raise ValueError("No episode was kept; call `update` first, with `keep_episodes=True`.")
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
    """Row of a calibration table, with 95% bootstrap intervals over episodes."""

    num_episodes: int
    num_forecasts: int
    base_rate: float
    """Share of forecasts that came true."""
    mean_confidence: float
    ece: float
    """Pooled expected calibration error."""
    ece_interval: tuple[float, float] | None
    """None for a single episode; likewise below."""
    per_video_ece: float
    """Mean over videos of each video's calibration error, as in C3."""
    per_video_ece_interval: tuple[float, float] | None
    mce: float
    """Largest gap among bins with at least 0.1% of the forecasts."""
    brier: float
    brier_skill: float
    """Relative to a forecaster that always states the base rate."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def summarize(
    bins: ReliabilityBins, *, rng: np.random.Generator, num_resamples: int = 500
) -> CalibrationSummary:
    """All calibration metrics of `bins`, whose leading axis is the episode."""
    pooled, brier = bins.pooled(), brier_decomposition(bins)
    total = pooled.count.sum()

    def pooled_error(sample: ReliabilityBins) -> float:
        return float(expected_calibration_error(sample.pooled()))

    def interval(measure: Callable[[ReliabilityBins], float]) -> tuple[float, float] | None:
        if len(bins.sums) < 2:
            return None
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
    """Slice that keeps the axis: all entries, or the chosen one."""
    if value is None:
        return slice(None)
    index = _index(name, value, known)
    return slice(index, index + 1)
