"""Stillness check: pictures that stop changing while the robot moves, but for noise or in half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from worldmodel.monitors.errors import require_fitted

STEPS = 3
"""Steps over which a picture must change if the robot moves."""
LENGTH = STEPS + 2
"""Frames that the check looks at."""
MEAN_GRID, CHANGE_GRID = 8, 16
"""Rows and columns of the cells whose means, and whose changes, are compared."""
LEAST_MOTION = 0.02
"""Commanded motion in metres or radians over `STEPS` that must change a picture."""
SHARE = 0.75
"""Share of the smallest change of any familiar picture below which a picture counts as frozen."""
SPARE_CELLS = 2
"""Changing cells above the familiar maximum at which a half that stops counts as frozen."""
EPISODES = 10
"""Fewest episodes to learn from; fewer do not represent the rest."""
HALVES = {
    "upper": np.s_[: CHANGE_GRID // 2, :],
    "lower": np.s_[CHANGE_GRID // 2 :, :],
    "left": np.s_[:, : CHANGE_GRID // 2],
    "right": np.s_[:, CHANGE_GRID // 2 :],
}

Views = UInt8[np.ndarray, "view height width 3"]


@dataclass(frozen=True)
class PictureStep:
    """What the check remembers of one frame."""

    means: Float64[np.ndarray, "view 8 8 3"]
    """Mean colour of each cell."""
    changed: Bool[np.ndarray, "view 16 16"]
    """Cells with any pixel that differs from the frame before."""
    motion: Float64[np.ndarray, " 6"]
    """Translation and rotation commanded at this frame; zero if unknown."""
    starts: bool
    """Whether an episode starts here."""

    @classmethod
    def of(
        cls, views: Views, before: Views | None, motion: np.ndarray, *, starts: bool
    ) -> PictureStep:
        """Compare a frame with the one before."""
        differs = np.zeros(views.shape[:3], bool) if before is None else (views != before).any(-1)
        height, width = views.shape[1:3]
        means = _cells(views, MEAN_GRID, np.add) / _cells(
            np.ones((1, height, width, 1)), MEAN_GRID, np.add
        )
        return cls(
            means, _cells(differs[..., None], CHANGE_GRID, np.logical_or)[..., 0], motion, starts
        )


class StillnessCheck:
    """Detects frames that repeat but for noise, and halves of frames that stop changing.

    The change over `STEPS` steps with commanded motion is compared with the smallest change in any
    familiar episode: a camera that repeats its frame changes by its noise only. A half in which
    many cells changed and which then stays exactly equal is compared with the largest number of
    cells after which this ever happened. Both bounds come from all familiar episodes, so at most
    one new nominal episode in their number exceeds one of them, on average. A picture in which
    nothing changes although the robot moves (a camera that does not see it) is not checked.
    """

    LEARNED = ("least_", "most_")

    def fit(
        self, episodes: Sequence[tuple[np.ndarray, Float64[np.ndarray, "time 6"]]]
    ) -> StillnessCheck:
        """Fit to familiar episodes: frames [time, *view, height, width, 3] and commanded motion."""
        if not episodes:
            raise ValueError("`episodes` needs at least one episode.")
        found = [_extremes(frames, motion) for frames, motion in episodes]
        self.least_ = np.min([least for least, _ in found], axis=0)
        self.most_ = np.max([most for _, most in found], axis=0)
        if len(episodes) < EPISODES:
            self.least_ = np.zeros_like(self.least_)
            self.most_ = np.full_like(self.most_, CHANGE_GRID**2)
        return self

    def find(self, steps: Sequence[PictureStep]) -> str:
        """Fault of the last frame, '' if there is none, given the last `LENGTH` frames."""
        require_fitted(self, "most_")
        steps = list(steps)
        least, most = smallest_change(steps), cells_before_still(steps)
        for view in range(len(least)):
            if least[view] < SHARE * self.least_[view]:
                return f"view {view} repeats the same frame but for noise while the robot moves."
            for half, name in enumerate(HALVES):
                if most[view, half] > self.most_[view, half] + SPARE_CELLS:
                    return f"the {name} half of view {view} has stopped while the robot moves."
        return ""

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "most_")
        return {name: getattr(self, name) for name in self.LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> StillnessCheck:
        """Inverse of `arrays`."""
        check = cls()
        for name in cls.LEARNED:
            setattr(check, name, arrays[name])
        return check


def smallest_change(steps: Sequence[PictureStep]) -> Float64[np.ndarray, " view"]:
    """Largest change of any cell's mean over `STEPS` steps, in grey levels.

    It is the larger one of this frame and the one before, because one frame alone may happen to
    change little; infinite without commanded motion, or if the frames are too few.
    """
    if len(steps) < LENGTH:
        return np.full(len(steps[-1].means), np.inf)
    changes = []
    for end in (-1, -2):
        moved = np.abs(sum(s.motion for s in steps[end - STEPS : end])).max()
        change = np.abs(steps[end].means - steps[end - STEPS].means).max(axis=(1, 2, 3))
        changes.append(change if moved > LEAST_MOTION else np.full_like(change, np.inf))
    return np.maximum(*changes)


def cells_before_still(steps: Sequence[PictureStep]) -> Int64[np.ndarray, "view half"]:
    """Cells of each half that changed in both frames before it stayed equal for `STEPS` frames.

    -1 for halves that still change, without commanded motion, or if an episode starts in between.
    """
    count = np.full((len(steps[-1].changed), len(HALVES)), -1)
    if len(steps) < LENGTH or any(step.starts for step in steps):
        return count
    if np.abs(sum(s.motion for s in steps[-1 - STEPS : -1])).max() <= LEAST_MOTION * SHARE:
        return count
    for half, place in enumerate(HALVES.values()):
        cells = np.stack([step.changed[:, *place] for step in steps]).sum(axis=(2, 3))
        still = ~cells[-STEPS:].any(axis=0)
        count[still, half] = cells[:-STEPS].min(axis=0)[still]
    return count


def _extremes(
    frames: np.ndarray, motion: Float64[np.ndarray, "time 6"]
) -> tuple[Float64[np.ndarray, " view"], Int64[np.ndarray, "view half"]]:
    """Smallest change, and most cells before a half stopped, in one episode."""
    videos = frames.reshape(len(frames), -1, *frames.shape[-3:])
    steps: list[PictureStep] = []
    least = np.full(videos.shape[1], np.inf)
    most = np.full((videos.shape[1], len(HALVES)), -1)
    for t, views in enumerate(videos):
        before = videos[t - 1] if t else None
        steps = [*steps[1 - LENGTH :], PictureStep.of(views, before, motion[t], starts=not t)]
        least = np.minimum(least, smallest_change(steps))
        most = np.maximum(most, cells_before_still(steps))
    return least, most


def _cells(values: np.ndarray, count: int, combine: np.ufunc) -> np.ndarray:
    """Combine values [n, height, width, c] in `count` rows and columns of cells."""
    for axis in (1, 2):
        starts = np.arange(count) * values.shape[axis] // count
        dtype = np.float64 if combine is np.add else bool
        values = combine.reduceat(values, starts, axis=axis, dtype=dtype)
    return values
