"""Output streams of the command line: UTF-8, and no control sequences from data."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control and bidirectional override characters, except tab and newline."""
PROGRESS = re.compile(r"(\r|\x1b\[A)")
"""Control sequences that progress bars use."""


def printable(text: str) -> str:
    r"""Text with control characters shown as escapes: they could rewrite a terminal.

    >>> print(printable("lift " + chr(27) + "[31m the cup"))
    lift \x1b[31m the cup
    """
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class SafeStream:
    """A text stream that writes control characters as escapes."""

    def __init__(self, stream: Any, *, progress: bool) -> None:
        self._stream, self._progress = stream, progress

    def write(self, text: str) -> int:
        """Write text; progress bars may still return to the start of the line."""
        if self._progress:
            parts = PROGRESS.split(text)
            safe = "".join(p if PROGRESS.fullmatch(p) else printable(p) for p in parts)
        else:
            safe = printable(text)
        self._stream.write(safe)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Write UTF-8 whatever the locale, and show control characters as escapes."""
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdout = SafeStream(streams[0], progress=False)
    sys.stderr = SafeStream(streams[1], progress=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
