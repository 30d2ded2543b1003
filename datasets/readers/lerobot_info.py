"""Declarations in meta/info.json of a LeRobot data set (v2.0, v2.1, v3.0), read and checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

import msgspec

from worldmodel.datasets.file_names import below
from worldmodel.structured_files import Count, Positive, Rate, read_json

IMAGES = "observation.images."
STATE, ACTION = "observation.state", "action"
FIELDS = {
    "v3": {
        "data_path": {"chunk_index", "file_index"},
        "video_path": {"video_key", "chunk_index", "file_index"},
    },
    "v2": {
        "data_path": {"episode_chunk", "episode_index"},
        "video_path": {"video_key", "episode_chunk", "episode_index"},
    },
}
"""Version -> template of file names -> fields that it may use."""
FORMAT = re.compile(r"|0?\d{1,2}d")
"""Format of a number in a template, or none."""
SPLIT = re.compile(r"\d{1,9}:\d{1,9}")


class StoredFeature(msgspec.Struct):
    """Declaration of a column or camera in meta/info.json."""

    dtype: str
    shape: list[Count] = []
    names: list[Any] | dict[str, Any] | None = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None


class StoredInfo(msgspec.Struct):
    """Keys of meta/info.json."""

    codebase_version: str
    total_episodes: Annotated[int, msgspec.Meta(ge=0, lt=100_000_000)]
    fps: Rate
    data_path: str
    features: dict[str, StoredFeature]
    splits: dict[str, str] = {}
    video_path: str | None = None
    chunks_size: Positive = 1000


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Declaration of a column or camera."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    """Names of the entries of a column; None: not declared."""
    is_depth: bool


@dataclass(frozen=True, kw_only=True)
class Info:
    """Declarations that the reader needs."""

    version: str
    """"v2" or "v3": their file layouts differ."""
    total_episodes: int
    rate_hz: float
    chunk_size: int
    """Episodes per chunk of a v2 data set."""
    splits: Mapping[str, range]
    """Split -> episode indices."""
    data_path: str
    video_path: str
    features: Mapping[str, Feature]

    @property
    def video_keys(self) -> tuple[str, ...]:
        """Colour cameras: "observation.images.<camera>" (or "observation.image.<camera>")."""
        videos = (name for name, f in self.features.items() if f.dtype == "video")
        return tuple(name for name in videos if not self.features[name].is_depth)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Cameras that are not read, with the reason."""
        reasons = []
        for name, feature in self.features.items():
            if feature.dtype == "video" and feature.is_depth:
                reasons.append(f"camera `{camera_name(name)}` is left out: it is a depth map.")
            elif feature.dtype == "image":
                reasons.append(
                    f"camera `{camera_name(name)}` is left out: its images lie in the tables; "
                    "only videos are read."
                )
        return tuple(reasons)

    def split_of(self, episode: int) -> str | None:
        """Split of an episode; None: it is in no split."""
        return next((name for name, part in self.splits.items() if episode in part), None)

    def path(self, root: Path, template: str, **fields: object) -> Path:
        """Path of a file below the data set's root, from a template.

        Raises:
            ValueError: if the path leaves the data set, or is too long.
        """
        where = f"The template {template[:80]!r} in meta/info.json"
        return below(root, template.format(**fields), where)

    @classmethod
    def read(cls, file: Path) -> Info:
        """Read and check a meta/info.json."""
        info = read_json(file, StoredInfo, "it must be as LeRobot writes it")
        problems = list(_problems(info))
        if problems:
            raise ValueError(f"{file} cannot be read as LeRobot writes it: {problems[0]}.")
        return cls(
            version=info.codebase_version[:2],
            total_episodes=info.total_episodes,
            rate_hz=info.fps,
            chunk_size=info.chunks_size,
            splits={split: _indices(text) for split, text in info.splits.items()},
            data_path=info.data_path,
            video_path=info.video_path or "",
            features={name: _feature(given) for name, given in info.features.items()},
        )


def camera_name(key: str) -> str:
    """Camera name of a video feature.

    >>> camera_name("observation.images.front")
    'front'
    """
    return key.removeprefix(IMAGES)


def _feature(given: StoredFeature) -> Feature:
    names = given.names
    if isinstance(names, dict):  # {"axes": [...]} or {"motors": [...]}
        names = next(iter(names.values()), None)
    facts = {**(given.info or {}), **(given.video_info or {})}
    depth = facts.get("is_depth_map", False) or facts.get("video.is_depth_map", False)
    return Feature(
        dtype=given.dtype,
        shape=tuple(given.shape),
        names=tuple(map(str, names)) if isinstance(names, list) and names else None,
        is_depth=bool(depth),
    )


def _problems(info: StoredInfo) -> Iterator[str]:
    """Problems of the declarations, one clause each."""
    version = info.codebase_version[:2]
    if version not in FIELDS:
        yield f"`codebase_version` is {info.codebase_version!r}, expected v2.0, v2.1 or v3.0"
        return
    has_video = any(feature.dtype == "video" for feature in info.features.values())
    if not has_video:
        yield f"`features` declare no video such as `{IMAGES}front`"
    for key, fields in FIELDS[version].items():
        try:
            parsed = list(Formatter().parse(getattr(info, key) or ""))
        except ValueError as error:
            yield f"`{key}` is no template ({error})"
            continue
        used = {field for _, field, _, _ in parsed if field is not None}
        if not used <= fields:
            yield (
                f"`{key}` uses the unknown fields {', '.join(sorted(used - fields))} "
                f"in place of {', '.join(sorted(fields - used))}"
            )
        odd = [spec for _, _, spec, how in parsed if how or not FORMAT.fullmatch(spec or "")]
        if odd:
            yield f"`{key}` formats a field with {odd[0]!r}, expected a width such as 03d"
    yield from _split_problems(info)


def _split_problems(info: StoredInfo) -> Iterator[str]:
    """Problems of the splits, one clause each."""
    for split, text in info.splits.items():
        if not SPLIT.fullmatch(text):
            yield f"split {split!r} is {text[:80]!r}, expected first and last episode such as 0:11"
        elif _indices(text).stop > info.total_episodes:
            yield f"split {split!r} is {text!r}, but `total_episodes` is {info.total_episodes}"


def _indices(text: str) -> range:
    """Episode indices of a split.

    >>> _indices("0:11")
    range(0, 11)
    """
    first, last = map(int, text.split(":"))
    return range(first, last)
