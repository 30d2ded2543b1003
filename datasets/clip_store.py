"""The project's own dataset: one Zarr v3 group per episode, each written whole or not at all.

    store.zarr/                      attributes: form, cameras, action spec, rate, provenance
      episodes/000000/               attributes: episode_id, task, success, source, num_frames
        observation.images.<camera>  JPEG bytes end to end, or pixels
        observation.state            float32 [time, 10]
        action, action_valid         float32 [time, 7], bool [time]
        signals/<name>               the source's own signals, untouched
      latents/<name>/000000          latents of the episode of the same number

An episode is written to a hidden folder beside `episodes` and renamed into place. One process
writes at a time; any number read.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float

from worldmodel.datasets.actions import ActionSpec
from worldmodel.datasets.dataset import EpisodeSummary
from worldmodel.datasets.stored_frames import FRAME_CLASSES, write_frames
from worldmodel.datasets.trajectory import Trajectory

FORM = "clip-store"
FORMAT_VERSION = 1
INCOMING = ".incoming-"
IMAGES = "observation.images."
CONVENTIONS = {
    "observation.images.*": "uint8 RGB",
    "observation.state": "x y z (m), first two columns of the rotation matrix, gripper opening",
    "action": "dx dy dz (m), rotation vector (rad), gripper opening; robot base frame",
    "action_valid": "false where the source has no action",
    "gripper": "opening in [0, 1], 1 = open",
    "rows": "row t of action takes frame t to frame t + 1",
}


def read_attributes(group: Path) -> dict[str, Any]:
    """Attributes of a Zarr v3 group, read without Zarr: a store opens thousands of them."""
    return json.loads((group / "zarr.json").read_bytes()).get("attributes", {})


class ClipStore:
    """Episodes in a Zarr v3 folder. Make one with `create` or `open`."""

    form = FORM

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        self.path = path
        self.attributes = dict(attributes)
        self.cameras: tuple[str, ...] = tuple(attributes["cameras"])
        self.action_spec = ActionSpec.from_dict(attributes["action_spec"])
        self.rate_hz = float(attributes["rate_hz"])
        self.encoding: str = attributes["encoding"]
        folders = sorted(folder for folder in (path / "episodes").iterdir() if folder.is_dir())
        records = [(folder.name, read_attributes(folder)) for folder in folders]
        self._records = {record["episode_id"]: {**record, "key": key} for key, record in records}
        self._ready_to_write = False

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        cameras: Sequence[str],
        action_spec: ActionSpec,
        rate_hz: float,
        encoding: str = "jpeg",
        attributes: Mapping[str, Any] | None = None,
    ) -> ClipStore:
        """Make an empty store; `attributes` (JSON values) are kept beside the store's own."""
        path = Path(path)
        if encoding not in FRAME_CLASSES:
            raise ValueError(
                f"`encoding` must be one of {sorted(FRAME_CLASSES)}, got {encoding!r}."
            )
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(
                f"`path` must be a new or empty folder, but {path} already holds something."
            )
        own = {
            "worldmodel_form": FORM,
            "format_version": FORMAT_VERSION,
            "package_version": version("worldmodel"),
            "cameras": list(cameras),
            "action_spec": action_spec.as_dict(),
            "rate_hz": float(rate_hz),
            "encoding": encoding,
            "conventions": CONVENTIONS,
        }
        if clash := sorted(own.keys() & (attributes or {}).keys()):
            raise ValueError(f"`attributes` must not set {clash}: the store sets them itself.")
        temporary = path.with_name(f"{path.name}{INCOMING}{uuid.uuid4().hex}")
        root = zarr.create_group(temporary, attributes={**own, **(attributes or {})})
        root.create_group("episodes")
        root.create_group("latents")
        os.replace(temporary, path)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> ClipStore:
        """Open a store for reading and appending."""
        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise ValueError(f"`path` must be a clip store, but {path} has no zarr.json.")
        attributes = read_attributes(path)
        if attributes.get("worldmodel_form") != FORM:
            raise ValueError(f"`path` must be a clip store, but {path} is another Zarr group.")
        return cls(path, attributes)

    @property
    def episode_ids(self) -> tuple[str, ...]:
        """Names of the episodes, in the order they were added."""
        return tuple(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Trajectory]:
        return map(self.episode, self._records)

    def __contains__(self, episode_id: str) -> bool:
        return episode_id in self._records

    def summary(self, key: str | int) -> EpisodeSummary:
        """Length, instruction and success of one episode; reads nothing from disk."""
        record = self._record(key)
        return EpisodeSummary(
            num_frames=record["num_frames"], instruction=record["task"], success=record["success"]
        )

    def episode(self, key: str | int) -> Trajectory:
        """One episode by name or number; frames are decoded only when indexed."""
        record = self._record(key)
        group = zarr.open_group(self.path / "episodes" / record["key"], mode="r")
        return Trajectory(
            episode_id=record["episode_id"],
            source=record["source"],
            frames={camera: self._frames(record, camera) for camera in self.cameras},
            actions=np.asarray(group["action"]),
            action_valid=np.asarray(group["action_valid"]),
            states=np.asarray(group["observation.state"]) if record["has_state"] else None,
            action_spec=self.action_spec,
            instruction=record["task"],
            rate_hz=self.rate_hz,
            success=record["success"],
            signals={name: np.asarray(group[f"signals/{name}"]) for name in record["signals"]},
        )

    def add(self, trajectory: Trajectory) -> None:
        """Write one episode whole; an id that is already there is refused."""
        self.commit(self.stage(trajectory))

    def stage(self, trajectory: Trajectory) -> Path:
        """Write one episode to a hidden folder for `commit`; several threads may stage at once."""
        self._check(trajectory)
        self._clear_leftovers()
        folder = self.path / f"{INCOMING}{uuid.uuid4().hex}"
        group = zarr.create_group(folder, attributes=self._episode_attributes(trajectory))
        try:
            for camera in self.cameras:
                write_frames(group, IMAGES + camera, trajectory.frames[camera], self.encoding)
            for name, array in arrays_of(trajectory).items():
                group.create_array(name, data=array, chunks=array.shape, compressors=None)
        except BaseException:
            shutil.rmtree(folder)
            raise
        return folder

    def commit(self, staged: Path) -> None:
        """Make a staged episode the store's last one, in one rename."""
        record = read_attributes(staged)
        if record["episode_id"] in self._records:
            shutil.rmtree(staged)
            raise ValueError(f"`trajectory` {record['episode_id']!r} is already in {self.path}.")
        last = max((int(record["key"]) for record in self._records.values()), default=-1)
        key = f"{last + 1:06d}"
        os.rename(staged, self.path / "episodes" / key)
        self._records[record["episode_id"]] = {**record, "key": key}

    def write_latents(
        self, name: str, key: str | int, latents: Float[np.ndarray, "time view channel h w"]
    ) -> None:
        """Store the latents of one episode under a tokenizer's name, replacing earlier ones."""
        self._clear_leftovers()
        folder = self._latent_folder(name, key)
        if not folder.parent.exists():
            zarr.create_group(folder.parent)
        staged = self.path / f"{INCOMING}{uuid.uuid4().hex}"
        zarr.create_array(staged, data=latents, chunks=latents.shape, compressors=None)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(staged, folder)

    def read_latents(self, name: str, key: str | int) -> Float[np.ndarray, "time view channel h w"]:
        """The latents written under a tokenizer's name."""
        if not self.has_latents(name, key):
            raise ValueError(f"`name` {name!r} has no latents of episode {key!r} in {self.path}.")
        return np.asarray(zarr.open_array(self._latent_folder(name, key), mode="r"))

    def has_latents(self, name: str, key: str | int) -> bool:
        """Whether `write_latents` was called for this tokenizer and episode."""
        return self._latent_folder(name, key).is_dir()

    def _latent_folder(self, name: str, key: str | int) -> Path:
        return self.path / "latents" / name / self._record(key)["key"]

    def _record(self, key: str | int) -> dict[str, Any]:
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise ValueError(
                    f"`key`={key} is out of range: {self.path} holds {len(self)} episodes."
                )
            return self._records[self.episode_ids[key]]
        if key not in self._records:
            raise ValueError(f"{self.path} has no episode {key!r}; it holds {len(self)}.")
        return self._records[key]

    def _frames(self, record: Mapping[str, Any], camera: str) -> Any:
        path = self.path / "episodes" / record["key"] / (IMAGES + camera)
        height, width = record["frame_sizes"][camera]
        return FRAME_CLASSES[self.encoding](path, (height, width), record["num_frames"])

    def _check(self, trajectory: Trajectory) -> None:
        name = f"`trajectory` {trajectory.episode_id!r}"
        if trajectory.episode_id in self._records:
            raise ValueError(f"{name} is already in {self.path}.")
        if len(trajectory) == 0:
            raise ValueError(f"{name} has no frames.")
        if trajectory.action_spec != self.action_spec:
            raise ValueError(
                f"{name} has {trajectory.action_spec}, but the store {self.action_spec}."
            )
        if trajectory.rate_hz != self.rate_hz:
            raise ValueError(
                f"{name} runs at {trajectory.rate_hz} Hz, but the store at {self.rate_hz} Hz."
            )
        if not np.isfinite(trajectory.actions).all():
            raise ValueError(f"{name} has actions that are not finite.")
        for camera in self.cameras:
            if camera not in trajectory.frames:
                raise ValueError(
                    f"{name} lacks camera {camera!r}; it has {sorted(trajectory.frames)}."
                )
            if (frames := len(trajectory.frames[camera])) != len(trajectory):
                raise ValueError(
                    f"{name} has {frames} frames of {camera!r} but {len(trajectory)} actions."
                )

    def _episode_attributes(self, trajectory: Trajectory) -> dict[str, Any]:
        return {
            "episode_id": trajectory.episode_id,
            "task": trajectory.instruction,
            "success": trajectory.success,
            "source": trajectory.source,
            "num_frames": len(trajectory),
            "frame_sizes": {
                camera: list(trajectory.frames[camera].size) for camera in self.cameras
            },
            "has_state": trajectory.states is not None,
            "signals": list(trajectory.signals),
        }

    def _clear_leftovers(self) -> None:
        if self._ready_to_write:
            return
        for leftover in self.path.glob(f"{INCOMING}*"):
            shutil.rmtree(leftover)
        self._ready_to_write = True


def arrays_of(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Every array of an episode but its frames, by its key in the store."""
    arrays = {"action": trajectory.actions, "action_valid": trajectory.action_valid}
    if trajectory.states is not None:
        arrays["observation.state"] = trajectory.states
    signals = {f"signals/{name}": np.asarray(array) for name, array in trajectory.signals.items()}
    return {**arrays, **signals}
