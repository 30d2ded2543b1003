"""One episode as a Zarr v3 group of the clip store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from worldmodel.datasets.actions import ActionSpec
from worldmodel.datasets.stored_frames import FRAME_CLASSES, write_frames
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.zarr_folder import read_array

IMAGES = "observation.images."


@dataclass(frozen=True, kw_only=True)
class EpisodeFormat:
    """What all episodes of a store share."""

    cameras: tuple[str, ...]
    action_spec: ActionSpec
    rate_hz: float
    encoding: str
    """"jpeg" or "raw"."""

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
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EpisodeFormat:
        """The inverse of `as_dict`; other keys are left aside."""
        return cls(
            cameras=tuple(fields["cameras"]),
            action_spec=ActionSpec.from_dict(fields["action_spec"]),
            rate_hz=float(fields["rate_hz"]),
            encoding=fields["encoding"],
        )


@dataclass(frozen=True)
class StoredSignals(Mapping[str, np.ndarray]):
    """The source's own signals of one episode, each read when asked for."""

    group: Path
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return read_array(self.group / name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def check_episode(trajectory: Trajectory, expected: EpisodeFormat) -> None:
    """Refuse an episode that does not fit the store."""
    name = f"Episode {trajectory.episode_id!r}"
    if len(trajectory) == 0:
        raise ValueError(f"{name} has no frames.")
    for field in ("action_spec", "rate_hz"):
        given, wanted = getattr(trajectory, field), getattr(expected, field)
        if given != wanted:
            raise ValueError(f"{name} has the `{field}` {given}, but the store has {wanted}.")
    if missing := [name for name in expected.cameras if name not in trajectory.frames]:
        raise ValueError(f"{name} lacks cameras {missing}; it has {[*trajectory.frames]}.")


def write_episode(folder: Path, trajectory: Trajectory, expected: EpisodeFormat) -> None:
    """Write an episode to a new folder, which is removed if that fails."""
    check_episode(trajectory, expected)
    attributes = {
        "episode_id": trajectory.episode_id,
        "task": trajectory.instruction,
        "success": trajectory.success,
        "source": trajectory.source,
        "num_frames": len(trajectory),
        "frame_sizes": {name: list(trajectory.frames[name].size) for name in expected.cameras},
        "has_state": trajectory.states is not None,
        "signals": list(trajectory.signals),
    }
    try:
        group = zarr.create_group(folder, attributes=attributes)
        for camera in expected.cameras:
            frames = trajectory.frames[camera]
            write_frames(group, IMAGES + camera, frames, expected.encoding)
        for name, array in _arrays(trajectory).items():
            group.create_array(name, data=array, chunks=array.shape, compressors=None)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _arrays(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Every array of an episode but its frames, by its key in the store."""
    arrays = {"action": trajectory.actions, "action_valid": trajectory.action_valid}
    if trajectory.states is not None:
        arrays["observation.state"] = trajectory.states
    return arrays | {f"signals/{name}": array for name, array in trajectory.signals.items()}


def read_episode(folder: Path, record: Mapping[str, Any], stored: EpisodeFormat) -> Trajectory:
    """Open an episode, given the attributes of its group; frames and signals stay on disk."""
    frames_class = FRAME_CLASSES[stored.encoding]
    return Trajectory(
        episode_id=record["episode_id"],
        source=record["source"],
        frames={
            camera: frames_class(folder / (IMAGES + camera), (height, width), record["num_frames"])
            for camera, (height, width) in record["frame_sizes"].items()
        },
        actions=read_array(folder / "action"),
        action_valid=read_array(folder / "action_valid"),
        states=read_array(folder / "observation.state") if record["has_state"] else None,
        action_spec=stored.action_spec,
        instruction=record["task"],
        rate_hz=stored.rate_hz,
        success=record["success"],
        signals=StoredSignals(folder / "signals", tuple(record["signals"])),
    )
