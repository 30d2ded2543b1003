"""Calibration metrics on binned sums of confidence and outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped
from numpy.typing import ArrayLike

from worldmodel.monitors.arrays import require_probabilities

MIN_MASS = 1e-3
"""Smallest share of all forecasts for a bin to count in the maximum calibration error."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Sums over the forecasts in each equal-width bin, sufficient for all calibration metrics.

    Leading axes are free: episodes, horizons, bootstrap resamples. To merge bins of disjoint
    forecasts, add their `sums`.
    """

    sums: Float64[np.ndarray, "*group 4 bins"]
    """Count, sum of confidence, sum of outcomes, sum of squared errors."""

    @property
    def count(self) -> Float64[np.ndarray, "*group bins"]:
        """Number of forecasts."""
        return self.sums[..., 0, :]

    @property
    def confidence(self) -> Float64[np.ndarray, "*group bins"]:
        """Sum of confidence."""
        return self.sums[..., 1, :]

    @property
    def correct(self) -> Float64[np.ndarray, "*group bins"]:
        """Number of forecasts that came true."""
        return self.sums[..., 2, :]

    @property
    def squared_error(self) -> Float64[np.ndarray, "*group bins"]:
        """Sum of (confidence - outcome) squared."""
        return self.sums[..., 3, :]

    def pooled(self) -> ReliabilityBins:
        """Sum over all leading axes."""
        return ReliabilityBins(self.sums.reshape(-1, *self.sums.shape[-2:]).sum(axis=0))


def bin_forecasts(
    confidence: Float[np.ndarray, "*any"], correct: Bool[np.ndarray, "*any"], *, num_bins: int = 15
) -> ReliabilityBins:
    """Bin the forecasts of one group; values on an inner edge go to the bin above.

    >>> bins = bin_forecasts(np.array([0.1, 0.9, 0.7]), np.array([False, True, True]), num_bins=2)
    >>> bins.count.tolist(), bins.correct.tolist()
    ([1.0, 2.0], [0.0, 2.0])
    """
    return ReliabilityBins(bin_rows(confidence[None], correct[None], num_bins=num_bins).sums[0])


def bin_rows(
    confidence: Float[np.ndarray, " row *any"],
    correct: Shaped[np.ndarray, ...],
    *,
    num_bins: int,
) -> ReliabilityBins:
    """Bin each row separately; the result has rows as leading axis.

    Raises:
        ValueError: An outcome is not boolean, a confidence is no probability, or shapes differ.
    """
    if correct.dtype != np.bool_:
        raise ValueError(
            f"`correct` must be boolean, got {correct.dtype}; compare errors with a tolerance."
        )
    if correct.shape != confidence.shape:
        raise ValueError(
            "`confidence` and `correct` must have the same shape, got "
            f"{confidence.shape} and {correct.shape}."
        )
    rows = len(confidence)
    stated = require_probabilities(confidence).reshape(rows, -1)
    came_true = correct.reshape(rows, -1).astype(np.float64)
    bin_index = bin_indices(stated, num_bins)
    index = (bin_index + num_bins * np.arange(rows)[:, None]).ravel()
    columns = (np.ones_like(stated), stated, came_true, (stated - came_true) ** 2)
    sums = [np.bincount(index, column.ravel(), minlength=rows * num_bins) for column in columns]
    return ReliabilityBins(
        np.stack(sums, dtype=np.float64).reshape(4, rows, num_bins).swapaxes(0, 1)
    )


def bin_indices(stated: Float64[np.ndarray, "*any"], num_bins: int) -> Int[np.ndarray, "*any"]:
    """Index of the bin of each confidence; bin i begins at the float64 number i / `num_bins`.

    The product `stated * num_bins` alone rounds 0.29, 0.57 and 0.58 into the bin below.

    >>> bin_indices(np.array([0.28, 0.29, 0.57, 0.58, 1.0]), 100).tolist()
    [28, 29, 57, 58, 99]
    """
    edges = np.arange(num_bins + 1) / num_bins
    index = np.minimum((stated * num_bins).astype(np.intp), num_bins - 1)
    index -= stated < edges[index]
    index += stated >= edges[index + 1]
    return np.minimum(index, num_bins - 1)


def expected_calibration_error(bins: ReliabilityBins) -> Float64[np.ndarray, "*group"]:
    """Mean gap between confidence and observed frequency, weighted by count; NaN without forecasts.

    >>> bins = bin_forecasts(np.array([0.75, 0.75]), np.array([True, False]))
    >>> float(expected_calibration_error(bins))
    0.25
    """
    return _ratio(np.abs(bins.confidence - bins.correct).sum(axis=-1), bins.count.sum(axis=-1))


def per_video_calibration_error(bins: ReliabilityBins) -> float:
    """Mean over videos of each video's calibration error, as C3 (arXiv:2512.05927) reports it.

    The leading axis of `bins` is the video; videos without forecasts are ignored. It cannot reach
    zero, because random differences between videos count as miscalibration: even a perfectly
    calibrated forecaster scores badly. Always report the pooled error as well.
    """
    errors = expected_calibration_error(bins)
    return float(np.mean(errors[~np.isnan(errors)])) if np.any(~np.isnan(errors)) else float("nan")


def max_calibration_error(
    bins: ReliabilityBins, *, min_mass: float = MIN_MASS
) -> Float64[np.ndarray, "*group"]:
    """Largest gap among bins with at least `min_mass` of all forecasts; NaN without any."""
    gap = _ratio(np.abs(bins.confidence - bins.correct), bins.count)
    heavy = bins.count >= np.maximum(min_mass * bins.count.sum(axis=-1, keepdims=True), 1.0)
    largest = np.where(heavy, gap, -1.0).max(axis=-1)
    return np.where(largest < 0, np.nan, largest)


@dataclass(frozen=True, kw_only=True)
class BrierDecomposition:
    """Brier score = reliability - resolution + uncertainty + within_bin (Murphy 1973)."""

    brier: float
    """Mean squared error of the forecasts; exact, not binned."""
    reliability: float
    """Squared gap between confidence and observed frequency; 0 is perfect."""
    resolution: float
    """Squared distance of the bins' frequencies from the base rate; larger is better."""
    uncertainty: float
    """Brier score of a forecaster who always states the base rate."""
    within_bin: float
    """Contribution of differences within bins; vanishes for narrow bins."""

    @property
    def skill(self) -> float:
        """Brier skill score: 1 is perfect, 0 equals the base rate; NaN for a constant outcome."""
        return 1.0 - self.brier / self.uncertainty if self.uncertainty > 0 else float("nan")


