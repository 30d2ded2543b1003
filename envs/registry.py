"""Named things: a registry is a dict, and its miss says what exists."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def lookup(kind: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """The entry `name` of `registry`; a miss lists what exists and the closest name."""
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(str(name), registry, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"Unknown {kind} {name!r}; known: {', '.join(registry)}.{hint}")
