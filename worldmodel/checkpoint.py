"""Checkpoint folders: location, hash, atomic replacement, and completed training stages."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError

from worldmodel.write_lock import write_lock

SHIPPED = Path(__file__).parent / "checkpoints"
"""Checkpoints that ship with the package, loaded by folder name."""
WEIGHTS = ("config.json", "weights.safetensors", "tokenizer")
"""Files and folders of a checkpoint that define the model."""


class EpisodeNames(msgspec.Struct):
    """Ids of the episodes that a training run used."""

    dynamics: list[str] = []
    confidence: list[str] = []


class Provenance(msgspec.Struct):
    """Keys of a model's provenance that commands rely on; there may be more."""

    data: str | None = None
    data_attributes: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    split: EpisodeNames | None = None
    stages: list[str] | None = None
    starts_from: Provenance | None = None


def content_hash(folder: Path) -> str:
    """SHA-256 (64 hex digits) of the `WEIGHTS` of a checkpoint, or of all files of a monitor."""
    is_checkpoint = (folder / "weights.safetensors").is_file()
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and (not is_checkpoint or name.parts[0] in WEIGHTS):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{name.as_posix()} {content}\n".encode())
    return digest.hexdigest()


def short_hash(content: str) -> str:
    """First 16 hex digits of a `content_hash`, to name a model or monitor in logs."""
    return content[:16]


def fingerprint(folder: Path) -> str:
    """The `short_hash` of a checkpoint or monitor."""
    return short_hash(content_hash(folder))


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

    After an error, including Ctrl-C, the old `folder` is unchanged and the new one is deleted. A
    process killed between the two renames of the replacement leaves no `folder`; `recover_folder`
    finishes the replacement. All files are synced to disk before they replace the old ones.

    Raises:
        OSError: The disk is full, or a file cannot be written.
        ValueError: Another process is writing `folder`.
    """
    partial, old = _beside(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _folder_lock(folder):
        _finish_replacement(folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            partial.mkdir()
            yield partial
            sync_files(partial)
            _swap(partial, folder, old)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, SafetensorError):  # how safetensors reports a full disk
                raise OSError(f"{folder} cannot be written: {error}.") from error
            raise


def recover_folder(folder: Path) -> None:
    """Finish the replacement of `folder` if a process was killed between its two renames.

    Raises:
        OSError: A rename is not allowed.
    """
    if folder.exists() or not _beside(folder)[1].is_dir():
        return
    with _folder_lock(folder, wait_s=60.0):
        _finish_replacement(folder)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where the new folder is written, and where the old one is moved."""
    partial, old = (folder.with_name(f"{folder.name}.{end}") for end in ("partial", "old"))
    return partial, old


def _folder_lock(folder: Path, *, wait_s: float = 0.0) -> AbstractContextManager[None]:
    return write_lock(folder.with_name(f".{folder.name}.lock"), folder, wait_s=wait_s)


def _swap(partial: Path, folder: Path, old: Path) -> None:
    """Replace `folder` with `partial` and delete the old one."""
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(partial, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        raise
    _sync(folder.parent)
    _discard(old, partial)


def _finish_replacement(folder: Path) -> None:
    """As `recover_folder`, with the lock held; the new folder is complete if the old is aside."""
    partial, old = _beside(folder)
    if folder.exists() or not old.is_dir():
        return
    os.replace(partial if partial.is_dir() else old, folder)
    _discard(old, partial)


def _discard(old: Path, free: Path) -> None:
    """Delete `old` under another name: half deleted, it must not look like a moved folder."""
    if old.exists():
        os.replace(old, free)
        shutil.rmtree(free, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Write all files of a folder from the caches of the operating system to the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise  # some network file systems cannot sync folders
    finally:
        os.close(descriptor)


def copy_if_present(source: Path, target: Path) -> None:
    """Copy a folder or file if it exists."""
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copy2(source, target)


def checkpoint_folder(source: str | Path) -> Path:
    """Folder of a checkpoint, from its path or the name of a shipped checkpoint."""
    folder = Path(source)
    recover_folder(folder)
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
