"""Clip store, the package's dataset format: one Zarr v3 group per episode, written atomically.

    store.zarr/                      attributes: form, cameras, action spec, rate, provenance
      episodes/000000/               attributes: episode_id, task, success, source, num_frames
        observation.images.<camera>  concatenated JPEG bytes, or pixels
        observation.state            float32 [time, 10]
        action, action_valid         float32 [time, 7 or as row_spec says], bool [time]
        signals                      original source signals, concatenated
      latents/<name>/000000          latent cache of the episode of this number; may be deleted

An episode is written to a hidden folder and then renamed, so a killed process leaves only complete
episodes. Nothing is synced to disk, so a power cut can still lose data. One process may write at a
time, and a second one is refused; any number may read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float

from worldmodel.datasets.actions import CANONICAL, ActionSpec
from worldmodel.datasets.dataset import EpisodeSummary
from worldmodel.datasets.stored_episode import (
    EpisodeFormat,
    EpisodeRecord,
    read_episode,
    write_episode,
)
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.zarr_folder import (
    LOCK,
    create_root,
    has_checksums,
    hidden_folder,
    new_array,
    next_number,
    numbered_folders,
    open_root,
    read_array,
    remove_at_once,
    remove_hidden_folders,
    rows_per_chunk,
    staged_folder,
    typed_attributes,
)
from worldmodel.write_lock import lock_while_alive, write_lock

FORM = "clip-store"
START = Lock()
"""Lets one thread at a time start writing."""
NO_CHECKSUMS = (
    "The store was written by an earlier version, without checksums: missing or damaged chunks "
    "would pass. Convert the source again to be sure."
)
CONVENTIONS = {
    "observation.images.*": "uint8 RGB",
    "observation.state": "x y z (m), first two columns of the rotation matrix, gripper opening",
    "action": "dx dy dz (m), rotation vector (rad), gripper opening; robot base frame",
    "action_valid": "false where the source has no action",
    "action_spec": "what the source's own actions meant; `action` is canonical already",
    "gripper": "opening in [0, 1], 1 = open",
    "rows": "row t of action takes frame t to frame t + 1",
}


@dataclass(frozen=True)
class Damage:
    """Why the attributes of an episode cannot be read."""

    episode_id: str
    """Its folder, such as "episodes/000002", in place of the unreadable id."""
    reason: str


class ClipStore:
    """Episodes in a Zarr v3 folder, in the order they were added. Use `create` or `open`.

    An episode whose attributes are damaged keeps its place under the name of its folder, and raises
    a `ValueError` when it is read.
    """

    form: str = FORM

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        self.path = path
        self.attributes = dict(attributes)
        self.format = EpisodeFormat.from_dict(attributes, str(path))
        self._records: list[tuple[str, EpisodeRecord | Damage]] = []
        """Name of the folder, and attributes, of each episode."""
        self._positions: dict[str, int] = {}
        self._register_new()
        self._is_writer = False

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
        row_spec: ActionSpec | None = None,
    ) -> ClipStore:
        """Create an empty store.

        Args:
            path: A new or empty folder.
            cameras: Cameras to store. An episode needs at least one of them; its other cameras are
                left out.
            action_spec: Meaning of the source's actions.
            rate_hz: Frames and actions per second.
            encoding: "jpeg" (quality 95; the source's JPEG bytes pass through) or "raw".
            attributes: Provenance as JSON values, kept beside the store's own attributes.
            row_spec: Meaning of the rows of `Trajectory.actions`; None: canonical.
        """
        shared = EpisodeFormat(
            cameras=tuple(cameras), action_spec=action_spec, rate_hz=rate_hz, encoding=encoding,
            row_spec=row_spec,
        )  # fmt: skip
        own = {**shared.as_dict(), "conventions": CONVENTIONS}
        groups = ("episodes", "latents")
        create_root(Path(path), FORM, groups=groups, own=own, given=attributes or {})
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> ClipStore:
        """Open a store for reading and appending."""
        path = Path(path)
        return cls(path, open_root(path, FORM))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras; an episode has at least one of them."""
        return self.format.cameras

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning of the source's actions; `Trajectory.actions` are already canonical."""
        return self.format.action_spec

    @property
    def notes(self) -> tuple[str, ...]:
        """Note on a store of an earlier version, whose damage cannot be found."""
        for number, _ in self._records:
            try:
                is_checked = has_checksums(self.path / "episodes" / number / "action")
            except (ValueError, OSError):  # refused when the episode is read
                continue
            return () if is_checked else (NO_CHECKSUMS,)
        return ()

    @property
    def spec(self) -> ActionSpec:
        """Meaning of the rows of `Trajectory.actions`."""
        return self.format.row_spec or replace(CANONICAL, rate_hz=self.rate_hz)

    @property
    def rate_hz(self) -> float:
        """Frames and actions per second."""
        return self.format.rate_hz

    @property
    def episode_ids(self) -> tuple[str, ...]:
        """Names of the episodes, in the order they were added."""
        return tuple(self._positions)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Trajectory]:
        return map(self.episode, self._positions)

    def __contains__(self, episode_id: str) -> bool:
        return episode_id in self._positions

    def summary(self, key: str | int) -> EpisodeSummary:
        """Length, instruction and success of one episode, without reading from disk."""
        _, record = self._readable(key)
        return EpisodeSummary(
            num_frames=record.num_frames, instruction=record.task, success=record.success
        )

    def episode(self, key: str | int) -> Trajectory:
        """One episode by id or position; frames and signals are read only when indexed."""
        number, record = self._readable(key)
        return read_episode(self.path / "episodes" / number, record, self.format)

    def add(self, trajectory: Trajectory) -> None:
        """Write one episode; raises ValueError if its id is already in the store."""
        self.commit(self.stage(trajectory))

    def stage(self, trajectory: Trajectory) -> Path:
        """Write one episode to a hidden folder for `commit`; safe to call from several threads."""
        if trajectory.episode_id in self:
            raise ValueError(f"{self.path} holds an episode {trajectory.episode_id!r} already.")
        self._start_writing()
        with staged_folder(hidden_folder(self.path)) as folder:
            write_episode(folder, trajectory, self.format)
        return folder

    def commit(self, staged: Path) -> None:
        """Append a staged episode to the store with a single rename, or delete it on an error."""
        with staged_folder(staged):
            record = typed_attributes(staged, EpisodeRecord)
            if record.episode_id in self:
                raise ValueError(f"{self.path} holds an episode {record.episode_id!r} already.")
            number = next_number(name for name, _ in self._records[-1:])
            staged.rename(self.path / "episodes" / number)
        self._register(number, record)

    def write_latents(
        self, name: str, key: str | int, latents: Float[np.ndarray, "time view channel h w"]
    ) -> None:
        """Store the latents of one episode, replacing any of the same name.

        `name` identifies the encoder, the cameras and the frame size. Waits up to a minute for
        another process that writes.
        """
        target = self._latent_folder(name, key)
        rows = rows_per_chunk(len(latents), latents[:1].nbytes)
        chunks = (rows, *latents.shape[1:])
        with (
            write_lock(self.path / LOCK, self.path, wait_s=60.0),
            staged_folder(hidden_folder(self.path)) as staged,
        ):
            remove_hidden_folders(self.path)
            if not (target.parent / "zarr.json").is_file():
                zarr.create_group(target.parent)
            new_array(zarr.open_group(self.path), staged.name, data=latents, chunks=chunks)
            if target.exists():
                remove_at_once(target, self.path)
            staged.rename(target)

    def read_latents(self, name: str, key: str | int) -> Float[np.ndarray, "time view channel h w"]:
        """Latents of one episode stored under a name."""
        if not self.has_latents(name, key):
            raise ValueError(f"{self.path} has no latents {name!r} of episode {key!r}.")
        return read_array(self._latent_folder(name, key))

    def has_latents(self, name: str, key: str | int) -> bool:
        """Whether an episode has latents under a name."""
        return self._latent_folder(name, key).is_dir()

    def _latent_folder(self, name: str, key: str | int) -> Path:
        if not name or name != Path(name).name:
            raise ValueError(f"`name` must be a plain folder name, got {name!r}.")
        return self.path / "latents" / name / self._record(key)[0]

    def _register_new(self) -> None:
        """Register the episodes on disk that are not registered yet."""
        known = {number for number, _ in self._records}
        for folder in numbered_folders(self.path / "episodes"):
            if folder.name not in known:
                self._register(folder.name, _record_of(folder))

    def _register(self, number: str, record: EpisodeRecord | Damage) -> None:
        self._positions[record.episode_id] = len(self._records)
        self._records.append((number, record))

    def _readable(self, key: str | int) -> tuple[str, EpisodeRecord]:
        """Folder name and attributes of an episode.

        Raises:
            ValueError: there is no such episode, or its attributes are damaged.
        """
        number, record = self._record(key)
        if isinstance(record, Damage):
            raise ValueError(record.reason)
        return number, record

    def _record(self, key: str | int) -> tuple[str, EpisodeRecord | Damage]:
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise ValueError(
                    f"`key`={key} is out of range: {self.path} holds {len(self)} episodes."
                )
            return self._records[key]
        if key not in self:
            damaged = [record.reason for _, record in self._records if isinstance(record, Damage)]
            raise ValueError(
                f"{self.path} has no episode {key!r}; it holds {len(self)}"
                + (f", of which {len(damaged)} cannot be read: {damaged[0]}" if damaged else ".")
            )
        return self._records[self._positions[key]]

    def _start_writing(self) -> None:
        """Lock the store, and remove what a killed writer left; only once."""
        with START:
            if self._is_writer:
                return
            lock_while_alive(self, self.path / LOCK, self.path)
            remove_hidden_folders(self.path)
            self._register_new()
            self._is_writer = True


def _record_of(folder: Path) -> EpisodeRecord | Damage:
    """Attributes of the episode in a folder of a store."""
    try:
        return typed_attributes(folder, EpisodeRecord)
    except (ValueError, OSError) as error:
        return Damage(f"episodes/{folder.name}", str(error))
