"""Checkpoint folders: location, hash, atomic replacement, and completed training stages."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent / "checkpoints"
"""Checkpoints that ship with the package, loaded by folder name."""
WEIGHTS = ("config.json", "weights.safetensors", "tokenizer")
"""Files and folders of a checkpoint that define the model."""


def fingerprint(folder: Path) -> str:
    """Hash (16 hex digits) of the `WEIGHTS` of a checkpoint, or of all files of a monitor."""
    is_checkpoint = (folder / "weights.safetensors").is_file()
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and (not is_checkpoint or name.parts[0] in WEIGHTS):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{name.as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def check_trained(provenance: Mapping[str, Any], source: str | Path, *stages: str) -> None:
    """Raise an error if a training stage is missing; provenance without stages counts as complete.

    Raises:
        ValueError: One of `stages` is not in the list of stages in the model's provenance.
    """
    done = provenance.get("stages")
    missing = [stage for stage in stages if done is not None and stage not in done]
    if missing == ["judge"]:
        raise ValueError(
            f"The model in {str(source)!r} has no trained success classifier: its training data "
            "has no success labels, or `worldmodel train` did not finish; train on labelled data."
        )
    if missing and "imported" in provenance:
        raise ValueError(
            f"The model in {str(source)!r} is an imported checkpoint without a confidence head, "
            "which this command needs; train one on your episodes: `worldmodel train --stage "
            f"confidence --model {source} --data STORE`."
        )
    if missing:
        raise ValueError(
            f"The model in {str(source)!r} is not fully trained: stage {missing[0]!r} is missing; "
            "run its `worldmodel train` to the end."
        )


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Context manager that writes a new folder and replaces `folder` with it at the end.

    After an error, including Ctrl-C, the old `folder` is unchanged and the new one is deleted.
    """
    partial, old = (folder.with_name(f"{folder.name}.{end}") for end in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def copy_if_present(source: Path, target: Path) -> None:
    """Copy a folder or file if it exists."""
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copy2(source, target)


def checkpoint_folder(source: str | Path) -> Path:
    """Folder of a checkpoint, from its path or the name of a shipped checkpoint."""
    folder = Path(source)
    if (folder / "config.json").is_file():
        return folder
    if (SHIPPED / str(source) / "config.json").is_file():
        return SHIPPED / str(source)
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    raise ValueError(
        f"No checkpoint in {str(source)!r} (no config.json there); shipped checkpoints: {shipped}."
    )


def check_new(path: Path | None, option: str = "--out") -> None:
    """Raise a ValueError if `path` exists, unless it is an empty folder."""
    if path and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"`{option}` must be a new or empty folder, but {path} already exists.")
