"""Which files a result came from, and whether their training was over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = ("config.json", "weights.safetensors", "tokenizer")
"""The files and folders of a checkpoint that make it the model it is."""


def fingerprint(folder: Path) -> str:
    """Hash of the `WEIGHTS` of a checkpoint, or of all files of a monitor, 16 hex digits."""
    is_checkpoint = (folder / "weights.safetensors").is_file()
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and (not is_checkpoint or name.parts[0] in WEIGHTS):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{name.as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def check_trained(provenance: Mapping[str, Any], source: str | Path, *stages: str) -> None:
    """Refuse a model whose training is not over; one that does not say is taken for whole.

    Raises:
        ValueError: one of `stages` is not among those that the model's provenance lists.
    """
    done = provenance.get("stages")
    missing = [stage for stage in stages if done is not None and stage not in done]
    if missing == ["judge"]:
        raise ValueError(
            f"The model in {str(source)!r} has no trained judge of success: its data label none, "
            "or its `worldmodel train` is not over; train on episodes that say if they succeeded."
        )
    if missing and "imported" in provenance:
        raise ValueError(
            f"The model in {str(source)!r} is an imported checkpoint that states no confidence, "
            "which this command needs; in Python, `WorldModel.imagine` goes without."
        )
    if missing:
        raise ValueError(
            f"The model in {str(source)!r} is half trained: stage {missing[0]!r} is missing; run "
            "its `worldmodel train` to the end."
        )
