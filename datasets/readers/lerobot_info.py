"""Declarations in meta/info.json of a LeRobot data set (v2.0, v2.1, v3.0), read and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

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
LONGEST_PATH = 4096
"""Longest file name from a template, in characters."""


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
        name = template.format(**fields)
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or len(name) > LONGEST_PATH:
            raise ValueError(
                f"{root}: the template {template[:80]!r} in meta/info.json does not name a file "
                "below the data set's folder."
            )
        return root / name

    @classmethod
    def read(cls, file: Path) -> Info:
        """Read and check a meta/info.json."""
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
            problems = list(_problems(info))
            if problems:
                raise ValueError(problems[0])
            return cls(
                version=str(info["codebase_version"])[:2],
                total_episodes=int(info["total_episodes"]),
                rate_hz=float(info["fps"]),
                chunk_size=int(info.get("chunks_size", 1000)),
                splits={split: _indices(text) for split, text in info["splits"].items()},
                data_path=info["data_path"],
                video_path=info.get("video_path") or "",
                features={name: _feature(given) for name, given in info["features"].items()},
            )
        except KeyError as error:
            raise ValueError(f"{file} is not LeRobot's: it lacks {error}.") from error
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read as LeRobot writes it: {error}.") from error


def camera_name(key: str) -> str:
    """Camera name of a video feature.

    >>> camera_name("observation.images.front")
    'front'
    """
    return key.removeprefix(IMAGES)


def _feature(given: Mapping[str, Any]) -> Feature:
    names = given.get("names")
    if isinstance(names, Mapping):  # {"axes": [...]} or {"motors": [...]}
        names = next(iter(names.values()), None)
    facts = {**given.get("info", {}), **given.get("video_info", {})}
    depth = facts.get("is_depth_map", False) or facts.get("video.is_depth_map", False)
    return Feature(
        dtype=str(given["dtype"]),
        shape=tuple(int(size) for size in given.get("shape", ())),
        names=tuple(map(str, names)) if isinstance(names, Sequence) and names else None,
        is_depth=bool(depth),
    )


def _problems(info: dict[str, Any]) -> Iterator[str]:
    """Problems of the declarations, one clause each."""
    version = str(info["codebase_version"])[:2]
    if version not in FIELDS:
        yield f"`codebase_version` is {info['codebase_version']!r}, expected v2.0, v2.1 or v3.0"
        return
    has_video = any(feature.get("dtype") == "video" for feature in info["features"].values())
    if not has_video:
        yield f"`features` declare no video such as `{IMAGES}front`"
    for key, fields in FIELDS[version].items():
        parsed = list(Formatter().parse(info[key]))
        used = {field for _, field, _, _ in parsed if field is not None}
        if not used <= fields:
            yield (
                f"`{key}` uses the unknown fields {', '.join(sorted(used - fields))} "
                f"in place of {', '.join(sorted(fields - used))}"
            )
        if any(spec and (len(spec) > 4 or "{" in spec) for _, _, spec, _ in parsed):
            yield f"`{key}` asks for absurdly wide numbers"
    if not 0 < float(info["fps"]) < 10_000:
        yield f"`fps` must be positive, got {info['fps']}"
    if not 0 <= int(info["total_episodes"]) < 100_000_000 or int(info.get("chunks_size", 1)) < 1:
        yield f"`total_episodes` or `chunks_size` is out of range: {info['total_episodes']}"
    for split, text in info["splits"].items():
        if _indices(text).stop > info["total_episodes"]:
            yield f"split {split!r} is {text!r}, but `total_episodes` is {info['total_episodes']}"


def _indices(text: str) -> range:
    """Episode indices of a split.

    >>> _indices("0:11")
    range(0, 11)
    """
    first, last = map(int, text.split(":"))
    return range(first, last)
