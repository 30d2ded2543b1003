"""Zarr v3 folder helpers of the clip store and the rollout log."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from worldmodel import budgets
from worldmodel.structured_files import Count, Positive, converted, read_json
from worldmodel.write_lock import write_lock

T = TypeVar("T")
LOCK = ".lock"
"""Name of the lock file of a store's only writer."""
UNREADABLE = (
    OSError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError,
    MemoryError,
)  # fmt: skip
"""Errors of Zarr and its codecs for damaged arrays."""
INCOMING = ".incoming-"
"""Name prefix of an incomplete folder."""
PROCESS = uuid.uuid4().hex[:8]
"""Tells folders of this process from leftovers; process ids can repeat in a container."""
CHUNK_BYTES = 2**20
CHECKSUM = "crc32c"
CODECS = {"bytes", "vlen-utf8", "zstd", "blosc", "gzip", "sharding_indexed", CHECKSUM}
"""Codecs that a stored array may use; others could run arbitrary code."""
TYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64", "string",
}  # fmt: skip
"""Data types that a stored array may have."""


class ZarrNode(msgspec.Struct):
    """Keys of the zarr.json of a group or array."""

    attributes: dict[str, Any] = {}


class CodecOptions(msgspec.Struct):
    """Codecs inside a codec: those of shards."""

    codecs: list[Codec] = []
    index_codecs: list[Codec] = []


class Codec(msgspec.Struct):
    """A codec of an array."""

    name: str
    configuration: CodecOptions = msgspec.field(default_factory=CodecOptions)


class ChunkShape(msgspec.Struct):
    """Shape of the chunks of an array."""

    chunk_shape: list[Positive]


class ChunkGrid(msgspec.Struct):
    """Grid of the chunks of an array."""

    name: Literal["regular"]
    configuration: ChunkShape


class ArrayMetadata(msgspec.Struct):
    """Keys of the zarr.json of an array."""

    zarr_format: int
    node_type: str
    data_type: Any
    shape: list[Count]
    chunk_grid: ChunkGrid
    codecs: list[Codec]


def read_attributes(group: Path) -> dict[str, Any]:
    """Attributes of a Zarr v3 group, read without Zarr: a store opens thousands of them."""
    try:
        return read_json(group / "zarr.json", ZarrNode).attributes
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{group} is no Zarr v3 group: it has no zarr.json.") from error


def typed_attributes(group: Path, kind: type[T]) -> T:
    """Attributes of a Zarr v3 group as a declared type.

    Raises:
        ValueError: an attribute is missing or has another type.
    """
    return converted(read_attributes(group), kind, str(group / "zarr.json"))


def create_root(
    path: Path, form: str, *, groups: Sequence[str], own: dict[str, Any], given: Mapping[str, Any]
) -> None:
    """Create a root group with its form and attributes in one step.

    The attributes are `own` and `given`, which must not share a name.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"`path` must be a new or empty folder, but {path} holds something.")
    named = {"worldmodel_form": form, "format_version": 1, "package_version": version("worldmodel")}
    if clash := sorted((named | own).keys() & given.keys()):
        raise ValueError(f"`attributes` must not hold {clash}: a {form} sets them itself.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        write_lock(path.parent / f".{path.name}.lock", path),
        staged_folder(path.parent / f"{INCOMING}{path.name}") as staged,
    ):
        shutil.rmtree(staged, ignore_errors=True)
        root = zarr.create_group(staged, attributes={**named, **own, **given})
        for group in groups:
            root.create_group(group)
        staged.replace(path)


def open_root(path: Path, form: str) -> dict[str, Any]:
    """Attributes of a root group; ValueError if it has another form."""
    attributes = read_attributes(path)
    if (found := attributes.get("worldmodel_form")) != form:
        raise ValueError(f"{path} must be a {form}, but its `worldmodel_form` is {found!r}.")
    return attributes


def hidden_folder(parent: Path) -> Path:
    """Path of a new hidden folder, to be written and then renamed."""
    return parent / f"{INCOMING}{PROCESS}-{uuid.uuid4().hex}"


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Context manager for a folder that is written and then renamed; deletes it after an error."""
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_at_once(folder: Path, root: Path) -> None:
    """Delete a folder of a root; a killed process leaves it whole or hidden."""
    hidden = folder.rename(hidden_folder(root))
    shutil.rmtree(hidden, ignore_errors=True)


