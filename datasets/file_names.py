"""File names for episodes and rollouts, whose ids may hold any text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

MAX_BYTES = 200
"""Longest file name in bytes; file systems allow 255, suffixes included."""


def safe_file_name(text: str) -> str:
    """A file name for any text: never empty, hidden or too long, and unique for every text.

    >>> safe_file_name("train/0: lift"), safe_file_name("..")
    ('train%2F0%3A lift', '%2E.')
    """
    safe = re.sub(r"[^\w .,+=@()-]", lambda found: quote(found[0], safe=""), text) or "%"
    safe = re.sub(r"^\.", "%2E", safe)
    if len(safe.encode()) <= MAX_BYTES:
        return safe
    return f"{safe[:40]}%{hashlib.sha256(text.encode()).hexdigest()}"


def safe_path(folder: Path, text: str, suffix: str) -> Path:
    """A file inside `folder` for any text; each "/" in the text starts a subfolder.

    >>> safe_path(Path("views"), "train/../0", ".png").as_posix()
    'views/train/%2E./0.png'
    """
    *parents, name = map(safe_file_name, text.split("/"))
    return Path(folder, *parents, name + suffix)
