"""Windows of latents, read from the clip store's cache of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from worldmodel.datasets.clip_dataset import stack_views
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

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, items: slice) -> LatentBatch:
        return self._each(lambda value: value[items])

    def to(self, device: torch.device) -> LatentBatch:
        """The same windows on another device."""
        return self._each(lambda value: value.to(device))

    def cut(self, num_frames: int) -> LatentBatch:
        """The first `num_frames` frames of every window."""
        return self._each(lambda value: value[:, :num_frames])

    def _each(self, change: Callable[[Tensor], Tensor]) -> LatentBatch:
        fields = (self.latents, self.actions, self.action_valid, self.success)
        return LatentBatch(*(change(value) for value in fields))


def success_per_frame(trajectory: Trajectory) -> np.ndarray:
    """1 where a frame shows the task done, 0 where not, NaN where the source does not say."""
    if "success" in trajectory.signals:
        return np.asarray(trajectory.signals["success"], dtype=np.float32)
    return np.full(len(trajectory), np.nan, dtype=np.float32)


def collate_latents(items: list[LatentBatch]) -> LatentBatch:
    """One batch of windows of equal length."""
    return LatentBatch(
        torch.cat([i.latents for i in items]),
        torch.cat([i.actions for i in items]),
        torch.cat([i.action_valid for i in items]),
        torch.cat([i.success for i in items]),
    )


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
        window = slice(start, start + self.num_frames)
        e = self.episodes[episode]
        return LatentBatch(
            e.latents[:, window].float(),
            e.actions[:, window],
            e.action_valid[:, window],
            e.success[:, window],
        )

    collate = staticmethod(collate_latents)


def labelled(latents: Tensor, trajectory: Trajectory) -> LatentBatch:
    """Latents of a whole episode with its actions and labels, as a batch of one."""
    return LatentBatch(
        latents,
        torch.from_numpy(np.array(trajectory.actions))[None],
        torch.from_numpy(np.array(trajectory.action_valid))[None],
        torch.from_numpy(success_per_frame(trajectory))[None],
    )


def encode_episode(model: WorldModel, trajectory: Trajectory) -> LatentBatch:
    """A whole episode as a batch of one, latents in half precision."""
    pixels = torch.from_numpy(stack_views(trajectory, model.config.cameras, slice(None)))
    return labelled(model.encode(pixels)[None].half().cpu().clone(), trajectory)


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
    key = latents_name(model)
    return [
        labelled(torch.from_numpy(store.read_latents(key, name))[None], store.episode(name))
        for name in names
    ]
