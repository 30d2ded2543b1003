"""Is every camera wired and mounted as it was: in its own place, in RGB, the right way round?"""

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
"""Grey levels: differences between cells that say nothing."""
LEAST = 0.5
"""A picture is swapped if, put right, it speaks for this share of what a usual picture does."""
EPISODES = 10
"""Reference episodes below which nothing is learned: a few of them say too little of the rest."""

Film = UInt8[np.ndarray, "time *view height width 3"]
Thumbnails = Float64[np.ndarray, "time view rows columns 3"]
MIX_UPS: dict[str, tuple[Callable[[Thumbnails], Thumbnails], str]] = {
    "colours": (
        lambda t: t[..., ::-1],
        "the colour channels of view {} are those of a BGR picture",
    ),
    "flipped": (lambda t: t[..., ::-1, :, :], "view {} is upside down, top and bottom exchanged"),
    "mirrored": (lambda t: t[..., ::-1, :], "view {} is mirrored, left and right exchanged"),
    "turned": (lambda t: t[..., ::-1, ::-1, :], "view {} is turned by 180 degrees"),
    "cameras": (lambda t: t[:, ::-1], "views {} and {} are exchanged"),
}
"""Kind -> what it does to the thumbnails of its views, twice being nothing, and its sentence."""


@dataclass(frozen=True)
class MixUp:
    """One mistake that wiring or mounting can make."""

    kind: str
    """One of `MIX_UPS`."""
    views: tuple[int, ...]
    """One view, or the two that are exchanged."""

    def __str__(self) -> str:
        return f"{MIX_UPS[self.kind][1].format(*self.views)}."

    def applied(self, thumbnails: Thumbnails) -> Thumbnails:
        """Thumbnails with this mistake; those that have it are put right."""
        changed, views = thumbnails.copy(), list(self.views)
        changed[:, views] = MIX_UPS[self.kind][0](thumbnails[:, views])
        return changed

    def exchanged(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Places, in the flattened views concerned, whose values change places; each pair once.

        `shape` is that of a view's thumbnail.
        """
        views = (len(self.views), *shape)
        places = np.arange(np.prod(views)).reshape(1, *views)
        taken = MIX_UPS[self.kind][0](places).ravel()
        first = np.flatnonzero(taken > places.ravel())
        return first, taken[first]


class CameraSetupCheck:
    """Finds exchanged cameras, exchanged colour channels, and pictures the wrong way round.

    For each mistake a linear discriminant (Fisher) tells frames with it from frames without. It is
    fitted on reference frames alone, which are made wrong by hand, and scores a frame 1 on average
    and -1 with the mistake. A frame is called swapped if it scores as low as frames with the
    mistake do and, put right, looks like a reference frame in every view concerned: a strange
    picture is not called swapped. A mistake that some reference frame comes half way to making
    (scenes that look alike in a mirror, views that change places, grey pictures) is not looked for.
    """

    def fit(self, films: Sequence[Film]) -> CameraSetupCheck:
        """Learn from the frames of reference episodes; from fewer than 10 nothing is learned.

        Every second episode tests what the others say, so that the bounds hold for new episodes.
        """
        episodes = [thumbnails(film) for film in films]
        every = np.concatenate(episodes[::2] + episodes[1::2])
        middle = sum(map(len, episodes[::2]))
        halves = [(every[:middle], every[middle:]), (every[middle:], every[:middle])]
        self.mean_, self.deviation_ = _moments(every)
        self.weights_: dict[MixUp, Float64[np.ndarray, " d"]] = {}
        self.reach_ = np.zeros(every.shape[1])
        if len(episodes) < EPISODES:
            return self
        strangest = [_strangeness(new, *_moments(known)).max(axis=0) for known, new in halves]
        self.reach_ = np.maximum(*strangest)
        for mix_up in _candidates(every.shape[1]):
            first, second = mix_up.exchanged(every.shape[2:])
            values = every[:, list(mix_up.views)].reshape(len(every), -1)
            rows = values[:, first] - values[:, second]
            lowest = min(
                (rows[middle:] @ _discriminant(rows[:middle])).min(),
                (rows[:middle] @ _discriminant(rows[middle:])).min(),
            )
            telling = _discriminant(rows)
            if lowest > -LEAST / 2 and telling.any():
                weights = np.zeros(values.shape[1])
                weights[first] = telling / max(lowest, LEAST)
                weights[second] = -weights[first]
                self.weights_[mix_up] = weights
        return self

    def find(self, views: UInt8[np.ndarray, "view height width 3"]) -> MixUp | None:
        """The mistake that a frame was made with; None: none that can be told."""
        require_fitted(self, "weights_")
        frame = thumbnails(views[None])
        likely = {}
        for mix_up in self.weights_:
            if self._score(mix_up, frame) > -1:
                continue
            right, concerned = mix_up.applied(frame), list(mix_up.views)
            strange = _strangeness(right, self.mean_, self.deviation_)[0]
            if (strange <= self.reach_)[concerned].all():
                likely[mix_up] = self._least_score(right, mix_up.views)
        best = max(likely, key=likely.__getitem__, default=None)
        return best if best is not None and likely[best] > 0 else None

    def _score(self, mix_up: MixUp, frame: Thumbnails) -> float:
        """At or below -1: it has this mistake; at or above 1: it surely has not."""
        return float(frame[0, list(mix_up.views)].ravel() @ self.weights_[mix_up])

    def _least_score(self, frame: Thumbnails, views: tuple[int, ...]) -> float:
        """How surely some views have no mistake: a turned picture, mirrored, is still flipped."""
        others = [other for other in self.weights_ if set(other.views) <= set(views)]
        return min(self._score(other, frame) for other in others)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "weights_")
        weights = {
            "_".join([mix_up.kind, *map(str, mix_up.views)]): array
            for mix_up, array in self.weights_.items()
        }
        return {"mean": self.mean_, "deviation": self.deviation_, "reach": self.reach_} | weights

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CameraSetupCheck:
        """The inverse of `arrays`."""
        mounting = cls()
        mounting.mean_, mounting.deviation_ = arrays["mean"], arrays["deviation"]
        mounting.reach_ = arrays["reach"]
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("`arrays` of the mounting hold NaN or infinite numbers")
        names = {
            "_".join([mix_up.kind, *map(str, mix_up.views)]): mix_up
            for mix_up in _candidates(len(mounting.reach_))
        }
        mounting.weights_ = {names[n]: arrays[n] for n in names if n in arrays}
        return mounting


def thumbnails(film: Film) -> Thumbnails:
    """Means over the cells of a grid of at most 16 x 16."""
    frames = film.reshape(len(film), -1, *film.shape[-3:])
    for axis in (2, 3):
        length = frames.shape[axis]
        edges = np.linspace(0, length, min(GRID, length) + 1).round().astype(int)
        sums = np.add.reduceat(frames, edges[:-1], axis=axis, dtype=np.float64)
        frames = np.moveaxis(np.moveaxis(sums, axis, -1) / np.diff(edges), -1, axis)
    return frames


def _moments(known: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of every cell."""
    return known.mean(axis=0), np.sqrt(known.var(axis=0) + 4.0)  # 4: two grey levels of noise


def _strangeness(
    new: Thumbnails, mean: np.ndarray, deviation: np.ndarray
) -> Float64[np.ndarray, "time view"]:
    """Root mean square of the cells' standard scores."""
    return np.sqrt((((new - mean) / deviation) ** 2).mean(axis=(2, 3, 4)))


def _discriminant(difference: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " d"]:
    """Weights that score differences 1 on average, and their opposites -1; zero if there is none.

    Fisher's discriminant between x and -x: both have the same covariance, and means m and -m.
    """
    mean = difference.mean(axis=0)
    centred = difference - mean
    covariance = centred.T @ centred / len(difference) + NOISE**2 * np.eye(len(mean))
    weights = np.linalg.solve(covariance, mean)
    scale = float(mean @ weights)
    return weights / scale if scale > 0 else np.zeros_like(mean)


def _candidates(num_views: int) -> list[MixUp]:
    """Every mistake that can be made with so many views."""
    kinds = [kind for kind in MIX_UPS if kind != "cameras"]
    alone = [MixUp(kind, (view,)) for view in range(num_views) for kind in kinds]
    return alone + [MixUp("cameras", pair) for pair in combinations(range(num_views), 2)]
