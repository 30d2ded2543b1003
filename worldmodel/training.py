"""One training loop for every stage: accelerated, checkpointed atomically, resumed after a stop.

Everything random in step k comes from a generator seeded by (seed, k, process), except dropout: it
draws from the global generators, whose state is in the checkpoint. So a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
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
            counts = f"{self.steps} and {self.batch_size}"
            raise ValueError(f"`steps` and `batch_size` must be positive, got {counts}.")


class NonFiniteLossError(ValueError):
    """The loss or its gradient became NaN or infinite."""


class StepSampler(Sampler[list[int]]):
    """Indices of each step's batch, drawn from (seed, step) alone and split over processes."""

    def __init__(
        self, num_items: int, config: LoopConfig, *, start: int, process: int, processes: int
    ) -> None:
        if num_items == 0:
            raise ValueError("`num_items` must be positive: there is nothing to train on.")
        if processes > config.batch_size:
            raise ValueError(
                f"`batch_size` {config.batch_size} cannot be split over {processes} processes."
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


def step_generator(
    seed: int, step: int, process: int = 0, device: torch.device | str = "cpu"
) -> Generator:
    """The generator of one step on one process."""
    return Generator(device).manual_seed((seed * 1_000_003 + step) * 1009 + process)


def average_decay(num_averaged: int, limit: float) -> float:
    """Decay of the weight average after `num_averaged` updates: rising to `limit`."""
    return min(limit, (1 + num_averaged) / (10 + num_averaged))


def averaged(model: nn.Module, limit: float) -> AveragedModel:
    """An exponential moving average of `model`'s weights and buffers."""

    def blend(average: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        return average.lerp(current.to(average), 1 - average_decay(int(num_averaged), limit))

    return AveragedModel(model, avg_fn=blend, use_buffers=True)


def optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024) for hidden matrices if it has a learning rate."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = [name for name, p in parameters.items() if is_hidden_matrix(name, p)]
    rate, decay = config.muon_learning_rate, config.weight_decay
    muon: list[torch.optim.Optimizer] = []
    if rate is not None and hidden:
        matrices = [parameters.pop(name) for name in hidden]
        muon = [torch.optim.Muon(matrices, lr=rate, weight_decay=decay)]
    adam = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=decay
    )
    return [*muon, adam]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon may train it: a matrix of an attention or a perceptron."""
    return parameter.ndim == 2 and (".attention." in name or ".mlp." in name)


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Share of the peak rate at `step`."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


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
    if accelerator.is_main_process:
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

    Args:
        objective: Its `forward(batch, generator)` gives the loss to minimise and figures to log.
        dataset: Items to draw batches from, with a length.
        config: Steps, batch size and rates.
        folder: For checkpoints and TensorBoard events; one with a checkpoint is resumed.
        collate: A list of items to one batch, which has `.to(device)`.
        name: Of the stage, for people.
        precision: "no" (float32) or "bf16".

    Raises:
        NonFiniteLossError: loss or gradient became NaN or infinite; the last checkpoint is kept.
    """
    set_seed(config.seed)
    all_processes()
    accelerator = Accelerator(mixed_precision=precision)
    average = averaged(objective, config.average_decay).to(accelerator.device)
    steppers = optimizers(objective, config)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: learning_rate_factor(s, config))
        for o in steppers
    ]
    model, *steppers = accelerator.prepare(objective, *steppers)
    accelerator.register_for_checkpointing(average, *schedulers)
    start = resume(accelerator, folder)
    batches = load_batches(accelerator, dataset, config, start=start, collate=collate)
    model.train()
    with event_writer(accelerator, folder, start) as writer:
        progress = tqdm(
            batches, name, initial=start, total=config.steps,
            disable=not accelerator.is_main_process,
        )  # fmt: skip
        for step, batch in enumerate(progress, start):
            process, device = accelerator.process_index, accelerator.device
            generator = step_generator(config.seed, step, 1 + process, device)
            with accelerator.autocast():
                loss, figures = model(batch.to(device), generator)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
            check_finite({"loss": loss.detach(), "gradient norm": norm}, step, name)
            for stepper, scheduler in zip(steppers, schedulers, strict=True):
                stepper.step()
                stepper.zero_grad()
                scheduler.step()
            average.update_parameters(accelerator.unwrap_model(model))
            if writer is not None and step % 10 == 0:
                figures = {"loss": loss.detach(), "gradient_norm": norm, **figures}
                log(writer, progress, step, figures)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                save_checkpoint(accelerator, folder, step + 1)
    objective.load_state_dict(average.module.state_dict())
    return objective.eval()


def all_processes() -> PartialState:
    """The processes of this run; the first call joins them, over gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def load_batches(
    accelerator: Accelerator,
    dataset: Dataset[Any],
    config: LoopConfig,
    *,
    start: int,
    collate: Callable[[list[Any]], Any],
) -> DataLoader[Any]:
    """This process's share of every batch from step `start` on."""
    sampler = StepSampler(
        len(dataset),  # type: ignore[arg-type]
        config,
        start=start,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    # A generator of its own: without one, starting to load draws from the global generator, which
    # would then differ between a resumed run and the uninterrupted one.
    return DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate, generator=Generator().manual_seed(0)
    )


def event_writer(
    accelerator: Accelerator, folder: Path, start: int
) -> AbstractContextManager[SummaryWriter | None]:
    """TensorBoard events of the main process; those after step `start` of a killed run are void."""
    if not accelerator.is_main_process:
        return nullcontext()
    return SummaryWriter(str(folder / "events"), purge_step=start)


def resume(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint, if any, and return the step to go on from."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return 0
    accelerator.load_state(str(checkpoint))
    return int(checkpoint.name.removeprefix("step-"))


def check_finite(figures: dict[str, Tensor], step: int, name: str) -> None:
    """Stop before a step along numbers that are none."""
    for what, value in figures.items():
        if not torch.isfinite(value):
            raise NonFiniteLossError(
                f"The {what} of stage {name!r} became {value.item()} at step {step}; the last "
                "checkpoint is kept. Check the data with `worldmodel data validate`, or lower the "
                "learning rate."
            )


def log(writer: SummaryWriter, progress: tqdm[Any], step: int, figures: dict[str, Tensor]) -> None:
    """Send a step's figures to TensorBoard and the progress bar."""
    for name, value in figures.items():
        writer.add_scalar(name, float(value), step)
    shown = {name: f"{float(value):.4g}" for name, value in figures.items()}
    progress.set_postfix({name: text for name, text in shown.items() if name != "gradient_norm"})
