"""TensorFlow Datasets (TFDS) folder: records and features declared by its JSON files."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from worldmodel.datasets.readers.tfrecord import Values, parse_example, read_record, record_offsets
from worldmodel.structured_files import read_json

Digits = Annotated[str, msgspec.Meta(pattern=r"^-?\d{1,15}$")]
"""A number as TFDS writes it to JSON."""


class TfdsSplit(msgspec.Struct, rename="camel"):
    """Entry of `splits` in dataset_info.json."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[\w.-]+$")]
    shard_lengths: list[Digits] = []


class DatasetInfo(msgspec.Struct, rename="camel"):
    """Keys of dataset_info.json."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[\w.-]+$")]
    splits: list[TfdsSplit]
    file_format: str = "tfrecord"


class Shape(msgspec.Struct):
    """Shape of a tensor; a scalar has no dimensions."""

    dimensions: list[Digits] = []


class TensorType(msgspec.Struct):
    """Shape and type of a tensor."""

    shape: Shape = msgspec.field(default_factory=Shape)
    dtype: str = "string"


class Node(msgspec.Struct, rename="camel"):
    """Node of features.json."""

    python_class_name: str = ""
    features_dict: FeaturesDict | None = None
    sequence: Sequence | None = None
    tensor: TensorType | None = None


class FeaturesDict(msgspec.Struct):
    """Named features."""

    features: dict[str, Node]


class Sequence(msgspec.Struct):
    """A feature of every step."""

    feature: Node


@dataclass(frozen=True)
class Leaf:
    """One feature of an episode or, under "steps/", of every step."""

    name: str
    """Path from the root: "steps/observation/state"."""
    kind: str
    """"Image", "Text", "Tensor" or "Scalar"."""
    shape: tuple[int, ...]
    """Shape in one step."""
    dtype: str

    def __post_init__(self) -> None:
        if self.is_number:
            try:
                kind = np.dtype(self.dtype).kind
            except TypeError as error:
                raise ValueError(f"`{self.name}` has the unknown type {self.dtype!r}") from error
            if kind not in "biuf" or min(self.shape, default=0) < 0:
                raise ValueError(f"`{self.name}` is {self.dtype} of shape {self.shape}")

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers or flags."""
        return self.kind in ("Tensor", "Scalar") and self.dtype != "string"

    def decode(self, values: Values, num_steps: int) -> np.ndarray:
        """The numbers of an episode: [num_steps, *shape], or [*shape] outside "steps/"."""
        shape = (num_steps, *self.shape) if self.name.startswith("steps/") else self.shape
        if not isinstance(values, np.ndarray) or values.size != math.prod(shape):
            raise ValueError(f"`{self.name}` holds {len(values)} values, expected shape {shape}")
        return values.astype(self.dtype).reshape(shape)


