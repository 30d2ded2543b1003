"""Zarr v3 folders as the clip store and the rollout log use them."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

INCOMING = ".incoming-"
"""Start of the name of a folder that is not whole yet."""
PROCESS = uuid.uuid4().hex[:8]
"""Tells folders of this process from leftovers; a process id may come again in a container."""
CHUNK_BYTES = 2**20


def read_attributes(group: Path) -> dict[str, Any]:
    """Attributes of a Zarr v3 group, read without Zarr: a store opens thousands of them."""
    file = group / "zarr.json"
    try:
        attributes = json.loads(file.read_bytes()).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{group} is no Zarr v3 group: it has no zarr.json.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy it again.") from error
    return dict(attributes)


def create_root(
    path: Path, form: str, *, groups: Sequence[str], own: dict[str, Any], given: Mapping[str, Any]
) -> None:
    """Make a root group that says its form, whole at once.

    Its attributes are `own` and `given`, which must not share a name.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"`path` must be a new or empty folder, but {path} holds something.")
    named = {"worldmodel_form": form, "format_version": 1, "package_version": version("worldmodel")}
    if clash := sorted((named | own).keys() & given.keys()):
        raise ValueError(f"`attributes` must not hold {clash}: a {form} sets them itself.")
    staged = path.parent / f"{INCOMING}{path.name}"
    shutil.rmtree(staged, ignore_errors=True)
    root = zarr.create_group(staged, attributes={**named, **own, **given})
    for group in groups:
        root.create_group(group)
    staged.replace(path)


def open_root(path: Path, form: str) -> dict[str, Any]:
    """Attributes of a root group that must be of a form."""
    attributes = read_attributes(path)
    if (found := attributes.get("worldmodel_form")) != form:
        raise ValueError(f"{path} must be a {form}, but its `worldmodel_form` is {found!r}.")
    return attributes


def hidden_folder(parent: Path) -> Path:
    """The path of a new hidden folder, to be written and then renamed into place."""
    return parent / f"{INCOMING}{PROCESS}-{uuid.uuid4().hex}"


def remove_hidden_folders(parent: Path) -> None:
    """Remove what killed writers left; other threads of this process may be writing."""
    for leftover in parent.glob(f"{INCOMING}*"):
        if not leftover.name.startswith(f"{INCOMING}{PROCESS}-"):
            shutil.rmtree(leftover)


def numbered_folders(parent: Path) -> list[Path]:
    """Folders named by a number, in order."""
    folders = (folder for folder in parent.glob("[0-9]*") if folder.is_dir())
    return sorted(folders, key=lambda folder: (int(folder.stem), folder.suffix))


def next_number(names: Iterable[str]) -> str:
    """The name of the folder after the last numbered one.

    >>> next_number(["000000", "000002"]), next_number([])
    ('000003', '000000')
    """
    return f"{max(map(int, names), default=-1) + 1:06d}"


def open_array(path: Path) -> zarr.Array[Any]:
    """Open a Zarr array for reading."""
    try:
        return zarr.open_array(path, mode="r")
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ValueError(f"{path} is no readable Zarr array ({error}); copy it again.") from error


def read_rows(array: zarr.Array[Any], window: slice) -> np.ndarray:
    """A window of the first axis of a Zarr array."""
    try:
        return np.asarray(array[window])
    except (ValueError, RuntimeError) as error:  # what Zarr and its codecs raise for bad bytes
        path = str(array.store_path).removeprefix("file://")
        raise ValueError(f"{path} is damaged ({error}); copy it again.") from error


def read_array(path: Path) -> np.ndarray:
    """A whole Zarr array."""
    return read_rows(open_array(path), slice(None))


def rows_per_chunk(rows: int, row_bytes: int) -> int:
    """How many rows make a chunk of about a megabyte.

    >>> rows_per_chunk(1000, 2**18), rows_per_chunk(3, 2**18), rows_per_chunk(3, 2**30)
    (4, 3, 1)
    """
    return max(1, min(rows, CHUNK_BYTES // max(1, row_bytes)))
