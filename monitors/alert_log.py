"""Alert log in JSON lines: one verdict per line, written before the next step."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from worldmodel.monitors.verdict import Verdict
from worldmodel.structured_files import Count, decode_json

StoredNumber = float | Literal["nan", "inf", "-inf"] | None
"""A number of the evidence; JSON has no NaN and no infinity."""


class StoredEvidence(msgspec.Struct, frozen=True):
    """Evidence of one signal in a line of the log."""

    score: StoredNumber
    threshold: StoredNumber
    note: str


class StoredAlert(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the log."""

    episode: str
    step: Count
    time_s: float
    level: Literal["trust", "notice", "degrade", "stop"]
    causes: list[str]
    evidence: dict[str, StoredEvidence]
    trust_map: list[list[float | list[float]]] | None = None
    latency_s: float


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A verdict with its episode, step and time."""

    step: int
    """Frame index in the episode, from 0."""
    verdict: Verdict
    episode: str = ""
    time_s: float = field(default_factory=time.time, compare=False)
    """Unix time in seconds, local clock."""

    def as_dict(self, *, trust_map: bool = True) -> dict[str, Any]:
        """Plain JSON values."""
        verdict = self.verdict.as_dict()
        if not trust_map:
            del verdict["trust_map"]
        return {"episode": self.episode, "step": self.step, "time_s": self.time_s, **verdict}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Alert:
        """Inverse of `as_dict`."""
        where = {name: fields[name] for name in ("episode", "step", "time_s")}
        return cls(verdict=Verdict.from_dict(fields), **where)


class AlertLog:
    """Appends alerts to a file of JSON lines.

    Each line goes to the operating system before `write` returns, so a killed process loses no
    written line. There is no fsync: a power cut may lose lines. One process writes, and a second
    one is refused; any number may read.
    """

    def __init__(self, path: str | Path, *, trust_maps: bool = False) -> None:
        """Open a log file, new or existing.

        Args:
            path: Log file; an unfinished last line from a killed writer is removed.
            trust_maps: Whether to store trust maps, which make up most of a verdict's size.

        Raises:
            OSError: the file cannot be opened.
            ValueError: another process, or another log of this process, writes it.
        """
        self.path, self.trust_maps = Path(path), trust_maps
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (closed by `close`)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cut()
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise ValueError(
                    f"{self.path} is being written by another process; wait until it ends, or "
                    "write somewhere else."
                ) from error
            raise

    def write(self, alert: Alert) -> None:
        """Append one line.

        Raises:
            OSError: it could not be written, for example on a full disk. Nothing of it is left, and
                later lines can be written once there is room.
        """
        if self._file.seek(0, os.SEEK_END) != self._end:
            self._cut()
        fields = alert.as_dict(trust_map=self.trust_maps)
        line = memoryview((json.dumps(fields, allow_nan=False) + "\n").encode())
        size = len(line)
        try:
            while line:
                line = line[self._file.write(line) :]
        except BaseException:
            with suppress(OSError):  # else the next `write` cuts
                self._cut()
            raise
        self._end += size

    def _cut(self) -> None:
        """Cut the file back to the last complete line."""
        self._end = finished_bytes(self._file.fileno())
        self._file.truncate(self._end)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> AlertLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def finished_bytes(descriptor: int) -> int:
    """Number of bytes up to the end of the last complete line."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_alerts(path: str | Path) -> Iterator[Alert]:
    """Read the alerts of a file in order; skip an unfinished last line.

    Raises:
        ValueError: a complete line is not an alert; names the line and the field.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            where = f"{path}, line {number}"
            stored = decode_json(line, StoredAlert, where, "remove the line")
            try:
                yield Alert.from_dict(msgspec.to_builtins(stored))
            except ValueError as error:  # a map whose rows differ in length
                raise ValueError(f"{where}: {error}") from error
