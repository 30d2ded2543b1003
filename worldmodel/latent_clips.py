"""Windows of latents, read from the clip store's cache of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from worldmodel.datasets.clip_dataset import shown, stack_views
from worldmodel.datasets.clip_store import ClipStore
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

    def _each(self, change: Callable[[Tensor], Tensor]) -> LatentBatch:
        return LatentBatch(
            change(self.latents),
            change(self.actions),
            change(self.action_valid),
            change(self.success),
            None if self.view_valid is None else change(self.view_valid),
        )


def success_per_frame(trajectory: Trajectory) -> np.ndarray:
    """1 where a frame shows the task done, 0 where not, NaN where the source does not say."""
    if "success" in trajectory.signals:
        return np.asarray(trajectory.signals["success"], dtype=np.float32)
    return np.full(len(trajectory), np.nan, dtype=np.float32)


def collate_latents(items: list[LatentBatch]) -> LatentBatch:
    """One batch of windows of equal length."""
    is_whole = all(item.view_valid is None for item in items)
    return LatentBatch(
        torch.cat([i.latents for i in items]),
        torch.cat([i.actions for i in items]),
        torch.cat([i.action_valid for i in items]),
        torch.cat([i.success for i in items]),
        None if is_whole else torch.cat([views_there(i) for i in items]),
    )


def views_there(batch: LatentBatch) -> Bool[Tensor, "batch time view"]:
    """Which frames have which camera, spelled out."""
    if batch.view_valid is not None:
        return batch.view_valid
    return torch.ones(batch.latents.shape[:3], dtype=torch.bool, device=batch.latents.device)


class LatentClips(Dataset[LatentBatch]):
    """Windows of `num_frames` frames of every episode, latents kept in memory in half precision."""

    def __init__(self, episodes: Sequence[LatentBatch], num_frames: int) -> None:
        self.episodes = [e for e in episodes if e.latents.shape[1] >= num_frames]
        self.num_frames = num_frames
        counts = [e.latents.shape[1] - num_frames + 1 for e in self.episodes]
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> LatentBatch:
        episode = int(np.searchsorted(self.ends, index, side="right"))
        start = index - (int(self.ends[episode - 1]) if episode else 0)
        window = self.episodes[episode].cut(self.num_frames, start=start)
        return replace(window, latents=window.latents.float())

    collate = staticmethod(collate_latents)


def views_of(trajectory: Trajectory, cameras: Sequence[str]) -> Bool[Tensor, "time view"] | None:
    """Which of the cameras each frame of an episode has; None if all.

    Raises:
        ValueError: if it has none of them.
    """
    there = torch.from_numpy(shown(trajectory, cameras))
    return None if there.all() else there.expand(len(trajectory), -1)


def labelled(latents: Tensor, trajectory: Trajectory, cameras: Sequence[str]) -> LatentBatch:
    """Latents of a whole episode with its actions and labels, as a batch of one."""
    there = views_of(trajectory, cameras)
    return LatentBatch(
        latents,
        torch.from_numpy(np.array(trajectory.actions))[None],
        torch.from_numpy(np.array(trajectory.action_valid))[None],
        torch.from_numpy(success_per_frame(trajectory))[None],
        None if there is None else there[None],
    )


def encode_episode(model: WorldModel, trajectory: Trajectory) -> LatentBatch:
    """A whole episode as a batch of one, latents in half precision."""
    cameras = model.config.cameras
    pixels = torch.from_numpy(stack_views(trajectory, cameras, slice(None)))
    latents = model.encode(pixels, view_valid=views_of(trajectory, cameras))
    return labelled(latents[None].half().cpu().clone(), trajectory, cameras)


def latents_name(model: WorldModel) -> str:
    """Name of a model's latents in a store: a hash of tokenizer, image size and cameras."""
    config = model.config
    made_by = [model.tokenizer.fingerprint(), config.image_size, config.cameras]
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
    key, cameras = latents_name(model), model.config.cameras
    return [
        labelled(
            torch.from_numpy(store.read_latents(key, name))[None], store.episode(name), cameras
        )
        for name in names
    ]