@dataclass(frozen=True)
class Builder:
    """Content of dataset_info.json and features.json."""

    name: str
    shards: dict[str, tuple[tuple[Path, int], ...]]
    """Split -> file and number of records of each shard."""
    leaves: dict[str, Leaf]
    """Every feature by name."""
    notes: tuple[str, ...] = ()
    """Missing shards, one sentence per split."""

    @classmethod
    def read(cls, path: Path) -> Builder:
        """Read and check both files."""
        advice = "it must be as TFDS writes it"
        info = read_json(path / "dataset_info.json", DatasetInfo, advice)
        features = read_json(path / "features.json", Node, advice)
        if (kind := info.file_format) != "tfrecord":
            raise ValueError(
                f"{path} is stored as {kind!r}, which is not read; prepare it with "
                "`tfds build --file_format=tfrecord`."
            )
        try:
            found = {split.name: _shards(path, info.name, split) for split in info.splits}
            leaves = {leaf.name: leaf for leaf in _leaves(features, "")}
        except ValueError as error:
            raise ValueError(f"{path} is no whole TFDS folder: {error}.") from error
        shards = {name: there for name, (there, _) in found.items()}
        notes = tuple(note for _, note in found.values() if note)
        if not any(shards.values()):
            raise ValueError(f"{path} holds none of its shards: {' '.join(notes)}")
        return cls(info.name, shards, leaves, notes)

    @property
    def episode_ids(self) -> tuple[str, ...]:
        """Ids from split and index: "train/0000", "train/0001", ..."""
        sizes = {split: sum(count for _, count in shards) for split, shards in self.shards.items()}
        return tuple(f"{split}/{i:04d}" for split, size in sizes.items() for i in range(size))

    def record(self, episode_id: str) -> tuple[str, dict[str, Values]]:
        """Location of an episode, for messages, and its features."""
        split, number = episode_id.rsplit("/", 1)
        ends = list(itertools.accumulate(count for _, count in self.shards[split]))
        shard = next(i for i, end in enumerate(ends) if int(number) < end)
        file, count = self.shards[split][shard]
        offsets = record_offsets(file)
        if len(offsets) != count:
            raise ValueError(
                f"{file} holds {len(offsets)} records, but dataset_info.json declares {count}."
            )
        row = int(number) - (ends[shard] - count)
        payload = read_record(file, offsets[row])
        try:
            return f"{file}, record {row}", parse_example(payload)
        except ValueError as error:
            raise ValueError(f"{file}, record {row} is no tf.train.Example: {error}.") from error


LEAST_RECORD_BYTES = 16
"""Length and checksums around an empty record."""
Shards = tuple[tuple[Path, int], ...]


def _shards(path: Path, name: str, split: TfdsSplit) -> tuple[Shards, str]:
    """File and number of records of each shard of a split that exists, and a note on the others.

    File names may count other shards than dataset_info.json declares, after a partial download or
    a merge. Then the files themselves say how many records they hold.
    """
    lengths = [int(length) for length in split.shard_lengths]
    stem = f"{name}-{split.name}.tfrecord"
    pattern = re.compile(re.escape(stem) + r"-(\d{5})-of-(\d{5})")
    found = {
        (int(match[1]), int(match[2])): file
        for file in sorted(path.glob(f"{stem}-*"))
        if (match := pattern.fullmatch(file.name))
    }
    totals = {total for _, total in found} or {len(lengths)}
    if len(totals) > 1:
        raise ValueError(f"{stem} has shards of several numberings: {sorted(totals)}")
    (total,) = totals
    missing = [i for i in range(total) if (i, total) not in found]
    if total == len(lengths):
        there = tuple((file, lengths[i]) for (i, _), file in found.items())
        for file, length in there:
            if not 0 <= length * LEAST_RECORD_BYTES <= file.stat().st_size:
                raise ValueError(f"{file.name} is too small for the {length} records declared")
    else:
        there = tuple((file, len(record_offsets(file))) for file in found.values())
    if not missing and total == len(lengths):
        return there, ""
    absent = f"shards {', '.join(map(str, missing[:8]))} of {total} are missing" if missing else ""
    other = f"dataset_info.json declares {len(lengths)} shards" if total != len(lengths) else ""
    clauses = "; ".join(clause for clause in (absent, other) if clause)
    return there, f"Split {split.name!r}: {clauses}; {len(there)} are read."


def _leaves(node: Node, name: str) -> Iterator[Leaf]:
    """Leaves at or below a node of features.json."""
    if node.features_dict is not None:
        for key, child in node.features_dict.features.items():
            yield from _leaves(child, f"{name}/{key}".lstrip("/"))
    elif node.sequence is not None:
        yield from _leaves(node.sequence.feature, name)
    else:
        tensor = node.tensor or TensorType()
        kind = node.python_class_name.rsplit(".", 1)[-1]
        yield Leaf(name, kind, tuple(map(int, tensor.shape.dimensions)), tensor.dtype)
