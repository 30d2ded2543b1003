"""The random numbers of a training step: the same however many processes share its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class StepRandomness:
    """What is random in one step, as one process sees it.

    Numbers that belong to items are drawn for the whole batch on every process, which keeps those
    of its own items: the generators are equal everywhere.
    """

    generator: Generator
    """For numbers that belong to items; it lives on the device they are needed on."""
    random: Random
    """For decisions about the whole batch."""
    batch_size: int | None = None
    """Items over all processes; None: those at hand are all."""
    process: int = 0
    processes: int = 1

    def per_item(self, num_items: int, draw: Callable[[int], Tensor]) -> Tensor:
        """`draw(n)` makes n rows, one per item of the whole batch; the rows of `num_items` own."""
        rows = draw(self.batch_size or num_items)[self.process :: self.processes]
        assert len(rows) == num_items, "a process draws for its own items"
        return rows

    def uniform(self, num_items: int) -> Tensor:
        """One number from [0, 1) per item."""
        device = self.generator.device
        return self.per_item(
            num_items, lambda n: torch.rand(n, generator=self.generator, device=device)
        )

    def normal_like(self, x: Tensor, *, num_items: int | None = None) -> Tensor:
        """Standard normal noise of the shape of `x`, whose rows are those of items in order.

        `num_items` says how many items share the rows evenly; None: one row each.
        """
        count = len(x) if num_items is None else num_items
        shape = (len(x) // count, *x.shape[1:])
        device = self.generator.device
        noise = self.per_item(
            count, lambda n: torch.randn((n, *shape), generator=self.generator, device=device)
        )
        return noise.reshape(x.shape).to(x)

    def seeds(self, num_items: int) -> list[int]:
        """One seed per item, for generators of its own."""
        device = self.generator.device
        return self.per_item(
            num_items,
            lambda n: torch.randint(2**31, (n,), generator=self.generator, device=device),
        ).tolist()


def step_seed(seed: int, step: int) -> int:
    """The seed of one step of a run."""
    return seed * 1_000_003 + step


def step_randomness(
    seed: int,
    step: int = 0,
    *,
    batch_size: int | None = None,
    process: int = 0,
    processes: int = 1,
    device: torch.device | str = "cpu",
) -> StepRandomness:
    """What is random in `step`: a function of these arguments and of nothing else."""
    own = step_seed(seed, step)
    return StepRandomness(
        Generator(device).manual_seed(own), Random(own), batch_size, process, processes
    )
