"""Ending a run early, in good order: at a signal, or when its time is up."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from worldmodel.training.parallel import sum_over_processes


class TrainingStopped(Exception):  # noqa: N818 - no error: the run ended as it was asked to
    """Training was asked to stop, and did, with everything saved; its text is for the user."""

    def __init__(self, reason: str, place: str) -> None:
        super().__init__(f"Stopped {reason}, {place}; the same command goes on from there.")


class Stop:
    """Whether to stop after the current step: at SIGTERM, or after `max_hours`.

    As a context manager it takes the signal over, and gives it back at the end.
    """

    def __init__(self, max_hours: float | None = None) -> None:
        if max_hours is not None and max_hours < 0:
            raise ValueError(f"`max_hours` must not be negative, got {max_hours}.")
        self.max_hours = max_hours
        self.deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self.got_signal = False
        self._before: Any = None

    def __enter__(self) -> Stop:
        # Python takes signals in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.got_signal = True

    @property
    def is_late(self) -> bool:
        """The time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def asked(self) -> bool:
        """Whether this process has a reason to stop."""
        return self.got_signal or self.is_late

    def agreed(self) -> str | None:
        """Why to stop, if any process has a reason; every process must ask, and gets one answer."""
        flags = torch.tensor([float(self.got_signal), float(self.is_late)])
        got_signal, is_late = (bool(count) for count in sum_over_processes(flags))
        if got_signal:
            return "at SIGTERM"
        return f"after `--max-hours {self.max_hours:g}`" if is_late else None

    def check(self, place: str) -> None:
        """Stop here if any process has a reason; every process must call it.

        Raises:
            TrainingStopped: with a line for the user, in which `place` says how far the run got.
        """
        reason = self.agreed()
        if reason is not None:
            raise TrainingStopped(reason, place)
