"""Lookup in registries, which are dicts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def lookup(kind: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """Entry `name` of `registry`; ValueError with the known names and the closest one."""
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(str(name), registry, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"Unknown {kind} {name!r}; known: {', '.join(registry)}.{hint}")
