"""Which files a result came from."""

from __future__ import annotations

import hashlib
from pathlib import Path

NOT_WEIGHTS = ("monitor", "README.md")
"""What may change in a checkpoint's folder without making it another model."""


def fingerprint(folder: Path) -> str:
    """Hash of the names and contents of a checkpoint's or a monitor's files, 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in NOT_WEIGHTS:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{name.as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]
