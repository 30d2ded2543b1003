"""Lock of a folder for one writing process; the operating system frees it when the process ends."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


def lock_while_alive(owner: object, file: Path, written: Path) -> None:
    """Hold a lock until `owner` is deleted or the process ends; see `write_lock`."""
    weakref.finalize(owner, _release, _acquire(file, written, wait_s=0.0))


@contextmanager
def write_lock(file: Path, written: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock; all threads of one process may share it.

    Args:
        file: Lock file. It is deleted in the end; one that a killed process left has no effect.
        written: What the lock protects, for the message.
        wait_s: Seconds to wait for another process.

    Raises:
        ValueError: Another process holds the lock.
    """
    lock = _acquire(file, written, wait_s)
    try:
        yield
    finally:
        _release(lock)


def _acquire(file: Path, written: Path, wait_s: float) -> BaseFileLock:
    lock = FileLock(file.absolute(), thread_local=False, is_singleton=True)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise ValueError(
            f"{written} is being written by another process; wait until it ends, or write "
            "somewhere else."
        ) from error
    return lock


def _release(lock: BaseFileLock) -> None:
    if lock.lock_counter == 1:  # waiting processes notice that the file is gone and make a new one
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()
