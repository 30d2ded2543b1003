"""Windows of latents, read from the latent cache of a clip store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from worldmodel.datasets.clip_dataset import camera_mask, stack_views
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.resampling import resample
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig

STATE_DIM = 10
OBJECT_DIM = 5


@dataclass(frozen=True)
class LatentBatch:
    """Batch of windows of episodes, as latents."""

    latents: Float[Tensor, "batch time view channel h w"]
    actions: Float[Tensor, "batch time action"]
    """Row t is the action that the model sees with frame t + 1: the one that takes frame t to frame
    t + 1, unless its `pairing` is "same"."""
    action_valid: Bool[Tensor, "batch time"]
    success: Float[Tensor, "batch time"]
    """Success label per frame: 1 if it shows the task done, else 0; NaN if unlabelled."""
    view_valid: Bool[Tensor, "batch time view"] | None = None
    """View mask, false for missing cameras, whose latents are zeros; None: all true."""
    starts_segment: Bool[Tensor, "batch time"] | None = None
    """True where a frame does not follow its predecessor; None: all frames follow."""
    states: Float[Tensor, "batch time 10"] | None = None
    """Canonical states of the robot; None, or NaN in a row: unknown."""
    task: Int[Tensor, " batch"] | None = None
    """Number of the episode's task among those of the model; -1: none of them; None: the first."""
    objects: Float[Tensor, "batch time 5"] | None = None
    """Position of the object that the task is about (m), and its place in the first camera's image
    (fractions of width and height); None, or NaN in a row: unknown."""

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, items: slice) -> LatentBatch:
        return self._each(lambda value: value[items])

    def to(self, device: torch.device) -> LatentBatch:
        """Move the windows to another device."""
        return self._each(lambda value: value.to(device))

    def cut(self, num_frames: int, *, start: int = 0) -> LatentBatch:
        """Cut every window to `num_frames` frames, beginning at frame `start`."""
        return self._each_frame(lambda value: value[:, start : start + num_frames])

    def as_single_frames(self, items: Bool[Tensor, " batch"]) -> LatentBatch:
        """Turn the windows in the mask `items` into single images: every frame starts a segment."""
        starts_segment = (
            torch.zeros_like(self.action_valid)
            if self.starts_segment is None
            else self.starts_segment
        )
        return replace(self, starts_segment=starts_segment | items[:, None])

    def _each_frame(self, change: Callable[[Tensor], Tensor]) -> LatentBatch:
        return replace(replace(self, task=None)._each(change), task=self.task)

    def _each(self, change: Callable[[Tensor], Tensor]) -> LatentBatch:
        changed: dict[str, Any] = {
            name: None if value is None else change(value) for name, value in vars(self).items()
        }
        return LatentBatch(**changed)


def success_per_frame(trajectory: Trajectory) -> np.ndarray:
    """Success label per frame: 1 if it shows the task done, else 0; NaN if unlabelled.

    A signal `success` labels every frame. Otherwise, the success that the data declare for the
    whole episode labels its last frame.
    """
    labels = np.full(len(trajectory), np.nan, dtype=np.float32)
    stored = trajectory.signals.get("success")
    if stored is not None and stored.shape == labels.shape and stored.dtype.kind in "biuf":
        labels = stored.astype(np.float32)
        if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
            raise ValueError(
                f"Signal `success` of episode {trajectory.episode_id!r} must hold only 0 and 1."
            )
    elif trajectory.success is not None:
        labels[-1:] = trajectory.success
    return labels


def collate_latents(items: list[LatentBatch]) -> LatentBatch:
    """Concatenate windows of equal length to one batch."""
    names = ["latents", "actions", "action_valid", "success"]
    if any(item.view_valid is not None for item in items):
        items = [replace(item, view_valid=full_view_mask(item)) for item in items]
        names.append("view_valid")
    if any(item.starts_segment is not None for item in items):
        none = torch.zeros(1, dtype=torch.bool)
        items = [item.as_single_frames(none) for item in items]
        names.append("starts_segment")
    for name, width in (("states", STATE_DIM), ("objects", OBJECT_DIM)):
        if any(vars(item)[name] is not None for item in items):
            items = [_with_unknown(item, name, width) for item in items]
            names.append(name)
    if any(item.task is not None for item in items):
        first = torch.zeros(1, dtype=torch.long)
        items = [item if item.task is not None else replace(item, task=first) for item in items]
        names.append("task")
    return LatentBatch(**{name: torch.cat([vars(item)[name] for item in items]) for name in names})


def _with_unknown(item: LatentBatch, name: str, width: int) -> LatentBatch:
    """Window with a tensor of NaN for the field `name` if it has none."""
    if vars(item)[name] is not None:
        return item
    unknown: Any = torch.full((*item.actions.shape[:2], width), torch.nan)
    return replace(item, **{name: unknown})


def full_view_mask(batch: LatentBatch) -> Bool[Tensor, "batch time view"]:
    """View mask of a batch, also if all views are present."""
    if batch.view_valid is not None:
        return batch.view_valid
    return torch.ones(batch.latents.shape[:3], dtype=torch.bool, device=batch.latents.device)


