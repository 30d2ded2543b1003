"""Graceful early stopping: at SIGTERM or at a time limit."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from worldmodel.training.parallel import sum_over_processes


class TrainingStopped(Exception):  # noqa: N818 - a requested stop is not an error
    """Training stopped on request, with everything saved; the text is for the user."""

    def __init__(self, reason: str, progress: str) -> None:
        super().__init__(f"Stopped {reason}, {progress}; run the same command to resume.")


class Stop:
    """Whether to stop after the current step: at SIGTERM, or after `max_hours`.

    As a context manager it handles the signal and restores the previous handler at the end.
    """

    def __init__(self, max_hours: float | None = None) -> None:
        if max_hours is not None and max_hours < 0:
            raise ValueError(f"`max_hours` must not be negative, got {max_hours}.")
        self.max_hours = max_hours
        self.deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self.got_signal = False
        self._before: Any = None

    def __enter__(self) -> Stop:
        # Python sets signal handlers in the main thread only.
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
        """Whether the time limit has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def asked(self) -> bool:
        """Whether this process has a reason to stop."""
        return self.got_signal or self.is_late

    def agreed(self) -> str | None:
        """Reason to stop if any process has one, else None; every process must call it."""
        flags = torch.tensor([float(self.got_signal), float(self.is_late)])
        got_signal, is_late = (bool(count) for count in sum_over_processes(flags))
        if got_signal:
            return "at SIGTERM"
        return f"after `--max-hours {self.max_hours:g}`" if is_late else None

    def check(self, progress: str) -> None:
        """Raise if any process has a reason to stop; every process must call it.

        Raises:
            TrainingStopped: with a line for the user that contains `progress`.
        """
        reason = self.agreed()
        if reason is not None:
            raise TrainingStopped(reason, progress)
