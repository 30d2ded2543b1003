"""Recalibration: map stated confidence to the frequency with which it came true."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Shaped

from worldmodel.monitors.calibration import ReliabilityBins, checked
from worldmodel.monitors.errors import require_fitted

BANDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
"""Longest horizon of each band of horizons that share their curves, in frames."""


class IsotonicRecalibration:
    """The rising curve closest to the observed frequencies (Zadrozny and Elkan 2002).

    Least squares, weighted; linear between its knots and constant beyond them.
    """

    def fit(
        self,
        confidence: Float[np.ndarray, " n"],
        correct: Shaped[np.ndarray, " n"],
        weight: Shaped[np.ndarray, " n"] | None = None,
    ) -> IsotonicRecalibration:
        """Learn from forecasts and outcomes: true or false, or shares of `weight` forecasts."""
        from scipy.optimize import isotonic_regression

        mass = np.ones(len(confidence)) if weight is None else weight.astype(np.float64)
        if not len(confidence) or mass.min() < 0 or not mass.sum() > 0:
            raise ValueError("`weight` must not be negative, and some forecast must have a weight.")
        outcome = checked(correct.astype(np.float64))[mass > 0]
        knots, index = np.unique(checked(confidence)[mass > 0], return_inverse=True)
        mass = mass[mass > 0]
        total = np.bincount(index, mass)
        frequency = np.bincount(index, mass * outcome) / total
        fitted = isotonic_regression(frequency, weights=total).x
        inner = np.zeros(len(knots), dtype=bool)
        inner[1:-1] = (fitted[1:-1] == fitted[:-2]) & (fitted[1:-1] == fitted[2:])
        self.knots_, self.frequencies_ = knots[~inner], fitted[~inner]
        return self

    def fit_bins(self, bins: ReliabilityBins) -> IsotonicRecalibration:
        """Learn from streaming sums, leading axes pooled; use narrow bins (100 or more)."""
        bins = bins.pooled()
        full = bins.count > 0
        if not full.any():
            raise ValueError("`bins` holds no forecast; nothing can be fitted.")
        count = bins.count[full]
        return self.fit(bins.confidence[full] / count, bins.correct[full] / count, count)

    def predict(self, confidence: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
        """Recalibrated confidence."""
        require_fitted(self, "knots_")
        return np.interp(checked(confidence), self.knots_, self.frequencies_)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "knots_")
        return {"knots_": self.knots_, "frequencies_": self.frequencies_}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> IsotonicRecalibration:
        """The inverse of `arrays`."""
        curve = cls()
        curve.knots_, curve.frequencies_ = arrays["knots_"], arrays["frequencies_"]
        return curve


class EpsilonRecalibration:
    """One isotonic curve per tolerance; the result never falls as the tolerance grows."""

    def __init__(self, epsilons: Sequence[float]) -> None:
        if list(epsilons) != sorted(epsilons) or not epsilons:
            raise ValueError(f"`epsilons` must be given in rising order, got {list(epsilons)}.")
        self.epsilons = tuple(epsilons)

    def fit(self, bins: Sequence[ReliabilityBins]) -> EpsilonRecalibration:
        """Learn from the streaming sums of each tolerance, in their order."""
        self.curves_ = [
            IsotonicRecalibration().fit_bins(b) for _, b in zip(self.epsilons, bins, strict=True)
        ]
        return self

    def predict(
        self, confidence: Float[np.ndarray, " epsilon *any"]
    ) -> Float64[np.ndarray, " epsilon *any"]:
        """Recalibrated confidence: row i belongs to tolerance i, as in `Reliability.update`."""
        require_fitted(self, "curves_")
        if len(confidence) != len(self.curves_):
            raise ValueError(
                f"`confidence` needs {len(self.curves_)} rows (epsilons), got {len(confidence)}."
            )
        rows = [curve.predict(row) for curve, row in zip(self.curves_, confidence, strict=True)]
        return np.maximum.accumulate(np.stack(rows), axis=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "curves_")
        arrays = {"epsilons": np.array(self.epsilons)}
        for i, curve in enumerate(self.curves_):
            arrays |= {f"{i}.{name}": array for name, array in curve.arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EpsilonRecalibration:
        """The inverse of `arrays`."""
        recalibration = cls(arrays["epsilons"].tolist())
        recalibration.curves_ = [
            IsotonicRecalibration.from_arrays(
                {name: arrays[f"{i}.{name}"] for name in ("knots_", "frequencies_")}
            )
            for i in range(len(recalibration.epsilons))
        ]
        return recalibration


class HorizonRecalibration:
    """Curves for each band of horizons, for confidence is off by another amount at each.

    A band reaches from behind the one before it to its own horizon in `BANDS`; the last that was
    learned serves all horizons beyond it.
    """

    def __init__(self, epsilons: Sequence[float]) -> None:
        self.epsilons = tuple(epsilons)

    def fit(self, bins: Mapping[int, Sequence[ReliabilityBins]]) -> HorizonRecalibration:
        """Learn from the streaming sums of each horizon, one per tolerance."""
        bands: dict[int, list[Sequence[ReliabilityBins]]] = {}
        for horizon in sorted(bins):
            bands.setdefault(_band(BANDS, horizon), []).append(bins[horizon])
        self.bands_ = tuple(BANDS[band] for band in bands)
        self.curves_ = [
            EpsilonRecalibration(self.epsilons).fit(
                [
                    ReliabilityBins(np.stack([b.sums for b in same]))
                    for same in zip(*group, strict=True)
                ]
            )
            for group in bands.values()
        ]
        return self

    def predict(
        self, confidence: Float[np.ndarray, " epsilon *any"], *, horizon: int
    ) -> Float64[np.ndarray, " epsilon *any"]:
        """Recalibrated confidence of frames imagined `horizon` steps ahead."""
        require_fitted(self, "curves_")
        return self.curves_[_band(self.bands_, horizon)].predict(confidence)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "curves_")
        return {
            f"{band}/{name}": array
            for band, curves in zip(self.bands_, self.curves_, strict=True)
            for name, array in curves.arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> HorizonRecalibration:
        """The inverse of `arrays`."""
        parts: dict[int, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            band, _, key = name.partition("/")
            parts.setdefault(int(band), {})[key] = array
        if not parts:
            raise ValueError("`arrays` holds no curve.")
        curves = [EpsilonRecalibration.from_arrays(parts[band]) for band in sorted(parts)]
        recalibration = cls(curves[0].epsilons)
        recalibration.bands_, recalibration.curves_ = tuple(sorted(parts)), curves
        return recalibration


def _band(ends: Sequence[int], horizon: int) -> int:
    """Position of the first band that ends at `horizon` or later, else of the last."""
    return min(bisect_left(ends, horizon), len(ends) - 1)