class LatentClips(Dataset[LatentBatch]):
    """Data set of all windows of `num_frames` frames, with latents in memory in half precision.

    With `short`, it includes episodes with fewer frames, even single images. Their windows wrap
    around from the last frame to the first, where a new segment starts. About the share
    `from_start` of the windows are at the start of an episode.
    """

    def __init__(
        self,
        episodes: Sequence[LatentBatch],
        num_frames: int,
        *,
        short: bool = False,
        from_start: float = 0.0,
    ) -> None:
        self.episodes = [e for e in episodes if short or e.latents.shape[1] >= num_frames]
        self.num_frames = num_frames
        lengths = [e.latents.shape[1] for e in self.episodes]
        counts = [n - num_frames + 1 if n >= num_frames else n for n in lengths]
        self.repeats = [round(n * from_start / (1 - from_start)) for n in counts]
        self.ends = np.cumsum([n + more for n, more in zip(counts, self.repeats, strict=True)])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> LatentBatch:
        number = int(np.searchsorted(self.ends, index, side="right"))
        start = index - (int(self.ends[number - 1]) if number else 0)
        start = max(0, start - self.repeats[number])
        episode = self.episodes[number]
        if episode.latents.shape[1] < self.num_frames:
            window = wrap_window(episode, start, self.num_frames)
        else:
            window = episode.cut(self.num_frames, start=start)
        return replace(window, latents=window.latents.float())

    collate = staticmethod(collate_latents)


def wrap_window(episode: LatentBatch, start: int, num_frames: int) -> LatentBatch:
    """Window of a short episode from frame `start`, wrapping around at its end."""
    rows = torch.arange(start, start + num_frames) % episode.latents.shape[1]
    window = episode._each_frame(lambda value: value[:, rows])
    return replace(window, starts_segment=(rows == 0)[None])


def view_mask_of(
    trajectory: Trajectory, cameras: Sequence[str]
) -> Bool[Tensor, "time view"] | None:
    """View mask of an episode for `cameras`; None if it has all of them.

    Raises:
        ValueError: The episode has none of the cameras.
    """
    view_mask = torch.from_numpy(camera_mask(trajectory, cameras))
    return None if view_mask.all() else view_mask.expand(len(trajectory), -1)


def paired_actions(
    trajectory: Trajectory, pairing: str
) -> tuple[Float32[np.ndarray, "time action"], Bool[np.ndarray, " time"]]:
    """Actions of an episode and their mask, moved up by one row if the `pairing` is "same"."""
    actions, valid = np.array(trajectory.actions), np.array(trajectory.action_valid)
    if pairing == "same":
        actions, valid = np.roll(actions, -1, axis=0), np.roll(valid, -1)
        actions[-1], valid[-1] = 0, False
    return actions, valid


def to_latent_batch(
    latents: Tensor, trajectory: Trajectory, cameras: Sequence[str], config: ModelConfig
) -> LatentBatch:
    """Batch of one episode from its latents, actions, states and success labels."""
    view_mask = view_mask_of(trajectory, cameras)
    actions, valid = paired_actions(trajectory, config.pairing)
    return LatentBatch(
        latents,
        torch.from_numpy(actions)[None],
        torch.from_numpy(valid)[None],
        torch.from_numpy(success_per_frame(trajectory))[None],
        None if view_mask is None else view_mask[None],
        states=None if trajectory.states is None else torch.tensor(trajectory.states)[None],
        task=_task(trajectory, config.tasks),
        objects=_objects(trajectory),
    )


def _task(trajectory: Trajectory, tasks: Sequence[str]) -> Int[Tensor, " 1"] | None:
    """Number of the instruction among the model's tasks, -1 if it is none; None without tasks."""
    if not tasks:
        return None
    numbers = {task: number for number, task in enumerate(tasks)}
    return torch.tensor([numbers.get(trajectory.instruction, -1)])


def _objects(trajectory: Trajectory) -> Float[Tensor, "1 time 5"] | None:
    """Positions and places of the object, if a simulator recorded them."""
    parts = [trajectory.signals.get(name) for name in ("object_pose", "object_in_image")]
    shapes = [None if part is None else part.shape for part in parts]
    if shapes != [(len(trajectory), 7), (len(trajectory), 2)]:
        return None
    pose, place = (torch.tensor(part, dtype=torch.float32) for part in parts)
    return torch.cat((pose[:, :3], place), 1)[None]


def encode_episode(model: WorldModel, trajectory: Trajectory) -> LatentBatch:
    """Encode an episode as a batch of one, with latents in half precision."""
    trajectory = resample(trajectory, model.config.action_spec)
    cameras = model.config.cameras
    pixels = torch.from_numpy(stack_views(trajectory, cameras, slice(None)))
    latents = model.encode(pixels, view_valid=view_mask_of(trajectory, cameras))
    stored = latents[None].half().cpu().clone()
    return to_latent_batch(stored, trajectory, cameras, model.config)


def latents_name(model: WorldModel) -> str:
    """Key of a model's latents in a store: hash of tokenizer, image size, cameras and rate."""
    config = model.config
    identity = [model.tokenizer.fingerprint(), config.image_size, config.cameras, config.rate_hz]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def cache_latents(
    model: WorldModel,
    store: ClipStore,
    names: Sequence[str],
    *,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Encode episodes without cached latents and store their latents under `latents_name`.

    `until` is called before each episode and stops the loop when it returns true.
    """
    key = latents_name(model)
    for name in tqdm(names, "latents"):
        if until():
            return
        if not store.has_latents(key, name):
            encoded = encode_episode(model, store.episode(name)).latents[0]
            store.write_latents(key, name, encoded.numpy())


def encode_store(model: WorldModel, store: ClipStore, names: Sequence[str]) -> list[LatentBatch]:
    """Latents of episodes of a store; encodes only those that are not in its cache."""
    cache_latents(model, store, names)
    key, config = latents_name(model), model.config
    episodes = []
    for name in names:
        latents = torch.from_numpy(store.read_latents(key, name))[None]
        trajectory = resample(store.episode(name), config.action_spec)
        episodes.append(to_latent_batch(latents, trajectory, config.cameras, config))
    return episodes
