"""Training loop shared by all stages: distributed and resumable.

A step is a function of the weights, the data and (seed, step). All random numbers come from
generators seeded with these two, identically on every process. Interrupting a run or changing the
number of processes therefore changes the result only by rounding.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from worldmodel.networks.dynamics import Dynamics
from worldmodel.networks.recurrent import RecurrentDynamics
from worldmodel.training.config import Computing, LoopConfig
from worldmodel.training.optimizers import (
    optimizers,
    set_learning_rates,
    start_average,
    update_average,
)
from worldmodel.training.parallel import (
    all_processes,
    blocks,
    clip_gradients,
    share_out,
    sum_over_processes,
    whole,
)
from worldmodel.training.randomness import step_randomness, step_seed
from worldmodel.training.stage_log import Speed, StageLog
from worldmodel.training.state import (
    TrainingState,
    keep_if_best,
    read_best,
    resume,
    save_checkpoint,
)
from worldmodel.training.stopping import Stop, TrainingStopped

Validate = Callable[[Any, int], float | None]
"""Validation of the objective's networks: `validate(writer, step)` logs to TensorBoard, and returns
an error that `LoopConfig.keep_best` compares, or None."""


@runtime_checkable
class Items(Protocol):
    """Dataset that batches are sampled from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def collate(self, items: list[Any]) -> Any:
        """Stack items into a batch that has a length, `.to(device)` and slicing."""


class NonFiniteLossError(ValueError):
    """The loss or its gradient is NaN or infinite."""


class StepSampler(Sampler[list[int]]):
    """Sampler of batch indices: seeded by (seed, step) and split over processes."""

    def __init__(
        self, num_items: int, config: LoopConfig, *, start: int, process: int, processes: int
    ) -> None:
        if num_items == 0:
            raise ValueError("`num_items` must be positive, got 0: the dataset is empty.")
        if processes > config.batch_size:
            raise ValueError(
                f"`batch_size` must be at least the number of processes, {processes}, got "
                f"{config.batch_size}."
            )
        self.num_items, self.config = num_items, config
        self.start, self.process, self.processes = start, process, processes

    def __len__(self) -> int:
        return self.config.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.config.steps):
            generator = torch.Generator().manual_seed(step_seed(self.config.seed, step))
            batch = torch.randint(self.num_items, (self.config.batch_size,), generator=generator)
            yield batch[self.process :: self.processes].tolist()


def fit(  # noqa: PLR0913 - all settings of a stage, by name
    objective: nn.Module,
    dataset: Items,
    config: LoopConfig,
    folder: Path,
    *,
    computing: Computing | None = None,
    stop: Stop | None = None,
    validate: Validate | None = None,
    track: Callable[[Path], Sequence[Any]] | None = None,
) -> nn.Module:
    """Train `objective` on `dataset` and return it with its averaged weights, in evaluation mode.

    Args:
        objective: Its `forward(batch, randomness)` returns the loss and metrics to log.
        dataset: Items to sample batches from.
        config: Steps, batch size and learning rates.
        folder: Checkpoints and TensorBoard events; an existing checkpoint is resumed. The folder's
            name is the stage name in messages.
        computing: Precision, activation checkpointing and compilation; None: plain float32.
        stop: When to stop early; None: never.
        validate: Called every `validate_every` steps on the main process, after `objective` has
            received the averaged weights.
        track: Starts experiment trackers for the stage's folder; None: only TensorBoard events.

    Raises:
        NonFiniteLossError: the loss or gradient is NaN or infinite; the last checkpoint is kept.
        TrainingStopped: `stop` asked to stop; a checkpoint of the last step is saved.
    """
    computing, stop = computing or Computing(), stop or Stop()
    # Train a copy, which may be sharded; `objective` itself receives the averaged weights.
    objective.to(all_processes().device).eval()
    model, state = prepare(copy.deepcopy(objective).train(), config, computing)
    start = resume(state, folder)
    stop.check(progress_text(start, config, folder))
    speed = Speed(objective, batch_size=config.batch_size, computing=computing)
    with StageLog(folder, start=start, steps=config.steps, speed=speed, track=track) as log:
        keep = folder if config.keep_best else None
        if validate and keep and not start:
            run_validation(objective, state, validate, log.writer, 0, keep=keep)
            log.speed.pause()
        for step, batch in load_batches(dataset, config, start=start):
            figures = advance(model, batch, config, computing, step)
            check_finite(figures, step, folder.name)
            figures |= move_weights(state, config, step)
            log.step(step, figures, batch)
            done = step + 1
            reason = stop.agreed()
            if reason or done % config.checkpoint_every == 0 or done == config.steps:
                save_checkpoint(state, folder, done)
            if validate and (done % config.validate_every == 0 or done == config.steps):
                run_validation(objective, state, validate, log.writer, done, keep=keep)
            log.speed.pause()
            if reason:
                raise TrainingStopped(reason, progress_text(done, config, folder))
    weights, best = whole(state.average), read_best(folder) if config.keep_best else None
    if best is not None:
        weights = best["weights"]
        tqdm.write(best_text(best, config, folder), file=sys.stderr)
    objective.load_state_dict(weights)
    return objective


