"""One episode as a Zarr v3 group of the clip store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import zarr

from worldmodel import budgets
from worldmodel.datasets.actions import CANONICAL, ActionSpec
from worldmodel.datasets.stored_frames import FRAME_CLASSES, write_frames
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.zarr_folder import (
    new_array,
    open_array,
    read_array,
    read_rows,
    typed_attributes,
)
from worldmodel.structured_files import Count, Positive, Rate, checked

IMAGES = "observation.images."
MAX_AXES = 32
KINDS = "biufcSU"
"""Kinds of NumPy types that a signal may have: numbers, flags and text."""


FolderName = Annotated[str, msgspec.Meta(pattern=r"^[^/\\\0]+$")]


class StoredFormat(msgspec.Struct):
    """Attributes of a store that define its episodes."""

    cameras: list[FolderName]
    action_spec: dict[str, Any]
    rate_hz: Rate
    encoding: str
    row_spec: dict[str, Any] | None = None


class EpisodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes of the group of an episode."""

    episode_id: str
    task: str
    success: bool | None
    source: str
    num_frames: Positive
    frame_sizes: dict[FolderName, tuple[Positive, Positive]]
    """Camera -> height and width."""
    has_state: bool
    has_signals: bool


class SignalPlace(msgspec.Struct):
    """Place of a signal in the bytes of all signals."""

    dtype: str
    shape: list[Count]
    offset: Count


class SignalLayout(msgspec.Struct):
    """Attributes of the array of signals."""

    layout: dict[str, SignalPlace] = {}


@dataclass(frozen=True, kw_only=True)
class EpisodeFormat:
    """Properties shared by all episodes of a store."""

    cameras: tuple[str, ...]
    action_spec: ActionSpec
    rate_hz: float
    encoding: str
    """"jpeg" or "raw"."""
    row_spec: ActionSpec | None = None
    """Meaning of the rows of `Trajectory.actions`; None: canonical."""

    def __post_init__(self) -> None:
        if self.encoding not in FRAME_CLASSES:
            raise ValueError(
                f"`encoding` must be one of {[*FRAME_CLASSES]}, got {self.encoding!r}."
            )

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "cameras": list(self.cameras),
            "action_spec": self.action_spec.as_dict(),
            "rate_hz": self.rate_hz,
            "encoding": self.encoding,
            **({"row_spec": self.row_spec.as_dict()} if self.row_spec else {}),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str) -> EpisodeFormat:
        """The inverse of `as_dict`; ignores other keys. `where` names the source in messages."""
        stored = checked(dict(fields), StoredFormat, where)
        row_spec = stored.row_spec
        return cls(
            cameras=tuple(stored.cameras),
            action_spec=ActionSpec.from_dict(stored.action_spec, where),
            rate_hz=stored.rate_hz,
            encoding=stored.encoding,
            row_spec=None if row_spec is None else ActionSpec.from_dict(row_spec, where),
        )


@dataclass(frozen=True)
class StoredSignals(Mapping[str, np.ndarray]):
    """Source signals of one episode, concatenated in one array of bytes.

    A source may have dozens; one array each would create dozens of files per episode.
    """

    path: Path
    layout: Mapping[str, SignalPlace]
    """Name -> NumPy `dtype`, `shape`, and `offset` of the first byte; an attribute of the array."""

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, offset, end = place(self.layout[name])
        return np.frombuffer(self._bytes[offset:end].tobytes(), dtype).reshape(shape).copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)

    @cached_property
    def _bytes(self) -> np.ndarray:
        return read_array(self.path)


def write_signals(group: zarr.Group, name: str, signals: Mapping[str, np.ndarray]) -> None:
    """Write signals for `StoredSignals`; writes nothing without signals."""
    layout, parts, offset = {}, [], 0
    for signal, values in signals.items():
        if values.dtype.hasobject:
            raise ValueError(f"`signals` {signal!r} must hold numbers or text, not objects.")
        layout[signal] = {"dtype": values.dtype.str, "shape": values.shape, "offset": offset}
        parts.append(values.tobytes())
        offset += values.nbytes
    if layout:
        data = np.frombuffer(b"".join([*parts, b"\0"]), np.uint8)  # never empty
        write_array(group, name, data, {"layout": layout})


def write_array(
    group: zarr.Group, name: str, data: np.ndarray, attributes: dict[str, Any] | None = None
) -> None:
    """Write an array as one uncompressed chunk with a checksum."""
    new_array(group, name, data=data, chunks=data.shape, attributes=attributes)


