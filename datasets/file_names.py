"""File names for episodes and rollouts, whose ids may hold any text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote

LONGEST_PATH = 4096
"""Longest path that a file may name, in characters."""
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


def below(root: Path, name: str, where: str) -> Path:
    """File below a folder that another file names; `where` is that file, for messages.

    Raises:
        ValueError: if the path leaves the folder, is too long or is no file name.

    >>> below(Path("data"), "videos/0.mp4", "info.json").as_posix()
    'data/videos/0.mp4'
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or len(name) > LONGEST_PATH:
        raise ValueError(f"{where} names the file {name[:80]!r}, which is not below {root}.")
    if "\0" in name:
        raise ValueError(f"{where} names a file with a null character.")
    return root / name
