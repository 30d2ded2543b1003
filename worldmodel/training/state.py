"""All that a checkpoint of a stage holds, written atomically and read back bit for bit.

Whatever was sharded is put together in the file, so that a run can go on with another number of
processes. What is random is a function of seed and step, and so are the learning rates.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.training.parallel import all_processes, own_share, whole

STATE = "state.pt"


@dataclass(frozen=True)
class TrainingState:
    """What changes from step to step."""

    model: nn.Module
    """Weights as they are now, perhaps sharded."""
    average: dict[str, Tensor]
    """Their exponential moving average, sharded alike."""
    steppers: list[torch.optim.Optimizer]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage."""
    found = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    return found[-1] if found else None


def save_checkpoint(state: TrainingState, folder: Path, step: int) -> None:
    """Write a checkpoint beside its final name, move it there, then drop older ones."""
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
        partial.mkdir(parents=True)
        torch.save(values, partial / STATE)
        os.replace(partial, final)
        for old in folder.glob("step-*"):
            if old != final:
                shutil.rmtree(old)
    processes.wait_for_everyone()


def resume(state: TrainingState, folder: Path) -> int:
    """Load the newest checkpoint, if any, and return the step to go on from."""
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


@torch.no_grad()
def fill(target: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Copy whole stored tensors into tensors of the same names, sharded or not."""
    for name, value in target.items():
        value.copy_(own_share(stored[name], value))


def sharded_like(stepper: torch.optim.Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """A stored optimiser state with every tensor shared out as the weight that it belongs to."""
    weights = [weight for group in stepper.param_groups for weight in group["params"]]
    shares = {
        index: {
            name: own_share(value, weights[index]) if name != "step" else value
            for name, value in values.items()
        }
        for index, values in stored["state"].items()
    }
    return {**stored, "state": shares}
