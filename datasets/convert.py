"""Resumable conversion of any dataset to a clip store."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import Dataset
from worldmodel.datasets.trajectory import Frames, Trajectory

Staged = tuple[str, "Future[Path]"]


@dataclass(frozen=True)
class ResizedFrames:
    """Frames resized to a height, with proportional width; bilinear with antialiasing."""

    frames: Frames
    height: int

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        return resize(self.frames[window], self.size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.frames.size
        return self.height, max(1, round(width * self.height / height))


def resize(
    frames: UInt8[np.ndarray, "time height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "time new_height new_width 3"]:
    """Resize frames; bilinear with antialiasing."""
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> t c h w")
    resized = torch.nn.functional.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    return rearrange(resized.round().clamp(0, 255).byte(), "t c h w -> t h w c").numpy()


def open_target(path: Path, source: Dataset, *, encoding: str, height: int | None) -> ClipStore:
    """Target store: a new one, or one that was started with the same settings."""
    settings = {"source": {"form": source.form, "path": str(source.path.resolve())}}
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return ClipStore.create(
            path,
            cameras=source.cameras,
            action_spec=source.action_spec,
            rate_hz=source.rate_hz,
            encoding=encoding,
            attributes={**settings, "height": height, "source_attributes": provenance(source)},
            row_spec=source.format.row_spec if isinstance(source, ClipStore) else None,
        )
    store = ClipStore.open(path)
    wanted: dict[str, Any] = {**settings, "height": height, "encoding": encoding}
    for name, value in wanted.items():
        if (found := store.attributes.get(name)) != value:
            raise ValueError(
                f"{path} was made with `{name}` {found}, not {value}; choose another folder."
            )
    return store


def provenance(source: Dataset) -> dict[str, Any]:
    """Attributes of a source clip store; empty for other forms."""
    return dict(source.attributes) if isinstance(source, ClipStore) else {}


def convert(
    source: Dataset,
    store: ClipStore,
    *,
    height: int | None,
    workers: int,
    on_bad: Callable[[str, Exception], None],
    on_note: Callable[[str, str], None] = lambda _episode_id, _note: None,
) -> Iterator[str]:
    """Convert the episodes that the store lacks, in source order; yields each id when done.

    Args:
        source: Dataset to read.
        store: Target store, which only receives complete episodes.
        height: Frame height in pixels; None keeps the size, and the JPEG bytes of the source.
        workers: Number of threads that decode and encode.
        on_bad: Called with the id and the error of an unreadable episode; it may raise.
        on_note: Called with the id and a sentence on what the reader left out of an episode.
    """

    def stage(episode_id: str) -> Path:
        trajectory = source.episode(episode_id)
        for note in trajectory.notes:
            on_note(episode_id, note)
        return store.stage(resized(trajectory, height))

    missing = [episode_id for episode_id in source.episode_ids if episode_id not in store]
    for episode_id, future in in_order(stage, missing, workers):
        try:
            store.commit(future.result())
        except (ValueError, FileNotFoundError) as error:
            on_bad(episode_id, error)
        yield episode_id


def resized(trajectory: Trajectory, height: int | None) -> Trajectory:
    """Episode with resized frames."""
    if height is None:
        return trajectory
    frames = {name: ResizedFrames(frames, height) for name, frames in trajectory.frames.items()}
    return replace(trajectory, frames=frames)


def in_order(
    stage: Callable[[str], Path], episode_ids: Sequence[str], workers: int
) -> Iterator[Staged]:
    """Stage episodes in threads, at most 2 x `workers` ahead; unused ones are removed on exit."""
    ahead: deque[Staged] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for episode_id in episode_ids:
                ahead.append((episode_id, pool.submit(stage, episode_id)))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            for _, future in ahead:
                if not future.cancel() and future.exception() is None:
                    shutil.rmtree(future.result())
