"""Camera setup check: exchanged cameras, BGR colours, flipped or rotated pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64, UInt8

from worldmodel.monitors.errors import require_fitted

GRID = 16
"""Rows and columns of a thumbnail."""
NOISE = 22.0
"""Regularisation in grey levels: cell differences of this size carry no information."""
LEAST = 0.5
"""Floor of the held-out minimum score by which a discriminant is scaled; typical frames score 1."""
EPISODES = 10
"""Fewest reference episodes to learn from; fewer do not represent the rest."""

Video = UInt8[np.ndarray, "time *view height width 3"]
Thumbnails = Float64[np.ndarray, "time view rows columns 3"]
MIX_UPS: dict[str, tuple[Callable[[Thumbnails], Thumbnails], str]] = {
    "colours": (
        lambda t: t[..., ::-1],
        "view {} has its colour channels in BGR order",
    ),
    "flipped": (lambda t: t[..., ::-1, :, :], "view {} is upside down, top and bottom exchanged"),
    "mirrored": (lambda t: t[..., ::-1, :], "view {} is mirrored, left and right exchanged"),
    "turned": (lambda t: t[..., ::-1, ::-1, :], "view {} is turned by 180 degrees"),
    "cameras": (lambda t: t[:, ::-1], "views {} and {} are exchanged"),
}
"""Kind -> transform of the affected views' thumbnails (its own inverse), and its message."""


