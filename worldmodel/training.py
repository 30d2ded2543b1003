"""One training loop for every stage: accelerated, checkpointed atomically, resumed where it stopped.

Everything random in step k comes from a generator seeded by (seed, k, process), so a resumed run draws what the uninterrupted one
would have drawn.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How one stage is trained."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Items per step, over all processes."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float | None = None
    """Peak learning rate of Muon for hidden matrices; None trains everything with AdamW."""
    warmup: int = 50
    """Steps of linear warm-up; afterwards the rate falls as a cosine to a twentieth."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    average_decay: float = 0.999
    """Decay of the exponential moving average of the weights."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"`steps` and `batch_size` must be positive, got {self.steps} and {self.batch_size}."
            )


class Objective(Protocol):
    """A module that can be trained: its parameters, and a loss of one batch."""

    def forward(self, batch: Any, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and figures to log."""
        ...


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite."""


class StepSampler(Sampler[list[int]]):
    """Indices of each step's batch, drawn from (seed, step) alone and split over processes."""

    def __init__(
        self, num_items: int, config: LoopConfig, *, start: int, process: int, processes: int
    ) -> None:
        if num_items == 0:
            raise ValueError(
                "The training data hold no item: every episode is shorter than a clip."
            )
        self.num_items, self.config = num_items, config
        self.start, self.process, self.processes = start, process, processes

    def __len__(self) -> int:
        return self.config.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.config.steps):
            generator = step_generator(self.config.seed, step)
            batch = torch.randint(self.num_items, (self.config.batch_size,), generator=generator)
            yield batch[self.process :: self.processes].tolist()


def step_generator(seed: int, step: int, process: int = 0, device: str = "cpu") -> Generator:
    """The generator of one step on one process."""
    return Generator(device).manual_seed((seed * 1_000_003 + step) * 1009 + process)


def average_decay(num_averaged: int, limit: float) -> float:
    """Decay of the weight average after `num_averaged` updates: short memory first, `limit` in the end."""
    return min(limit, (1 + num_averaged) / (10 + num_averaged))


def averaged(model: nn.Module, limit: float) -> AveragedModel:
    """An exponential moving average of `model`'s weights and buffers."""

    def blend(average: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        return average.lerp(current.to(average), 1 - average_decay(int(num_averaged), limit))

    return AveragedModel(model, avg_fn=blend, use_buffers=True)


def optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon (Jordan et al. 2024) for matrices inside blocks and AdamW for the rest."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    muon = [
        p
        for name, p in trainable
        if config.muon_learning_rate is not None and is_hidden_matrix(name, p)
    ]
    chosen = {id(p) for p in muon}
    rest = [p for _, p in trainable if id(p) not in chosen]
    adam = torch.optim.AdamW(
        rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    if not muon or config.muon_learning_rate is None:
        return [adam]
    return [
        torch.optim.Muon(muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay),
        adam,
    ]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon should train it: matrices of attention and perceptrons, not embeddings, modulations or outputs."""
    return parameter.ndim == 2 and (".attention." in name or ".mlp." in name)


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Share of the peak rate at `step`."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    progress = torch.tensor(step / config.steps * torch.pi)
    return warm * (0.05 + 0.95 * 0.5 * (1 + float(progress.cos())))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage."""
    found = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    return found[-1] if found else None


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Write a checkpoint beside its final name, move it there, then drop older ones."""
    partial, final = folder / "partial", folder / f"step-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not final.exists():
        os.replace(partial, final)
        for old in folder.glob("step-*"):
            if old != final:
                shutil.rmtree(old)


def fit(
    objective: nn.Module,
    dataset: Dataset[Any],
    config: LoopConfig,
    folder: Path,
    *,
    collate: Callable[[list[Any]], Any],
    name: str,
    precision: str = "no",
) -> nn.Module:
    """Train `objective` on `dataset` and return it with its averaged weights, in evaluation mode.

    Checkpoints and TensorBoard events go to `folder`; a folder with a checkpoint is resumed.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint is kept.
    """
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    average = averaged(objective, config.average_decay).to(accelerator.device)
    steppers = optimizers(objective, config)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: learning_rate_factor(s, config))
        for o in steppers
    ]
    prepared = accelerator.prepare(objective, *steppers)
    model, steppers = prepared[0], list(prepared[1:])
    accelerator.register_for_checkpointing(average, *schedulers)
    start = resume(accelerator, folder)
    sampler = StepSampler(
        len(dataset), config, start=start,  # type: ignore[arg-type]
        process=accelerator.process_index, processes=accelerator.num_processes,
    )  # fmt: skip
    writer = SummaryWriter(str(folder / "events")) if accelerator.is_main_process else None
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
    progress = tqdm(
        loader, name, initial=start, total=config.steps, disable=not accelerator.is_main_process
    )
    model.train()
    for step, batch in enumerate(progress, start):
        generator = step_generator(config.seed, step, 1 + accelerator.process_index)
        with accelerator.autocast():
            loss, figures = model(batch, generator)
        check_finite(loss, step, name)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        for stepper, scheduler in zip(steppers, schedulers, strict=True):
            stepper.step()
            stepper.zero_grad()
            scheduler.step()
        average.update_parameters(accelerator.unwrap_model(model))
        if writer is not None:
            log(writer, progress, step, {"loss": loss.detach(), "gradient_norm": norm, **figures})
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            save_checkpoint(accelerator, folder, step + 1)
    objective.load_state_dict(average.module.state_dict())
    return objective.eval()


def resume(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint, if any, and return the step to go on from."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return 0
    accelerator.load_state(str(checkpoint))
    return int(checkpoint.name.removeprefix("step-"))


def check_finite(loss: Tensor, step: int, name: str) -> None:
    """Stop at a loss that is not a number."""
    if not torch.isfinite(loss):
        raise NonFiniteLossError(
            f"The loss of stage {name!r} became {loss.item()} at step {step}; the last checkpoint is kept. "
            "Check the data with `worldmodel data validate`, or lower the learning rate."
        )


def log(writer: SummaryWriter, progress: Any, step: int, figures: dict[str, Any]) -> None:
    """Send a step's figures to TensorBoard and the progress bar."""
    values = {name: float(value) for name, value in figures.items() if value is not None}
    if step % 10 == 0:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        progress.set_postfix({k: f"{v:.4g}" for k, v in values.items() if k != "gradient_norm"})
