"""Random numbers of a training step, independent of the number of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float
from torch import Generator, Tensor


@dataclass(frozen=True)
class StepRandomness:
    """Random numbers of one step on one process.

    Every process has the same generators, draws per-item numbers for the whole batch and keeps
    those of its own items.
    """

    generator: Generator
    """Generator of per-item numbers, on the device that needs them."""
    random: Random
    """Generator of decisions about the whole batch."""
    batch_size: int | None = None
    """Items over all processes; None: a single process."""
    process: int = 0
    processes: int = 1

    def per_item(self, num_items: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Call `draw` for the items of the whole batch; returns the rows of this process."""
        rows = draw(self.batch_size or num_items)[self.process :: self.processes]
        assert len(rows) == num_items, "`num_items` must be the number of this process's items"
        return rows

    def uniform(self, num_items: int) -> Tensor:
        """Uniform random number in [0, 1) per item."""
        device = self.generator.device
        return self.per_item(
            num_items, lambda n: torch.rand(n, generator=self.generator, device=device)
        )

    def frame_uniform(
        self, x: Float[Tensor, "batch time view channel h w"]
    ) -> Float[Tensor, "batch time 1 1 1 1"]:
        """Uniform random number in [0, 1) per frame."""
        shape, device = (x.shape[1], 1, 1, 1, 1), self.generator.device
        drawn = self.per_item(
            len(x), lambda n: torch.rand((n, *shape), generator=self.generator, device=device)
        )
        return drawn.to(x)

    def normal_like(self, x: Tensor, *, num_items: int | None = None) -> Tensor:
        """Standard normal noise of the shape of `x`, whose rows are in the order of the items.

        The rows are split evenly over `num_items` items; None: one row per item.
        """
        count = len(x) if num_items is None else num_items
        shape = (len(x) // count, *x.shape[1:])
        device = self.generator.device
        noise = self.per_item(
            count, lambda n: torch.randn((n, *shape), generator=self.generator, device=device)
        )
        return noise.reshape(x.shape).to(x)

    def seeds(self, num_items: int) -> list[int]:
        """Random seed per item."""
        device = self.generator.device
        return self.per_item(
            num_items,
            lambda n: torch.randint(2**31, (n,), generator=self.generator, device=device),
        ).tolist()


def step_seed(seed: int, step: int) -> int:
    """Seed of one step of a run."""
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
    """Random numbers of `step`, a function of these arguments alone."""
    seed = step_seed(seed, step)
    return StepRandomness(
        Generator(device).manual_seed(seed), Random(seed), batch_size, process, processes
    )
