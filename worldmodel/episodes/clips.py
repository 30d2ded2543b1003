"""Windows of latents, read from the clip store's cache of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from worldmodel.datasets.clip_dataset import camera_mask, stack_views
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.resampling import resample
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.model import WorldModel


@dataclass(frozen=True)
class LatentBatch:
    """Windows of episodes as latents, batched."""

    latents: Float[Tensor, "batch time view channel h w"]
    actions: Float[Tensor, "batch time action"]
    """Row t takes frame t to frame t + 1."""
    action_valid: Bool[Tensor, "batch time"]
    success: Float[Tensor, "batch time"]
    """1 where the frame shows the task done, 0 where not, NaN where the source does not say."""
    view_valid: Bool[Tensor, "batch time view"] | None = None
    """False where a frame lacks a camera: its latents are zeros; None: all are there."""
    starts_segment: Bool[Tensor, "batch time"] | None = None
    """True where a frame does not follow the one before it; None: all do."""

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, items: slice) -> LatentBatch:
        return self._each(lambda value: value[items])

    def to(self, device: torch.device) -> LatentBatch:
        """The same windows on another device."""
        return self._each(lambda value: value.to(device))

    def cut(self, num_frames: int, *, start: int = 0) -> LatentBatch:
        """`num_frames` frames of every window, from frame `start` on."""
        return self._each(lambda value: value[:, start : start + num_frames])

    def as_pictures(self, items: Bool[Tensor, " batch"]) -> LatentBatch:
        """The same windows, where in those of `items` no frame follows another."""
        starts_segment = (
            torch.zeros_like(self.action_valid)
            if self.starts_segment is None
            else self.starts_segment
        )
        return replace(self, starts_segment=starts_segment | items[:, None])

    def _each(self, change: Callable[[Tensor], Tensor]) -> LatentBatch:
        changed: dict[str, Any] = {
            name: None if value is None else change(value) for name, value in vars(self).items()
        }
        return LatentBatch(**changed)


def success_per_frame(trajectory: Trajectory) -> np.ndarray:
    """1 where a frame shows the task done, 0 where not, NaN where the source does not say."""
    if "success" in trajectory.signals:
        return np.asarray(trajectory.signals["success"], dtype=np.float32)
    return np.full(len(trajectory), np.nan, dtype=np.float32)


def collate_latents(items: list[LatentBatch]) -> LatentBatch:
    """One batch of windows of equal length."""
    names = ["latents", "actions", "action_valid", "success"]
    if any(item.view_valid is not None for item in items):
        items = [replace(item, view_valid=views_there(item)) for item in items]
        names.append("view_valid")
    if any(item.starts_segment is not None for item in items):
        none = torch.zeros(1, dtype=torch.bool)
        items = [item.as_pictures(none) for item in items]
        names.append("starts_segment")
    return LatentBatch(**{name: torch.cat([vars(item)[name] for item in items]) for name in names})


def views_there(batch: LatentBatch) -> Bool[Tensor, "batch time view"]:
    """Which frames have which camera, spelled out."""
    if batch.view_valid is not None:
        return batch.view_valid
    return torch.ones(batch.latents.shape[:3], dtype=torch.bool, device=batch.latents.device)


class LatentClips(Dataset[LatentBatch]):
    """Windows of `num_frames` frames of every episode, latents kept in memory in half precision.

    With `short`, episodes of fewer frames are in too, single pictures among them: their windows run
    on from the last frame to the first, which does not follow it.
    """

    def __init__(
        self, episodes: Sequence[LatentBatch], num_frames: int, *, short: bool = False
    ) -> None:
        self.episodes = [e for e in episodes if short or e.latents.shape[1] >= num_frames]
        self.num_frames = num_frames
        lengths = [e.latents.shape[1] for e in self.episodes]
        counts = [n - num_frames + 1 if n >= num_frames else n for n in lengths]
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> LatentBatch:
        number = int(np.searchsorted(self.ends, index, side="right"))
        start = index - (int(self.ends[number - 1]) if number else 0)
        episode = self.episodes[number]
        if episode.latents.shape[1] < self.num_frames:
            window = around(episode, start, self.num_frames)
        else:
            window = episode.cut(self.num_frames, start=start)
        return replace(window, latents=window.latents.float())

    collate = staticmethod(collate_latents)


def around(episode: LatentBatch, start: int, num_frames: int) -> LatentBatch:
    """Frames of a short episode from `start` on, from the first one again after the last."""
    rows = torch.arange(start, start + num_frames) % episode.latents.shape[1]
    window = episode._each(lambda value: value[:, rows])
    return replace(window, starts_segment=(rows == 0)[None])


def views_of(trajectory: Trajectory, cameras: Sequence[str]) -> Bool[Tensor, "time view"] | None:
    """Which of the cameras each frame of an episode has; None if all.

    Raises:
        ValueError: if it has none of them.
    """
    view_mask = torch.from_numpy(camera_mask(trajectory, cameras))
    return None if view_mask.all() else view_mask.expand(len(trajectory), -1)


def labelled(latents: Tensor, trajectory: Trajectory, cameras: Sequence[str]) -> LatentBatch:
    """Latents of a whole episode with its actions and labels, as a batch of one."""
    view_mask = views_of(trajectory, cameras)
    return LatentBatch(
        latents,
        torch.from_numpy(np.array(trajectory.actions))[None],
        torch.from_numpy(np.array(trajectory.action_valid))[None],
        torch.from_numpy(success_per_frame(trajectory))[None],
        None if view_mask is None else view_mask[None],
    )


def encode_episode(model: WorldModel, trajectory: Trajectory) -> LatentBatch:
    """A whole episode, as the model sees it, as a batch of one, latents in half precision."""
    trajectory = resample(trajectory, model.config.action_spec)
    cameras = model.config.cameras
    pixels = torch.from_numpy(stack_views(trajectory, cameras, slice(None)))
    latents = model.encode(pixels, view_valid=views_of(trajectory, cameras))
    return labelled(latents[None].half().cpu().clone(), trajectory, cameras)


def latents_name(model: WorldModel) -> str:
    """Name of a model's latents in a store: a hash of tokenizer, image size, cameras and rate."""
    config = model.config
    made_by = [model.tokenizer.fingerprint(), config.image_size, config.cameras, config.rate_hz]
    return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]


def cache_latents(
    model: WorldModel,
    store: ClipStore,
    names: Sequence[str],
    *,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Encode the episodes of which the store does not hold latents yet, until told to end.

    They are kept in the store, under a name that says how they were made.
    """
    key = latents_name(model)
    for name in tqdm(names, "latents"):
        if until():
            return
        if not store.has_latents(key, name):
            encoded = encode_episode(model, store.episode(name)).latents[0]
            store.write_latents(key, name, encoded.numpy())


def encode_store(model: WorldModel, store: ClipStore, names: Sequence[str]) -> list[LatentBatch]:
    """Episodes of a store as latents, each encoded at most once in the life of the store."""
    cache_latents(model, store, names)
    key, config = latents_name(model), model.config
    episodes = []
    for name in names:
        latents = torch.from_numpy(store.read_latents(key, name))[None]
        trajectory = resample(store.episode(name), config.action_spec)
        episodes.append(labelled(latents, trajectory, config.cameras))
    return episodes