def remove_hidden_folders(parent: Path) -> None:
    """Remove the folders of killed writers, but not those of this process's other threads."""
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


def new_array(  # noqa: PLR0913 - what Zarr needs to know
    group: zarr.Group,
    name: str,
    *,
    chunks: tuple[int, ...],
    data: np.ndarray | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: Any = None,
    shards: tuple[int, ...] | None = None,
    compress: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Create an array with a checksum per chunk; all chunks are written, even zeros."""
    return group.create_array(
        name,
        data=data,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=[*([ZstdCodec()] if compress else []), Crc32cCodec()],
        attributes=dict(attributes) if attributes else None,
        config={"write_empty_chunks": True},
    )


def open_array(path: Path) -> zarr.Array[Any]:
    """Open a Zarr v3 array for reading.

    Raises:
        ValueError: it is missing, damaged, too large, or of a type or codec that is not allowed.
    """
    try:
        _check_metadata(path)
        return zarr.open_array(path, mode="r", zarr_format=3)
    except UNREADABLE as error:
        reason = str(error).removesuffix("; copy it again.")
        raise ValueError(f"{path} is no readable Zarr array ({reason}); copy it again.") from error


def _check_metadata(path: Path) -> None:
    """Raise unless zarr.json describes a plain array within the size budget."""
    metadata = read_json(path / "zarr.json", ArrayMetadata)
    if metadata.zarr_format != 3 or metadata.node_type != "array":
        raise ValueError("it is not of Zarr format 3")
    if not isinstance(kind := metadata.data_type, str) or kind not in TYPES:
        raise ValueError(f"its data type {str(kind)[:60]!r} is not allowed")
    if unknown := codec_names(metadata.codecs) - CODECS:
        raise ValueError(f"its codec {sorted(unknown)[0][:60]!r} is not allowed")
    chunk = metadata.chunk_grid.configuration.chunk_shape
    if len(chunk) != len(metadata.shape):
        raise ValueError(f"its chunks have {len(chunk)} axes, its shape has {len(metadata.shape)}")
    itemsize = 1 if kind == "string" else np.dtype(kind).itemsize
    for what, sizes in (("shape", metadata.shape), ("chunk shape", chunk)):
        budgets.require(prod(sizes) * itemsize, budgets.ARRAY_BYTES, f"its {what} in bytes")


def codec_names(codecs: Iterable[Codec]) -> set[str]:
    """Names of codecs, including those inside shards."""
    names: set[str] = set()
    for codec in codecs:
        inner = codec.configuration
        names |= {codec.name} | codec_names(inner.codecs) | codec_names(inner.index_codecs)
    return names


def has_checksums(path: Path) -> bool:
    """Whether an array has checksums, which earlier versions did not write."""
    return CHECKSUM in codec_names(read_json(path / "zarr.json", ArrayMetadata).codecs)


def read_rows(array: zarr.Array[Any], window: slice) -> np.ndarray:
    """A window of the first axis of a Zarr array.

    Raises:
        ValueError: a chunk is damaged, or missing although the array has checksums. (Earlier
            versions left out chunks of zeros, so their arrays cannot tell.)
    """
    path = Path(str(array.store_path).removeprefix("file://"))
    try:
        if has_checksums(path):
            _require_chunks(path, array, window)
        return np.asarray(array[window])
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again.") from error


def _require_chunks(path: Path, array: zarr.Array[Any], window: slice) -> None:
    """Raise if the file of a chunk that holds rows of the window is missing."""
    sides = array.shards or array.chunks
    counts = [ceil(size / side) for size, side in zip(array.shape, sides, strict=True)]
    start, stop, _ = window.indices(array.shape[0]) if array.shape else (0, 1, 1)
    rows = range(start // sides[0], ceil(stop / sides[0])) if stop > start else range(0)
    for place in product(rows, *map(range, counts[1:])):
        if not path.joinpath("c", *map(str, place)).is_file():
            raise ValueError(f"chunk {'/'.join(map(str, place))} is missing")


def read_array(path: Path) -> np.ndarray:
    """A whole Zarr array."""
    return read_rows(open_array(path), slice(None))


def rows_per_chunk(rows: int, row_bytes: int) -> int:
    """Number of rows in a chunk of about a megabyte.

    >>> rows_per_chunk(1000, 2**18), rows_per_chunk(3, 2**18), rows_per_chunk(3, 2**30)
    (4, 3, 1)
    """
    return max(1, min(rows, CHUNK_BYTES // max(1, row_bytes)))
