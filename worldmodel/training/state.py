"""Checkpoints of a training stage, written atomically and restored bit for bit.

Files hold full tensors, so a run can resume with another number of processes. Random numbers and
learning rates depend on seed and step alone and are not stored.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.checkpoint import sync_files
from worldmodel.training.parallel import all_processes, own_share, whole

STATE = "state.pt"
BEST = "best.pt"
"""Averaged weights with the least error on held-out clips, so far."""


@dataclass(frozen=True)
class TrainingState:
    """State that changes with every step."""

    model: nn.Module
    """Current weights, possibly sharded."""
    average: dict[str, Tensor]
    """Exponential moving average of the weights, with the same sharding."""
    steppers: list[torch.optim.Optimizer]


def latest_checkpoint(folder: Path) -> Path | None:
    """Newest complete checkpoint of a stage."""
    complete = (path.parent for path in folder.glob(f"step-*/{STATE}"))
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def save_checkpoint(state: TrainingState, folder: Path, step: int) -> None:
    """Write a checkpoint to a temporary folder, rename it, then delete older ones."""
    partial, final = folder / "partial", folder / f"step-{step}"
    processes = all_processes()
    is_writer = processes.is_main_process
    values = whole(
        {
            "model": dict(state.model.state_dict()),
            "average": state.average,
            "optimizers": [stepper.state_dict() for stepper in state.steppers],
        },
        keep=is_writer,
    )
    if is_writer:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write(values, partial)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in folder.glob("step-*"):
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
    processes.wait_for_everyone()


def _write(values: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint's file into a new folder.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    folder.mkdir(parents=True)
    try:
        torch.save(values, folder / STATE)
    except RuntimeError as error:  # how PyTorch reports a full disk
        reason = " ".join(str(error).split())
        raise OSError(
            f"{folder / STATE} cannot be written ({reason}); is the disk full?"
        ) from error
    sync_files(folder)


def resume(state: TrainingState, folder: Path) -> int:
    """Load the newest checkpoint, if any, and return the step to resume from."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = latest_checkpoint(folder)
    all_processes().wait_for_everyone()
    if checkpoint is None:
        return 0
    stored = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True, mmap=True)
    fill(dict(state.model.state_dict()), stored["model"])
    fill(state.average, stored["average"])
    for stepper, values in zip(state.steppers, stored["optimizers"], strict=True):
        stepper.load_state_dict(sharded_like(stepper, values))
    return int(checkpoint.name.removeprefix("step-"))


def read_best(folder: Path) -> dict[str, Any] | None:
    """Entries "score", "step" and "weights" of the best validation of a stage; None: no file."""
    if not (folder / BEST).is_file():
        return None
    stored: dict[str, Any] = torch.load(folder / BEST, map_location="cpu", weights_only=True)
    return stored


def keep_if_best(folder: Path, weights: dict[str, Tensor], *, score: float, step: int) -> None:
    """Store whole weights unless an earlier validation was as good; written atomically."""
    best = read_best(folder)
    if best is not None and best["score"] <= score:
        return
    partial = folder / f"{BEST}.partial"
    torch.save({"score": score, "step": step, "weights": weights}, partial)
    os.replace(partial, folder / BEST)


@torch.no_grad()
def fill(target: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Copy full stored tensors into tensors of the same names, sharded or not."""
    for name, value in target.items():
        value.copy_(own_share(stored[name], value))


def sharded_like(stepper: torch.optim.Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """Stored optimizer state with every tensor sharded like its weight."""
    weights = [weight for group in stepper.param_groups for weight in group["params"]]
    shares = {
        index: {
            name: own_share(value, weights[index]) if name != "step" else value
            for name, value in values.items()
        }
        for index, values in stored["state"].items()
    }
    return {**stored, "state": shares}
