"""Fixed-length training clips from a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from worldmodel.datasets.dataset import Dataset
from worldmodel.datasets.trajectory import Trajectory

MAX_OPEN_EPISODES = 256


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A window of one episode, or a batch of them along the first axis."""

    frames: UInt8[Tensor, "*batch time view height width 3"]
    """RGB, one view per requested camera; zeros for a camera that the episode lacks."""
    actions: Float32[Tensor, "*batch time action"]
    """As in `Trajectory`; row t takes frame t to frame t + 1."""
    action_valid: Bool[Tensor, "*batch time"]
    """False where the source has no action."""
    episode: Int64[Tensor, "*batch"]
    """Position of the episode in the dataset."""
    start: Int64[Tensor, "*batch"]
    """First frame of the window."""
    view_valid: Bool[Tensor, "*batch view"]
    """False where the episode lacks the camera."""


class ClipDataset(torch.utils.data.Dataset[Clip]):
    """All windows of `num_frames` frames within single episodes.

    Episodes shorter than a window are skipped; `num_skipped` counts them.
    """

    def __init__(
        self, dataset: Dataset, *, cameras: Sequence[str], num_frames: int, stride: int = 1
    ) -> None:
        """Index the windows without decoding frames.

        Args:
            dataset: Where the episodes come from.
            cameras: Cameras of a clip, in this order; their frames must have equal size.
            num_frames: Length of a window.
            stride: Frames between the starts of successive windows of an episode.
        """
        if num_frames < 1 or stride < 1:
            raise ValueError(
                f"`num_frames` and `stride` must be positive, got {num_frames} and {stride}."
            )
        if missing := sorted(set(cameras) - set(dataset.cameras)):
            raise ValueError(f"`cameras` {missing} are not among {list(dataset.cameras)}.")
        self.dataset = dataset
        self.cameras = tuple(cameras)
        self.num_frames = num_frames
        self.stride = stride
        lengths = [dataset.summary(index).num_frames for index in range(len(dataset))]
        counts = [window_count(length, num_frames, stride) for length in lengths]
        self.num_skipped = counts.count(0)
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._open_episodes: dict[int, Trajectory] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < len(self):
            raise IndexError(f"`index`={index} is out of range: there are {len(self)} clips.")
        episode = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[episode - 1]) if episode else 0
        start = (index - first) * self.stride
        window = slice(start, start + self.num_frames)
        trajectory = self._episode(episode)
        return Clip(
            frames=torch.from_numpy(stack_views(trajectory, self.cameras, window)),
            actions=torch.from_numpy(trajectory.actions[window]),
            action_valid=torch.from_numpy(trajectory.action_valid[window]),
            episode=torch.tensor(episode),
            start=torch.tensor(start),
            view_valid=torch.from_numpy(camera_mask(trajectory, self.cameras)),
        )

    def _episode(self, index: int) -> Trajectory:
        """An episode from the cache: opening it costs more than decoding a window."""
        if index not in self._open_episodes:
            if len(self._open_episodes) >= MAX_OPEN_EPISODES:
                self._open_episodes.pop(next(iter(self._open_episodes)))
            self._open_episodes[index] = self.dataset.episode(index)
        return self._open_episodes[index]


def window_count(length: int, num_frames: int, stride: int) -> int:
    """Number of windows in an episode.

    >>> [window_count(length, 3, 2) for length in (2, 3, 4, 5)]
    [0, 1, 1, 2]
    """
    return max(0, (length - num_frames) // stride + 1)


def found_cameras(trajectory: Trajectory, cameras: Sequence[str]) -> list[str]:
    """Requested cameras that an episode has.

    Raises:
        ValueError: if it has none of them.
    """
    found = [camera for camera in cameras if camera in trajectory.frames]
    if not found:
        raise ValueError(
            f"Episode {trajectory.episode_id!r} shows none of the cameras {list(cameras)}; it has "
            f"{[*trajectory.frames]}."
        )
    return found


def camera_mask(trajectory: Trajectory, cameras: Sequence[str]) -> Bool[np.ndarray, " view"]:
    """Mask of the cameras that an episode has; `ValueError` if it has none."""
    return np.isin(cameras, found_cameras(trajectory, cameras))


def stack_views(
    trajectory: Trajectory, cameras: Sequence[str], window: slice
) -> UInt8[np.ndarray, "time view height width 3"]:
    """Frames of a window stacked over cameras; zeros for cameras that the episode lacks."""
    found = found_cameras(trajectory, cameras)
    sizes = {camera: trajectory.frames[camera].size for camera in found}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"`cameras` must have frames of one size, but episode {trajectory.episode_id!r} "
            f"has {sizes}; convert it with one `--height`."
        )
    views = {camera: trajectory.frames[camera][window] for camera in found}
    black = np.zeros_like(views[found[0]])
    return np.stack([views.get(camera, black) for camera in cameras], axis=1)


def collate(clips: Sequence[Clip]) -> Clip:
    """Stack clips of equal shape into a batch."""
    return Clip(
        frames=torch.stack([clip.frames for clip in clips]),
        actions=torch.stack([clip.actions for clip in clips]),
        action_valid=torch.stack([clip.action_valid for clip in clips]),
        episode=torch.stack([clip.episode for clip in clips]),
        start=torch.stack([clip.start for clip in clips]),
        view_valid=torch.stack([clip.view_valid for clip in clips]),
    )
