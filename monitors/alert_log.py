"""Alerts as JSON lines: one verdict per line, on disk before the next step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.monitors.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A verdict, and where it was passed."""

    step: int
    """Frame of the episode, from 0."""
    verdict: Verdict
    episode: str = ""
    time_s: float = field(default_factory=time.time, compare=False)
    """Seconds since 1970, by this machine's clock."""

    def as_dict(self, *, trust_map: bool = True) -> dict[str, Any]:
        """Plain JSON values."""
        verdict = self.verdict.as_dict()
        if not trust_map:
            del verdict["trust_map"]
        return {"episode": self.episode, "step": self.step, "time_s": self.time_s, **verdict}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Alert:
        """The inverse of `as_dict`."""
        where = {name: fields[name] for name in ("episode", "step", "time_s")}
        return cls(verdict=Verdict.from_dict(fields), **where)


class AlertLog:
    """Appends alerts to a file of JSON lines.

    A line is one write to the operating system: a process killed at any moment loses none that was
    written. Nothing is synced, so a power cut is not covered. One process writes, any number read.
    """

    def __init__(self, path: str | Path, *, trust_maps: bool = False) -> None:
        """Begin a file or go on with one.

        Args:
            path: The file. A last line that a killed writer left unfinished is cut off.
            trust_maps: Whether lines hold the map of trust, which is most of a verdict's size.
        """
        self.path, self.trust_maps = Path(path), trust_maps
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._file.truncate(finished_bytes(self._file.fileno()))

    def write(self, alert: Alert) -> None:
        """Append one line."""
        fields = alert.as_dict(trust_map=self.trust_maps)
        line = memoryview((json.dumps(fields, allow_nan=False) + "\n").encode())
        while line:
            line = line[self._file.write(line) :]

    def close(self) -> None:
        """Free the file."""
        self._file.close()

    def __enter__(self) -> AlertLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def finished_bytes(descriptor: int) -> int:
    """Bytes of a file up to the end of its last finished line."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_alerts(path: str | Path) -> Iterator[Alert]:
    """The alerts of a file, in order; a last line that is being written is left out.

    Raises:
        ValueError: a finished line is no alert.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield Alert.from_dict(json.loads(line))
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(f"{path} line {number} is no alert: {error}") from error
