"""What meta/info.json of a LeRobotDataset v3.0 declares, read and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

IMAGES = "observation.images."
STATE, ACTION = "observation.state", "action"
TEMPLATES = {
    "data_path": {"chunk_index", "file_index"},
    "video_path": {"video_key", "chunk_index", "file_index"},
}
"""Templates of file names and the fields that v3.0 fills in."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """The declarations a reader needs."""

    total_episodes: int
    rate_hz: float
    splits: dict[str, range]
    """Split -> episode indices."""
    data_path: str
    video_path: str
    video_keys: tuple[str, ...]
    """Names of the video features: "observation.images.<camera>"."""

    @classmethod
    def read(cls, file: Path) -> Info:
        """Read and check a meta/info.json."""
        try:
            info = json.loads(file.read_text())
            problems = list(_problems(info))
            if problems:
                raise ValueError(problems[0])
            return cls(
                total_episodes=int(info["total_episodes"]),
                rate_hz=float(info["fps"]),
                splits={split: _indices(text) for split, text in info["splits"].items()},
                data_path=info["data_path"],
                video_path=info["video_path"],
                video_keys=tuple(_videos(info)),
            )
        except KeyError as error:
            raise ValueError(f"{file} is not LeRobot v3.0: it lacks {error}.") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not LeRobot v3.0 as DROID needs it: {error}.") from error


def _problems(info: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the declarations, one clause each."""
    if not str(info["codebase_version"]).startswith("v3."):
        yield f"`codebase_version` is {info['codebase_version']!r}, expected 'v3.0'"
    for key, fields in TEMPLATES.items():
        used = {field for _, field, _, _ in Formatter().parse(info[key]) if field is not None}
        if not used <= fields:
            yield (
                f"`{key}` uses the unknown fields {', '.join(sorted(used - fields))} "
                f"in place of {', '.join(sorted(fields - used))}"
            )
    for key in (STATE, ACTION):
        if info["features"].get(key, {}).get("shape") != [7]:
            yield f"`features` must declare `{key}` with shape [7]"
    if not list(_videos(info)):
        yield f"`features` declare no video `{IMAGES}<camera>`"
    if not info["fps"] > 0:
        yield f"`fps` must be positive, got {info['fps']}"
    for split, text in info["splits"].items():
        if _indices(text).stop > info["total_episodes"]:
            yield f"split {split!r} is {text!r}, but `total_episodes` is {info['total_episodes']}"


def _videos(info: dict[str, Any]) -> Iterator[str]:
    for key, feature in info["features"].items():
        if feature["dtype"] == "video" and key.startswith(IMAGES):
            yield key


def _indices(text: str) -> range:
    """Episode indices of a split.

    >>> _indices("0:11")
    range(0, 11)
    """
    first, last = map(int, text.split(":"))
    return range(first, last)
