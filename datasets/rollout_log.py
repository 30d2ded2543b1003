"""Append-only log of imagined or watched rollouts, readable up to the last complete step.

    log.zarr/                 attributes: form, provenance
      rollouts/000000.open/   a rollout being written: one chunk (a file) per signal and step
      rollouts/000000/        a closed rollout: the same arrays in large chunks

Each step has its own chunk, so writing a step never rewrites an earlier one. The group's attribute
`num_steps` is written last, by an atomic rename, and readers ignore later rows: a killed process
loses at most the step it was writing. Nothing is synced to disk, so a power cut can still lose
data. One process may write at a time, and a second one is refused; any number may read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, cast

import msgspec
import numpy as np
import zarr

from worldmodel.datasets.zarr_folder import (
    LOCK,
    create_root,
    hidden_folder,
    new_array,
    next_number,
    numbered_folders,
    open_array,
    open_root,
    read_rows,
    remove_at_once,
    remove_hidden_folders,
    rows_per_chunk,
    staged_folder,
    typed_attributes,
)
from worldmodel.structured_files import Count, decode_json
from worldmodel.write_lock import lock_while_alive

FORM = "rollout-log"
OPEN = ".open"
FIRST_CAPACITY = 64
LISTS = "lists_of_text"


class RolloutAttributes(msgspec.Struct):
    """Attributes of the group of a rollout."""

    rollout_id: str
    num_steps: Count
    attributes: dict[str, Any] = {}
    names: list[Annotated[str, msgspec.Meta(pattern=r"^[^/\\\0]*[^/\\\0.][^/\\\0]*$")]] = []
    """Signal names, which are names of folders."""
    lists_of_text: list[str] = []


class RolloutWriter:
    """Writer of one rollout.

    Call `close`, or use it as a context manager. An exception leaves the rollout open for `resume`.
    """

    def __init__(self, group: zarr.Group, folder: Path) -> None:
        self._group = group
        self._folder = folder
        self._num_steps = cast(int, group.attrs["num_steps"])
        self._arrays = dict(group.arrays()) if self._num_steps else {}

    @property
    def num_steps(self) -> int:
        """Steps written so far."""
        return self._num_steps

    def append(self, step: Mapping[str, Any]) -> None:
        """Write one step to disk; after an error, the same step can be appended again.

        Args:
            step: Signal name -> number, array, text or list of texts. All steps must have the
                names, shapes and types of the first.
        """
        row = {name: as_row(name, value) for name, value in step.items()}
        if not self._arrays:
            self._arrays = self._create_arrays(row, step)
        self._check(row)
        for name, array in self._arrays.items():
            if self._num_steps == array.shape[0]:
                array.resize((2 * self._num_steps, *array.shape[1:]))
            array[self._num_steps] = row[name]
        self._group.attrs["num_steps"] = self._num_steps + 1
        self._num_steps += 1

    def close(self) -> None:
        """Close the rollout: rewrite its arrays in large chunks and give them their final name."""
        if not self._folder.exists():
            return
        root = self._folder.parent.parent
        with staged_folder(hidden_folder(root)) as staged:
            compact = zarr.create_group(staged, attributes=dict(self._group.attrs))
            for name, array in self._arrays.items():
                copy_rows(array, compact, name, self._num_steps)
            staged.rename(self._folder.with_suffix(""))
        remove_at_once(self._folder, root)

    def __enter__(self) -> RolloutWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def _create_arrays(
        self, row: Mapping[str, np.ndarray], step: Mapping[str, Any]
    ) -> dict[str, zarr.Array[Any]]:
        """Create the arrays from the shapes and types of the first step.

        Those of an earlier attempt are removed: some may be incomplete.
        """
        lists = [name for name, value in step.items() if is_list_of_text(value)]
        self._group.attrs.update({"names": list(row), LISTS: lists})
        arrays = {}
        for name, value in row.items():
            shutil.rmtree(self._folder / name, ignore_errors=True)
            arrays[name] = new_array(
                self._group,
                name,
                shape=(FIRST_CAPACITY, *value.shape),
                chunks=(1, *value.shape),
                dtype=str if value.dtype.kind == "U" else value.dtype,
            )
        return arrays

    def _check(self, row: Mapping[str, np.ndarray]) -> None:
        if row.keys() != self._arrays.keys():
            raise ValueError(f"`step` must hold {[*self._arrays]} as the first did, got {[*row]}.")
        for name, array in self._arrays.items():
            value, (dtype, shape) = row[name], (array.dtype, array.shape[1:])
            if value.shape != shape or not fits(value.dtype, dtype):
                raise ValueError(
                    f"`step` {name!r} must be {dtype} of shape {shape} as in the first, "
                    f"got {value.dtype} of shape {value.shape}."
                )


class RolloutLog:
    """A folder of rollouts. Use `create` or `open`."""

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        self.path = path
        self.attributes = dict(attributes)
        self._folders = rollout_folders(path)
        self._is_writer = False

    @classmethod
    def create(cls, path: str | Path, *, attributes: Mapping[str, Any] | None = None) -> RolloutLog:
        """Create an empty log.

        Args:
            path: A new or empty folder.
            attributes: Provenance as JSON values: hashes of model and monitor, seeds, source.
        """
        create_root(Path(path), FORM, groups=("rollouts",), own={}, given=attributes or {})
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> RolloutLog:
        """Open a log with the rollouts begun so far, for reading and appending."""
        path = Path(path)
        return cls(path, open_root(path, FORM))

    def rollouts(self) -> tuple[str, ...]:
        """Ids of all rollouts, in the order they were begun."""
        return tuple(self._folders)

    def is_closed(self, rollout_id: str) -> bool:
        """False while a rollout is being written, or if its writer was killed."""
        return self._folder(rollout_id).suffix != OPEN

    def begin(self, rollout_id: str, attributes: Mapping[str, Any] | None = None) -> RolloutWriter:
        """Start a rollout; `attributes` (JSON values) are stored with it."""
        if rollout_id in self._folders:
            raise ValueError(f"{self.path} holds a rollout {rollout_id!r} already.")
        self._start_writing()
        number = next_number(folder.stem for folder in self._folders.values())
        folder = self.path / "rollouts" / f"{number}{OPEN}"
        with staged_folder(hidden_folder(self.path)) as staged:
            zarr.create_group(staged, attributes={
                "rollout_id": rollout_id, "attributes": dict(attributes or {}), "num_steps": 0,
            })  # fmt: skip
            staged.rename(folder)
        self._folders[rollout_id] = folder
        return self._writer(folder)

    def resume(self, rollout_id: str) -> RolloutWriter:
        """Continue a rollout whose writer was killed, after its last complete step."""
        self._start_writing()
        if self.is_closed(rollout_id):
            raise ValueError(f"Rollout {rollout_id!r} of {self.path} is closed; nothing to resume.")
        return self._writer(self._folder(rollout_id))

    def _start_writing(self) -> None:
        """Lock the log, and remove what a killed writer left; only once."""
        if self._is_writer:
            return
        lock_while_alive(self, self.path / LOCK, self.path)
        remove_hidden_folders(self.path)
        self._folders = rollout_folders(self.path)
        self._is_writer = True

    def _writer(self, folder: Path) -> RolloutWriter:
        writer = RolloutWriter(zarr.open_group(folder, mode="r+"), folder)
        lock_while_alive(writer, self.path / LOCK, self.path)
        return writer

    def attributes_of(self, rollout_id: str) -> dict[str, Any]:
        """Attributes that were passed to `begin`."""
        return typed_attributes(self._folder(rollout_id), RolloutAttributes).attributes

    def read(self, rollout_id: str) -> dict[str, np.ndarray]:
        """Signal name -> array with one row per complete step; {} before the first.

        Texts are returned as an array of strings, lists of texts as an object array of tuples.
        """
        folder = self._folder(rollout_id)
        attributes = typed_attributes(folder, RolloutAttributes)
        if attributes.num_steps == 0:
            return {}
        window = slice(0, attributes.num_steps)
        rows = {name: read_rows(open_array(folder / name), window) for name in attributes.names}
        for name, array in rows.items():
            if len(array) != attributes.num_steps:
                raise ValueError(
                    f"{folder / name} has {len(array)} rows, expected {attributes.num_steps}; copy "
                    "it again."
                )
        return {
            name: as_lists(array, folder / name) if name in attributes.lists_of_text else array
            for name, array in rows.items()
        }

    def _folder(self, rollout_id: str) -> Path:
        """Current folder of a rollout, which may have been closed in the meantime."""
        if rollout_id not in self._folders:
            raise ValueError(
                f"{self.path} has no rollout {rollout_id!r}; it holds {len(self._folders)}."
            )
        closed = self._folders[rollout_id].with_suffix("")
        return closed if closed.exists() else self._folders[rollout_id]


def rollout_folders(path: Path) -> dict[str, Path]:
    """Folder of each rollout of a log, in the order they were begun."""
    found = numbered_folders(path / "rollouts")
    # A writer killed at the end of `close` leaves the open folder beside the closed one.
    folders = [f for f in found if f.suffix != OPEN or not f.with_suffix("").is_dir()]
    return {typed_attributes(folder, RolloutAttributes).rollout_id: folder for folder in folders}


def is_list_of_text(value: object) -> bool:
    """Whether a value is a list or tuple of texts only."""
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def as_row(name: str, value: object) -> np.ndarray:
    """Convert the value of a signal to an array; a list of texts becomes a JSON text."""
    row = np.asarray(json.dumps(value) if is_list_of_text(value) else value)
    if row.dtype.kind not in "biufU" or (row.dtype.kind == "U" and row.ndim):
        raise ValueError(
            f"`step` {name!r} must be a number, an array of numbers, a text or a list of texts, "
            f"got {type(value).__name__}."
        )
    return row


def fits(given: np.dtype[Any], stored: np.dtype[Any]) -> bool:
    """Whether values can be stored without losing fraction or sign.

    >>> fits(np.dtype("f8"), np.dtype("f4")), fits(np.dtype("f8"), np.dtype("i8"))
    (True, False)
    """
    if given.kind == "U" or stored.kind == "T":
        return given.kind == "U" and stored.kind == "T"
    return np.can_cast(given, stored, "same_kind")


def as_lists(texts: np.ndarray, path: Path) -> np.ndarray:
    """Decode JSON texts of an array to an object array of tuples."""
    lists = np.empty(len(texts), object)
    for i, text in enumerate(texts):
        lists[i] = tuple(decode_json(str(text).encode(), list, f"{path}, row {i}"))
    return lists


def copy_rows(source: zarr.Array[Any], group: zarr.Group, name: str, num_rows: int) -> None:
    """Copy the first rows of an array into a group, in chunks of about a megabyte."""
    row_bytes = source.dtype.itemsize * int(np.prod(source.shape[1:]))
    rows = rows_per_chunk(num_rows, row_bytes)
    shape = (num_rows, *source.shape[1:])
    chunks = (rows, *shape[1:])
    target = new_array(group, name, shape=shape, chunks=chunks, dtype=source.dtype, compress=True)
    for start in range(0, num_rows, rows):
        stop = min(start + rows, num_rows)
        target[start:stop] = source[start:stop]
