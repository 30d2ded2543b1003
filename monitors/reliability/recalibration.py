"""Recalibration: map stated confidence to the frequency with which it came true."""

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
"""Longest horizon of each band of horizons that share their curves, in frames."""
MIN_EPISODES = 20
"""Fewest episodes that a camera needs for curves of its own."""


@runtime_checkable
class Curve(Protocol):
    """A map from stated confidence to recalibrated confidence that never falls."""

    def fit_bins(self, bins: ReliabilityBins) -> Curve: ...

    def predict(self, confidence: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]: ...

    def arrays(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Curve: ...


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
        """Learn from streaming sums, leading axes pooled; use narrow bins (100 or more)."""
        return self.fit(*bin_means(bins))

    def predict(self, confidence: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
        """Recalibrated confidence."""
        require_fitted(self, "knots_")
        return np.interp(require_probabilities(confidence), self.knots_, self.frequencies_)

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


METHODS: dict[str, type[Curve]] = {
    "isotonic": IsotonicRecalibration,
    "platt": PlattRecalibration,
    "beta": BetaRecalibration,
    "temperature": TemperatureRecalibration,
}
"""Kinds of curve by name; isotonic has any shape and needs the most data."""


def curve_kind(method: str) -> type[Curve]:
    """The kind of curve of that name."""
    try:
        return METHODS[method]
    except KeyError:
        close = difflib.get_close_matches(method, METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Recalibration `method` must be one of {list(METHODS)}, got {method!r}.{hint}"
        ) from None


class EpsilonRecalibration:
    """One curve per tolerance; the result never falls as the tolerance grows."""

    def __init__(self, epsilons: Sequence[float], *, method: str = "isotonic") -> None:
        if list(epsilons) != sorted(epsilons) or not epsilons:
            raise ValueError(f"`epsilons` must be given in rising order, got {list(epsilons)}.")
        self.epsilons, self.method, self.kind = tuple(epsilons), method, curve_kind(method)

    def fit(self, bins: Sequence[ReliabilityBins]) -> EpsilonRecalibration:
        """Learn from the streaming sums of each tolerance, in their order."""
        self.curves_ = [self.kind().fit_bins(b) for _, b in zip(self.epsilons, bins, strict=True)]
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
        """Everything learned, as plain arrays; the method's name as its bytes."""
        require_fitted(self, "curves_")
        arrays = {"epsilons": np.array(self.epsilons)}
        if self.method != "isotonic":
            arrays["method"] = np.frombuffer(self.method.encode(), dtype=np.uint8).copy()
        for i, curve in enumerate(self.curves_):
            arrays |= {f"{i}.{name}": array for name, array in curve.arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EpsilonRecalibration:
        """The inverse of `arrays`."""
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
    """Curves for each band of horizons, for confidence is off by another amount at each.

    A band reaches from behind the one before it to its own horizon in `BANDS`; the last that was
    learned serves all horizons beyond it. A band that fewer than `min_episodes` reached is joined
    to the next.
    """

    def __init__(
        self, epsilons: Sequence[float], *, method: str = "isotonic", min_episodes: int = 1
    ) -> None:
        self.epsilons, self.method, self.min_episodes = tuple(epsilons), method, min_episodes

    def fit(self, bins: Mapping[int, Sequence[ReliabilityBins]]) -> HorizonRecalibration:
        """Learn from the streaming sums of each horizon, one per tolerance.

        With `min_episodes`, the leading axis of the sums is the episode.
        """
        seen = {h: np.atleast_1d(rows[0].count.any(axis=-1)) for h, rows in bins.items()}
        if self.min_episodes > 1 and any(rows[0].count.ndim == 1 for rows in bins.values()):
            raise ValueError("`bins` must keep episodes as leading axis, for `min_episodes`.")
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
        """Recalibrated confidence of frames imagined `horizon` steps ahead."""
        require_fitted(self, "curves_")
        return self.curves_[band_index(self.bands_, horizon)].predict(confidence)

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
        recalibration = cls(curves[0].epsilons, method=curves[0].method)
        recalibration.bands_, recalibration.curves_ = tuple(sorted(parts)), curves
        return recalibration


class CameraRecalibration:
    """Curves of each camera that at least `min_episodes` show, else those of all together."""

    def __init__(
        self,
        epsilons: Sequence[float],
        *,
        method: str = "isotonic",
        min_episodes: int = MIN_EPISODES,
    ) -> None:
        self.epsilons, self.method, self.min_episodes = tuple(epsilons), method, min_episodes

    def fit(self, reliability: Reliability) -> CameraRecalibration:
        """Learn from streaming sums with narrow bins (100 or more) that kept their episodes."""
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
        """Recalibrated confidence of one camera's frames imagined `horizon` steps ahead."""
        require_fitted(self, "pooled_")
        return self.cameras_.get(camera, self.pooled_).predict(confidence, horizon=horizon)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays; what all cameras share has no camera's name."""
        require_fitted(self, "pooled_")
        return {
            f"{camera}:{name}": array
            for camera, curves in {"": self.pooled_, **self.cameras_}.items()
            for name, array in curves.arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CameraRecalibration:
        """The inverse of `arrays`."""
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
    """Position of the first band that ends at `horizon` or later, else of the last."""
    return min(bisect_left(ends, horizon), len(ends) - 1)


def horizon_bands(
    seen: Mapping[int, Bool[np.ndarray, "*episode"]], min_episodes: int
) -> dict[int, list[int]]:
    """End of each band of `BANDS` -> its horizons; one with too few episodes joins the next.

    `seen` says of each horizon which episodes reached it; what is left at the end joins the last.

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
