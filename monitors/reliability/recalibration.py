"""Recalibration: map confidence to observed frequency, per tolerance, horizon and camera."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from worldmodel.monitors.arrays import require_probabilities
from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.reliability.counts import Reliability
from worldmodel.monitors.reliability.measures import ReliabilityBins
from worldmodel.monitors.reliability.parametric import (
    BetaRecalibration,
    PlattRecalibration,
    TemperatureRecalibration,
    bin_means,
    weighed,
)

BANDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
"""Longest horizon of each band that shares a curve, in frames."""
MIN_EPISODES = 20
"""Fewest episodes for a camera to get its own curves."""


@runtime_checkable
class Curve(Protocol):
    """Non-decreasing map from confidence to recalibrated confidence."""

    def fit_bins(self, bins: ReliabilityBins) -> Curve: ...

    def predict(self, confidence: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]: ...

    def arrays(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Curve: ...


class IsotonicRecalibration:
    """Isotonic regression of outcomes on confidence (Zadrozny and Elkan 2002).

    Weighted least squares; linear between the knots and constant outside them.
    """

    def fit(
        self,
        confidence: Float[np.ndarray, " n"],
        correct: Shaped[np.ndarray, " n"],
        weight: Shaped[np.ndarray, " n"] | None = None,
    ) -> IsotonicRecalibration:
        """Fit to confidence and outcomes: booleans, or shares of `weight` forecasts."""
        from scipy.optimize import isotonic_regression

        stated, outcome, mass = weighed(confidence, correct, weight)
        knots, index = np.unique(stated, return_inverse=True)
        total = np.bincount(index, mass)
        frequency = np.bincount(index, mass * outcome) / total
        fitted = isotonic_regression(frequency, weights=total).x
        inner = np.zeros(len(knots), dtype=bool)
        inner[1:-1] = (fitted[1:-1] == fitted[:-2]) & (fitted[1:-1] == fitted[2:])
        self.knots_, self.frequencies_ = knots[~inner], fitted[~inner]
        return self

    def fit_bins(self, bins: ReliabilityBins) -> IsotonicRecalibration:
        """Fit to streaming sums, pooled over leading axes; use 100 bins or more."""
        return self.fit(*bin_means(bins))

    def predict(self, confidence: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
        """Recalibrated confidence."""
        require_fitted(self, "knots_")
        return np.interp(require_probabilities(confidence), self.knots_, self.frequencies_)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "knots_")
        return {"knots_": self.knots_, "frequencies_": self.frequencies_}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> IsotonicRecalibration:
        """Inverse of `arrays`."""
        curve = cls()
        curve.knots_, curve.frequencies_ = arrays["knots_"], arrays["frequencies_"]
        return curve


METHODS: dict[str, type[Curve]] = {
    "isotonic": IsotonicRecalibration,
    "platt": PlattRecalibration,
    "beta": BetaRecalibration,
    "temperature": TemperatureRecalibration,
}
"""Kinds of curve by name; isotonic is the most flexible and needs the most data."""


def curve_kind(method: str) -> type[Curve]:
    """Look up a kind of curve by name."""
    try:
        return METHODS[method]
    except KeyError:
        close = difflib.get_close_matches(method, METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Recalibration `method` must be one of {list(METHODS)}, got {method!r}.{hint}"
        ) from None


class EpsilonRecalibration:
    """One curve per tolerance; the result is non-decreasing in the tolerance."""

    def __init__(self, epsilons: Sequence[float], *, method: str = "isotonic") -> None:
        if list(epsilons) != sorted(epsilons) or not epsilons:
            raise ValueError(
                f"`epsilons` must not be empty and must increase, got {list(epsilons)}."
            )
        self.epsilons, self.method, self.kind = tuple(epsilons), method, curve_kind(method)

    def fit(self, bins: Sequence[ReliabilityBins]) -> EpsilonRecalibration:
        """Fit to the streaming sums of each tolerance, in order."""
        self.curves_ = [self.kind().fit_bins(b) for _, b in zip(self.epsilons, bins, strict=True)]
        return self

    def predict(
        self, confidence: Float[np.ndarray, " epsilon *any"]
    ) -> Float64[np.ndarray, " epsilon *any"]:
        """Recalibrated confidence; row i is tolerance i, as in `Reliability.update`."""
        require_fitted(self, "curves_")
        if len(confidence) != len(self.curves_):
            raise ValueError(
                f"`confidence` needs {len(self.curves_)} rows (epsilons), got {len(confidence)}."
            )
        rows = [curve.predict(row) for curve, row in zip(self.curves_, confidence, strict=True)]
        return np.maximum.accumulate(np.stack(rows), axis=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays; the method name as bytes."""
        require_fitted(self, "curves_")
        arrays = {"epsilons": np.array(self.epsilons)}
        if self.method != "isotonic":
            arrays["method"] = np.frombuffer(self.method.encode(), dtype=np.uint8).copy()
        for i, curve in enumerate(self.curves_):
            arrays |= {f"{i}.{name}": array for name, array in curve.arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EpsilonRecalibration:
        """Inverse of `arrays`."""
        method = bytes(arrays["method"]).decode() if "method" in arrays else "isotonic"
        recalibration = cls(arrays["epsilons"].tolist(), method=method)
        parts: dict[int, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            index, dot, key = name.partition(".")
            if dot:
                parts.setdefault(int(index), {})[key] = array
        recalibration.curves_ = [
            recalibration.kind.from_arrays(parts[i]) for i in range(len(recalibration.epsilons))
        ]
        return recalibration


class HorizonRecalibration:
    """Curves per band of horizons, as miscalibration depends on the horizon.

    Each band ends at its horizon in `BANDS`; the last fitted band also serves longer horizons.
    Bands with fewer than `min_episodes` episodes are merged with the next.
    """

    def __init__(
        self, epsilons: Sequence[float], *, method: str = "isotonic", min_episodes: int = 1
    ) -> None:
        self.epsilons, self.method, self.min_episodes = tuple(epsilons), method, min_episodes

    def fit(self, bins: Mapping[int, Sequence[ReliabilityBins]]) -> HorizonRecalibration:
        """Fit to the streaming sums of each horizon, one per tolerance.

        With `min_episodes` above 1, the leading axis of the sums must be the episode.
        """
        seen = {h: np.atleast_1d(rows[0].count.any(axis=-1)) for h, rows in bins.items()}
        if self.min_episodes > 1 and any(rows[0].count.ndim == 1 for rows in bins.values()):
            raise ValueError(
                "`bins` must have episodes as leading axis if `min_episodes` is above 1."
            )
        bands = horizon_bands(seen, self.min_episodes)
        self.bands_ = tuple(bands)
        self.curves_ = [
            EpsilonRecalibration(self.epsilons, method=self.method).fit(
                [
                    ReliabilityBins(np.stack([b.sums for b in same]))
                    for same in zip(*(bins[horizon] for horizon in horizons), strict=True)
                ]
            )
            for horizons in bands.values()
        ]
        return self

    def predict(
        self, confidence: Float[np.ndarray, " epsilon *any"], *, horizon: int
    ) -> Float64[np.ndarray, " epsilon *any"]:
        """Recalibrated confidence at a prediction horizon."""
        require_fitted(self, "curves_")
        return self.curves_[band_index(self.bands_, horizon)].predict(confidence)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "curves_")
        return {
            f"{band}/{name}": array
            for band, curves in zip(self.bands_, self.curves_, strict=True)
            for name, array in curves.arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> HorizonRecalibration:
        """Inverse of `arrays`."""
        parts: dict[int, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            band, _, key = name.partition("/")
            parts.setdefault(int(band), {})[key] = array
        if not parts:
            raise ValueError("`arrays` must hold a curve, got none.")
        curves = [EpsilonRecalibration.from_arrays(parts[band]) for band in sorted(parts)]
        recalibration = cls(curves[0].epsilons, method=curves[0].method)
        recalibration.bands_, recalibration.curves_ = tuple(sorted(parts)), curves
        return recalibration


class CameraRecalibration:
    """Curves per camera with at least `min_episodes` episodes; others use the pooled curves."""

    def __init__(
        self,
        epsilons: Sequence[float],
        *,
        method: str = "isotonic",
        min_episodes: int = MIN_EPISODES,
    ) -> None:
        self.epsilons, self.method, self.min_episodes = tuple(epsilons), method, min_episodes

    def fit(self, reliability: Reliability) -> CameraRecalibration:
        """Fit to streaming sums with 100 bins or more and `keep_episodes=True`."""
        self.pooled_ = self._fitted(reliability, camera=None, min_episodes=1)
        self.cameras_ = {
            camera: self._fitted(reliability, camera=camera, min_episodes=self.min_episodes)
            for camera in reliability.cameras
            if reliability.episode_bins(camera=camera).count.any(axis=-1).sum() >= self.min_episodes
        }
        return self

    def _fitted(
        self, reliability: Reliability, *, camera: str | None, min_episodes: int
    ) -> HorizonRecalibration:
        bins = {
            horizon: [
                reliability.episode_bins(epsilon=epsilon, horizon=horizon, camera=camera)
                for epsilon in self.epsilons
            ]
            for horizon in reliability.horizons
            if reliability.bins(horizon=horizon, camera=camera).count.any()
        }
        curves = HorizonRecalibration(self.epsilons, method=self.method, min_episodes=min_episodes)
        return curves.fit(bins)

    def predict(
        self, confidence: Float[np.ndarray, " epsilon *any"], *, horizon: int, camera: str
    ) -> Float64[np.ndarray, " epsilon *any"]:
        """Recalibrated confidence of one camera at a prediction horizon."""
        require_fitted(self, "pooled_")
        return self.cameras_.get(camera, self.pooled_).predict(confidence, horizon=horizon)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays; the pooled curves have an empty camera name."""
        require_fitted(self, "pooled_")
        return {
            f"{camera}:{name}": array
            for camera, curves in {"": self.pooled_, **self.cameras_}.items()
            for name, array in curves.arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CameraRecalibration:
        """Inverse of `arrays`."""
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            camera, _, key = name.rpartition(":")
            parts.setdefault(camera, {})[key] = array
        curves = {name: HorizonRecalibration.from_arrays(part) for name, part in parts.items()}
        pooled = curves.pop("")
        recalibration = cls(pooled.epsilons, method=pooled.method)
        recalibration.pooled_, recalibration.cameras_ = pooled, curves
        return recalibration


def band_index(ends: Sequence[int], horizon: int) -> int:
    """Index of the first band that ends at `horizon` or later, else of the last band."""
    return min(bisect_left(ends, horizon), len(ends) - 1)


def horizon_bands(
    seen: Mapping[int, Bool[np.ndarray, "*episode"]], min_episodes: int
) -> dict[int, list[int]]:
    """End of each band of `BANDS` -> its horizons; bands with too few episodes join the next.

    `seen` maps each horizon to a mask of the episodes that reached it. Leftover horizons join the
    last band.

    >>> horizon_bands({h: np.arange(4) < 5 - h for h in (1, 2, 3, 4)}, min_episodes=3)
    {1: [1], 2: [2, 3, 4]}
    """
    bands: dict[int, list[int]] = {}
    waiting: list[int] = []
    end = BANDS[-1]
    for end, horizons in groupby(sorted(seen), key=lambda h: BANDS[band_index(BANDS, h)]):
        waiting += horizons
        if np.any([seen[horizon] for horizon in waiting], axis=0).sum() >= min_episodes:
            bands[end], waiting = waiting, []
    if waiting:
        bands.setdefault(max(bands, default=end), []).extend(waiting)
    return bands