@dataclass(frozen=True)
class SetupFault:
    """One wiring or mounting fault."""

    kind: str
    """One of `MIX_UPS`."""
    views: tuple[int, ...]
    """The affected view, or the two exchanged ones."""

    def __str__(self) -> str:
        return f"{MIX_UPS[self.kind][1].format(*self.views)}."

    def applied(self, thumbnails: Thumbnails) -> Thumbnails:
        """Apply the fault; applied twice, it cancels."""
        changed, views = thumbnails.copy(), list(self.views)
        changed[:, views] = MIX_UPS[self.kind][0](thumbnails[:, views])
        return changed

    def exchanged(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Indices into the flattened affected views that the fault swaps, each pair once.

        `shape` is the shape of one view's thumbnail.
        """
        views = (len(self.views), *shape)
        places = np.arange(np.prod(views)).reshape(1, *views)
        taken = MIX_UPS[self.kind][0](places).ravel()
        first = np.flatnonzero(taken > places.ravel())
        return first, taken[first]


class CameraSetupCheck:
    """Detects exchanged cameras, BGR colours, and flipped, mirrored or rotated pictures.

    Each fault has a Fisher discriminant, fitted on reference frames and transformed copies of them;
    it averages 1 on frames without the fault and -1 with it. A fault is reported if the score is as
    low as with the fault and undoing the fault makes all affected views look like reference frames;
    an unfamiliar picture alone is not a fault. Faults that some reference frame comes half way to
    (mirror-symmetric scenes, views that change places, grey pictures) are not checked.
    """

    def fit(self, videos: Sequence[Video]) -> CameraSetupCheck:
        """Fit to frames of reference episodes; with fewer than 10, no fault is checked.

        Bounds come from two-fold cross-validation over episodes, so they hold for new episodes.
        """
        episodes = [thumbnails(video) for video in videos]
        every = np.concatenate(episodes[::2] + episodes[1::2])
        middle = sum(map(len, episodes[::2]))
        halves = [(every[:middle], every[middle:]), (every[middle:], every[:middle])]
        self.mean_, self.deviation_ = _moments(every)
        self.weights_: dict[SetupFault, Float64[np.ndarray, " d"]] = {}
        self.reach_ = np.zeros(every.shape[1])
        if len(episodes) < EPISODES:
            return self
        deviations = [_deviation(new, *_moments(known)).max(axis=0) for known, new in halves]
        self.reach_ = np.maximum(*deviations)
        for mix_up in _candidates(every.shape[1]):
            first, second = mix_up.exchanged(every.shape[2:])
            values = every[:, list(mix_up.views)].reshape(len(every), -1)
            rows = values[:, first] - values[:, second]
            lowest = min(
                (rows[middle:] @ _discriminant(rows[:middle])).min(),
                (rows[:middle] @ _discriminant(rows[middle:])).min(),
            )
            discriminant = _discriminant(rows)
            if lowest > -LEAST / 2 and discriminant.any():
                weights = np.zeros(values.shape[1])
                weights[first] = discriminant / max(lowest, LEAST)
                weights[second] = -weights[first]
                self.weights_[mix_up] = weights
        return self

    def find(self, views: UInt8[np.ndarray, "view height width 3"]) -> SetupFault | None:
        """The most likely fault of a frame; None if none is detected."""
        require_fitted(self, "weights_")
        frame = thumbnails(views[None])
        likely = {}
        for mix_up in self.weights_:
            if self._score(mix_up, frame) > -1:
                continue
            corrected, affected = mix_up.applied(frame), list(mix_up.views)
            deviation = _deviation(corrected, self.mean_, self.deviation_)[0]
            if (deviation <= self.reach_)[affected].all():
                likely[mix_up] = self._least_score(corrected, mix_up.views)
        best = max(likely, key=likely.__getitem__, default=None)
        return best if best is not None and likely[best] > 0 else None

    def _score(self, mix_up: SetupFault, frame: Thumbnails) -> float:
        """Discriminant score: at or below -1 with the fault, at or above 1 surely without."""
        return float(frame[0, list(mix_up.views)].ravel() @ self.weights_[mix_up])

    def _least_score(self, frame: Thumbnails, views: tuple[int, ...]) -> float:
        """Smallest score over all faults of some views: a rotated picture, mirrored, is flipped."""
        others = [other for other in self.weights_ if set(other.views) <= set(views)]
        return min(self._score(other, frame) for other in others)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "weights_")
        weights = {
            "_".join([mix_up.kind, *map(str, mix_up.views)]): array
            for mix_up, array in self.weights_.items()
        }
        return {"mean": self.mean_, "deviation": self.deviation_, "reach": self.reach_} | weights

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CameraSetupCheck:
        """Inverse of `arrays`."""
        mounting = cls()
        mounting.mean_, mounting.deviation_ = arrays["mean"], arrays["deviation"]
        mounting.reach_ = arrays["reach"]
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("`arrays` of the camera setup check hold NaN or infinite numbers")
        names = {
            "_".join([mix_up.kind, *map(str, mix_up.views)]): mix_up
            for mix_up in _candidates(len(mounting.reach_))
        }
        mounting.weights_ = {names[n]: arrays[n] for n in names if n in arrays}
        return mounting


def thumbnails(video: Video) -> Thumbnails:
    """Downsample to cell means on a grid of at most 16 x 16."""
    frames = video.reshape(len(video), -1, *video.shape[-3:])
    for axis in (2, 3):
        length = frames.shape[axis]
        edges = np.linspace(0, length, min(GRID, length) + 1).round().astype(int)
        sums = np.add.reduceat(frames, edges[:-1], axis=axis, dtype=np.float64)
        frames = np.moveaxis(np.moveaxis(sums, axis, -1) / np.diff(edges), -1, axis)
    return frames


def _moments(known: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each cell."""
    return known.mean(axis=0), np.sqrt(known.var(axis=0) + 4.0)  # 4: two grey levels of noise


def _deviation(
    new: Thumbnails, mean: np.ndarray, deviation: np.ndarray
) -> Float64[np.ndarray, "time view"]:
    """Root mean square of the cells' z-scores, per view."""
    return np.sqrt((((new - mean) / deviation) ** 2).mean(axis=(2, 3, 4)))


def _discriminant(difference: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " d"]:
    """Fisher discriminant between x and -x, scaled to a mean score of 1; zero if undefined.

    Both classes have the same covariance, and means m and -m.
    """
    mean = difference.mean(axis=0)
    centred = difference - mean
    covariance = centred.T @ centred / len(difference) + NOISE**2 * np.eye(len(mean))
    weights = np.linalg.solve(covariance, mean)
    scale = float(mean @ weights)
    return weights / scale if scale > 0 else np.zeros_like(mean)


def _candidates(num_views: int) -> list[SetupFault]:
    """All faults possible with this many views."""
    kinds = [kind for kind in MIX_UPS if kind != "cameras"]
    single = [SetupFault(kind, (view,)) for view in range(num_views) for kind in kinds]
    return single + [SetupFault("cameras", pair) for pair in combinations(range(num_views), 2)]