def brier_decomposition(bins: ReliabilityBins) -> BrierDecomposition:
    """Brier decomposition of all forecasts in `bins`, pooled over leading axes."""
    bins = bins.pooled()
    total = bins.count.sum()
    if total == 0:
        raise ValueError("`bins` must hold a forecast, got none; add forecasts first.")
    base_rate = bins.correct.sum() / total
    observed = _ratio(bins.correct, bins.count, empty=base_rate)
    stated = _ratio(bins.confidence, bins.count, empty=base_rate)
    brier = bins.squared_error.sum() / total
    reliability = (bins.count * (stated - observed) ** 2).sum() / total
    resolution = (bins.count * (observed - base_rate) ** 2).sum() / total
    uncertainty = base_rate * (1 - base_rate)
    return BrierDecomposition(
        brier=float(brier),
        reliability=float(reliability),
        resolution=float(resolution),
        uncertainty=float(uncertainty),
        within_bin=float(brier - (reliability - resolution + uncertainty)),
    )


def episode_bootstrap(
    bins: ReliabilityBins,
    measure: Callable[[ReliabilityBins], float],
    *,
    rng: np.random.Generator,
    num_resamples: int = 500,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap percentile interval of `measure` over episodes, the leading axis of `bins`.

    Episodes are resampled as units because their forecasts are dependent. Calibration errors are
    never negative, which biases the interval upwards for few episodes. Episodes that share a scene
    are not independent either: add their sums first, so that the leading axis is the scene.

    Raises:
        ValueError: There is only one episode, whose resamples are all the same.
    """
    num_episodes = len(bins.sums)
    if num_episodes < 2:
        raise ValueError(
            f"`bins` must have at least 2 episodes for an interval, got {num_episodes}."
        )
    draws = rng.integers(num_episodes, size=(num_resamples, num_episodes))
    values = [measure(ReliabilityBins(bins.sums[draw])) for draw in draws]
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(
    numerator: ArrayLike, denominator: ArrayLike, empty: float = float("nan")
) -> Float64[np.ndarray, "*shape"]:
    """Elementwise ratio; `empty` where the denominator is zero."""
    ratio = np.full(np.shape(numerator), empty, dtype=np.float64)
    return np.divide(numerator, denominator, out=ratio, where=np.asarray(denominator) > 0)
