"""One training loop for every stage: on any number of processes, resumed after any stop.

A step is a function of the weights, the data and (seed, step): what is random in it comes from
generators seeded by these two, and the same on every process, so that neither a stop nor the
number of processes changes a run by more than rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from worldmodel.networks.dynamics import Dynamics
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
from worldmodel.training.state import TrainingState, resume, save_checkpoint
from worldmodel.training.stopping import Stop, TrainingStopped

Validate = Callable[[Any, int], None]
"""Shows how good the objective's parts are: writes to a TensorBoard writer, at a step."""


@runtime_checkable
class Items(Protocol):
    """What batches are drawn from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def collate(self, items: list[Any]) -> Any:
        """A batch, which has a length, `.to(device)` and slices."""


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
            generator = torch.Generator().manual_seed(step_seed(self.config.seed, step))
            batch = torch.randint(self.num_items, (self.config.batch_size,), generator=generator)
            yield batch[self.process :: self.processes].tolist()


def fit(
    objective: nn.Module,
    dataset: Items,
    config: LoopConfig,
    folder: Path,
    *,
    computing: Computing | None = None,
    stop: Stop | None = None,
    validate: Validate | None = None,
) -> nn.Module:
    """Train `objective` on `dataset` and return it with its averaged weights, in evaluation mode.

    Args:
        objective: Its `forward(batch, draws)` gives the loss to minimise and figures to log.
        dataset: Items to draw batches from.
        config: Steps, batch size and rates.
        folder: For checkpoints and TensorBoard events; one with a checkpoint is resumed. Its name
            is that of the stage, for people.
        computing: Precision and what to trade memory for; None: plain float32.
        stop: When to stop early; None: never.
        validate: Called now and then on the main process, when `objective` has averaged weights.

    Raises:
        NonFiniteLossError: loss or gradient became NaN or infinite; the last checkpoint is kept.
        TrainingStopped: `stop` had a reason; a checkpoint of the last step was saved.
    """
    computing, stop = computing or Computing(), stop or Stop()
    # `objective` stays whole: a copy is trained, and it gets the averaged weights.
    objective.to(all_processes().device).eval()
    model, state = prepare(copy.deepcopy(objective).train(), config, computing)
    start = resume(state, folder)
    stop.check(progress_text(start, config, folder))
    speed = Speed(objective, batch_size=config.batch_size, computing=computing)
    with StageLog(folder, start=start, steps=config.steps, speed=speed) as log:
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
                run_validation(objective, state, validate, log.writer, done)
            log.speed.pause()
            if reason:
                raise TrainingStopped(reason, progress_text(done, config, folder))
    objective.load_state_dict(whole(state.average))
    return objective


def prepare(
    trained: nn.Module, config: LoopConfig, computing: Computing
) -> tuple[nn.Module, TrainingState]:
    """What takes a step, ready for all processes, and what a step changes."""
    for parameter in trained.parameters():
        # A rollout lays weights out otherwise, which changes how products are rounded.
        parameter.data = parameter.data.contiguous()
    for network in (m for m in trained.modules() if isinstance(m, Dynamics)):
        network.checkpoint_blocks = computing.checkpoint_blocks
    if computing.compile_blocks:
        for block in blocks(trained):
            block.compile()
    model = share_out(trained, precision=computing.precision)
    return model, TrainingState(trained, start_average(trained), optimizers(trained, config))


def load_batches(dataset: Items, config: LoopConfig, *, start: int) -> Iterator[tuple[int, Any]]:
    """Each step from `start` on, with this process's share of its batch."""
    processes = all_processes()
    sampler = StepSampler(
        len(dataset),
        config,
        start=start,
        process=processes.process_index,
        processes=processes.num_processes,
    )
    # A generator of its own: without one, starting to load draws from the global generator.
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=dataset.collate,
        generator=torch.Generator().manual_seed(0),
    )
    for step, batch in enumerate(loader, start):
        num_frames = config.clip_frames(step)
        whole_batch = batch.to(processes.device)
        if num_frames is None:
            yield step, whole_batch
            continue
        room = whole_batch.latents.shape[1] - num_frames
        start = Random(step_seed(config.seed, step)).randrange(room + 1)
        yield step, whole_batch.cut(num_frames, start=start)


def advance(
    model: nn.Module, batch: Any, config: LoopConfig, computing: Computing, step: int
) -> dict[str, float]:
    """Loss and gradients of one step; the figures are those of the whole batch."""
    processes = all_processes()
    rank, count, device = processes.process_index, processes.num_processes, processes.device
    # Dropout draws from the global generators, which every step therefore sets.
    torch.manual_seed(step_seed(config.seed, step) * 1009 + rank)
    draws = step_randomness(
        config.seed, step, batch_size=config.batch_size, process=rank, processes=count,
        device=device,
    )  # fmt: skip
    with torch.autocast(device.type, torch.bfloat16, enabled=computing.precision == "bf16"):
        loss, figures = model(batch, draws)
    share = len(batch) / config.batch_size
    # Gradients are averaged over processes, whose shares of the batch may differ by one item.
    (loss * share * count).backward()
    norm = clip_gradients(model.parameters(), config.clip_norm)
    named = {"loss": loss.detach(), "gradient_norm": norm, **figures}
    values = torch.stack([value.float() for value in named.values()]) * share
    return dict(zip(named, sum_over_processes(values), strict=True))


def move_weights(state: TrainingState, config: LoopConfig, step: int) -> dict[str, float]:
    """Take the step along the gradients; the learning rates it took, for the log."""
    rates = set_learning_rates(state.steppers, config, step)
    for stepper in state.steppers:
        stepper.step()
        stepper.zero_grad()
    update_average(state.average, state.model, step, config.average_decay)
    return {f"learning_rate/{name}": rate for name, rate in rates.items()}


def run_validation(
    objective: nn.Module, state: TrainingState, validate: Validate, writer: Any, step: int
) -> None:
    """Let `validate` see averaged weights on the main process, while the others wait."""
    processes = all_processes()
    weights = whole(state.average, keep=processes.is_main_process)
    if processes.is_main_process:
        objective.load_state_dict(weights)
        validate(writer, step)
    processes.wait_for_everyone()


def progress_text(step: int, config: LoopConfig, folder: Path) -> str:
    """How far a stage has got, in words."""
    return f"after step {step} of {config.steps} of stage {folder.name!r}"


def check_finite(figures: Mapping[str, float], step: int, name: str) -> None:
    """Stop before a step along numbers that are none."""
    for what in ("loss", "gradient_norm"):
        if not math.isfinite(figures[what]):
            raise NonFiniteLossError(
                f"The {what.replace('_', ' ')} of stage {name!r} became {figures[what]} at step "
                f"{step}; the last checkpoint is kept. Check the data with `worldmodel data "
                "validate`, or lower the learning rate."
            )
