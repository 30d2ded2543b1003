"""Checkpoint folders: where they are, their hash, atomic replacement, and finished training."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent / "checkpoints"
"""Checkpoints inside the package, loaded by their folder's name."""
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


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` once the block is left.

    After an error, Ctrl-C included, an earlier `folder` stays as it was and the new one is deleted.
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
    """The folder of a checkpoint given by path or by the name of a shipped one."""
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
    """Refuse to write where something is."""
    if path and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"`{option}` must be a new or empty folder, but {path} holds something.")