def best_text(best: Mapping[str, Any], config: LoopConfig, folder: Path) -> str:
    """Describe which weights a stage ends with."""
    text = f"Stage {folder.name!r} ends with its weights of step {best['step']} of {config.steps}"
    error = f"on held-out clips, its error is {best['score']:.2f} times that of repeating a frame"
    return f"{text}: {error}."


def prepare(
    trained: nn.Module, config: LoopConfig, computing: Computing
) -> tuple[nn.Module, TrainingState]:
    """Wrap the model for all processes and set up its optimizers and weight average."""
    for parameter in trained.parameters():
        # A rollout changes the memory layout of weights, which would change rounding.
        parameter.data = parameter.data.contiguous()
    for network in (m for m in trained.modules() if isinstance(m, Dynamics | RecurrentDynamics)):
        network.checkpoint_blocks = computing.checkpoint_blocks
    if computing.compile_blocks:
        for block in blocks(trained):
            block.compile()
    model = share_out(trained, precision=computing.precision)
    return model, TrainingState(trained, start_average(trained), optimizers(trained, config))


def load_batches(dataset: Items, config: LoopConfig, *, start: int) -> Iterator[tuple[int, Any]]:
    """Yield (step, this process's share of the batch) from step `start` on."""
    processes = all_processes()
    sampler = StepSampler(
        len(dataset),
        config,
        start=start,
        process=processes.process_index,
        processes=processes.num_processes,
    )
    # Without its own generator, the loader would draw from the global one.
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=dataset.collate,
        generator=torch.Generator().manual_seed(0),
    )
    for step, batch in enumerate(loader, start):
        num_frames = config.clip_frames(step)
        full_batch = batch.to(processes.device)
        if num_frames is None:
            yield step, full_batch
            continue
        room = full_batch.latents.shape[1] - num_frames
        start = Random(step_seed(config.seed, step)).randrange(room + 1)
        yield step, full_batch.cut(num_frames, start=start)


def advance(
    model: nn.Module, batch: Any, config: LoopConfig, computing: Computing, step: int
) -> dict[str, float]:
    """Compute loss and gradients of one step; returns metrics of the whole batch."""
    processes = all_processes()
    rank, count, device = processes.process_index, processes.num_processes, processes.device
    # Dropout uses the global generators, so seed them at every step.
    torch.manual_seed(step_seed(config.seed, step) * 1009 + rank)
    randomness = step_randomness(
        config.seed, step, batch_size=config.batch_size, process=rank, processes=count,
        device=device,
    )  # fmt: skip
    with torch.autocast(device.type, torch.bfloat16, enabled=computing.precision == "bf16"):
        loss, figures = model(batch, randomness)
    share = len(batch) / config.batch_size
    # DDP and FSDP average gradients over processes, whose batches may differ by one item.
    (loss * share * count).backward()
    norm = clip_gradients(model.parameters(), config.clip_norm)
    named = {"loss": loss.detach(), "gradient_norm": norm, **figures}
    values = torch.stack([value.float() for value in named.values()]) * share
    return dict(zip(named, sum_over_processes(values), strict=True))


def move_weights(state: TrainingState, config: LoopConfig, step: int) -> dict[str, float]:
    """Apply an optimizer step and update the weight average; returns the learning rates."""
    rates = set_learning_rates(state.steppers, config, step)
    for stepper in state.steppers:
        stepper.step()
        stepper.zero_grad()
    update_average(state.average, state.model, step, config.average_decay)
    return {f"learning_rate/{name}": rate for name, rate in rates.items()}


def run_validation(
    objective: nn.Module,
    state: TrainingState,
    validate: Validate,
    writer: Any,
    step: int,
    *,
    keep: Path | None = None,
) -> None:
    """Run `validate` with the averaged weights on the main process; the others wait.

    The best weights so far are stored in the folder `keep`; None: nowhere.
    """
    processes = all_processes()
    weights = whole(state.average, keep=processes.is_main_process)
    if processes.is_main_process:
        objective.load_state_dict(weights)
        score = validate(writer, step)
        if score is not None and keep is not None:
            keep_if_best(keep, weights, score=score, step=step)
    processes.wait_for_everyone()


def progress_text(step: int, config: LoopConfig, folder: Path) -> str:
    """Describe the progress of a stage in words."""
    return f"after step {step} of {config.steps} of stage {folder.name!r}"


def check_finite(figures: Mapping[str, float], step: int, name: str) -> None:
    """Raise if the loss or the gradient norm is not finite."""
    for metric in ("loss", "gradient_norm"):
        if not math.isfinite(figures[metric]):
            raise NonFiniteLossError(
                f"The {metric.replace('_', ' ')} of stage {name!r} became {figures[metric]} at "
                f"step {step}; the last checkpoint is kept. Check the data with `worldmodel data "
                "validate`, or lower the learning rate."
            )