def open_signals(path: Path) -> StoredSignals:
    """Open signals written by `write_signals`; their bytes are read on first access.

    Raises:
        ValueError: if the layout is damaged, or extends beyond the bytes.
    """
    num_bytes = prod(open_array(path).shape)
    try:
        layout = typed_attributes(path, SignalLayout).layout
        for name, facts in layout.items():
            _, _, _, end = place(facts)
            if end > num_bytes:
                raise ValueError(f"{name!r} ends at byte {end}, but there are {num_bytes}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its layout is damaged ({error}); copy it again.") from error
    return StoredSignals(path, layout)


def place(facts: SignalPlace) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """Type, shape, start and stop byte of a signal.

    Raises:
        ValueError: if its type is not allowed.
    """
    dtype, shape, offset = np.dtype(facts.dtype), tuple(facts.shape), facts.offset
    if dtype.kind not in KINDS or len(shape) > MAX_AXES:
        raise ValueError(f"no signal is {dtype} of shape {shape}")
    return dtype, shape, offset, offset + prod(shape) * dtype.itemsize


def check_episode(trajectory: Trajectory, expected: EpisodeFormat) -> None:
    """Raise ValueError if an episode does not fit the store."""
    name = f"Episode {trajectory.episode_id!r}"
    if len(trajectory) == 0:
        raise ValueError(f"{name} has no frames.")
    for field in ("action_spec", "rate_hz", "row_spec"):
        actual, required = getattr(trajectory, field), getattr(expected, field)
        if actual != required:
            raise ValueError(f"{name} has the `{field}` {actual}, but the store has {required}.")
    if not set(expected.cameras) & set(trajectory.frames):
        raise ValueError(
            f"{name} shows none of the store's cameras {[*expected.cameras]}; it has "
            f"{[*trajectory.frames]}."
        )


def write_episode(folder: Path, trajectory: Trajectory, expected: EpisodeFormat) -> None:
    """Write an episode to a new folder; removes the folder on failure."""
    check_episode(trajectory, expected)
    cameras = [name for name in expected.cameras if name in trajectory.frames]
    attributes = {
        "episode_id": trajectory.episode_id,
        "task": trajectory.instruction,
        "success": trajectory.success,
        "source": trajectory.source,
        "num_frames": len(trajectory),
        "frame_sizes": {name: list(trajectory.frames[name].size) for name in cameras},
        "has_state": trajectory.states is not None,
        "has_signals": len(trajectory.signals) > 0,
    }
    try:
        group = zarr.create_group(folder, attributes=attributes)
        for camera in cameras:
            frames = trajectory.frames[camera]
            write_frames(group, IMAGES + camera, frames, expected.encoding)
        write_array(group, "action", trajectory.actions)
        write_array(group, "action_valid", trajectory.action_valid)
        if trajectory.states is not None:
            write_array(group, "observation.state", trajectory.states)
        write_signals(group, "signals", trajectory.signals)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read_episode(folder: Path, record: EpisodeRecord, stored: EpisodeFormat) -> Trajectory:
    """Open an episode from the attributes of its group; frames and signals stay on disk."""
    frames_class, num_frames = FRAME_CLASSES[stored.encoding], record.num_frames
    for camera, (height, width) in record.frame_sizes.items():
        budgets.require(height * width, budgets.IMAGE_PIXELS, f"{folder}: frame of {camera}")
    width = stored.row_spec.dim if stored.row_spec else CANONICAL.dim
    return Trajectory(
        episode_id=record.episode_id,
        source=record.source,
        frames={
            camera: frames_class(folder / (IMAGES + camera), size, num_frames)
            for camera, size in record.frame_sizes.items()
        },
        actions=_read_rows(folder / "action", (num_frames, width), "float32"),
        action_valid=_read_rows(folder / "action_valid", (num_frames,), "bool"),
        states=_read_rows(folder / "observation.state", (num_frames, 10), "float32")
        if record.has_state
        else None,
        action_spec=stored.action_spec,
        instruction=record.task,
        rate_hz=stored.rate_hz,
        success=record.success,
        signals=open_signals(folder / "signals") if record.has_signals else {},
        row_spec=stored.row_spec,
    )


def _read_rows(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array with one row per frame."""
    array = open_array(path)
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected {dtype} of {shape}; copy "
            "it again."
        )
    return read_rows(array, slice(None))
