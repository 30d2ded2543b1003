"""Configuration of a training stage: loop, learning rates, precision and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Training loop of one stage."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Items per step, over all processes."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float | None = None
    """Peak learning rate of Muon for hidden matrices; None trains everything with AdamW."""
    warmup: int = 50
    """Steps of linear warm-up; a cosine schedule then decays the rate to 5% of its peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Gradients are clipped to this norm."""
    average_decay: float = 0.999
    """Decay of the exponential moving average of the weights."""
    curriculum: tuple[tuple[float, int], ...] = ()
    """(share of the steps, frames): from that share of the steps on, each batch is cropped to this
    many frames at a random position; empty: full clips."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    validate_every: int = 200
    """Steps between validations on held-out clips; the last step is always validated."""
    keep_best: bool = False
    """End with the averaged weights of the validation that erred least on held-out clips, perhaps
    those before the first step, instead of the last ones. For data of few scenes."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            counts = f"{self.steps} and {self.batch_size}"
            raise ValueError(f"`steps` and `batch_size` must be positive, got {counts}.")
        if self.checkpoint_every < 1 or self.validate_every < 1:
            counts = f"{self.checkpoint_every} and {self.validate_every}"
            raise ValueError(
                f"`checkpoint_every` and `validate_every` must be positive, got {counts}."
            )
        starts = [0.0, *(share for share, _ in self.curriculum), 1.0]
        rises = all(a < b for a, b in pairwise(starts[1:]))
        if self.curriculum and not (starts[1] == 0.0 and rises):
            raise ValueError(
                f"`curriculum` must start at share 0 and rise below 1, got {self.curriculum}."
            )
        if any(num_frames < 2 for _, num_frames in self.curriculum):
            raise ValueError(
                f"`curriculum` needs clips of at least 2 frames, got {self.curriculum}."
            )

    def learning_rate_factor(self, step: int) -> float:
        """Learning rate at `step`, as a share of its peak."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))

    def clip_frames(self, step: int) -> int | None:
        """Number of frames that clips are cropped to at `step`; None: full clips.

        >>> config = LoopConfig(steps=10, batch_size=1, curriculum=((0.0, 4), (0.5, 8)))
        >>> [config.clip_frames(step) for step in (0, 4, 5, 9)]
        [4, 4, 8, 8]
        """
        reached = [
            num_frames for share, num_frames in self.curriculum if step >= share * self.steps
        ]
        return reached[-1] if reached else None


@dataclass(frozen=True, kw_only=True)
class Computing:
    """Numerical precision, activation checkpointing and compilation.

    They change speed and memory, and the result only by rounding.
    """

    precision: str = "no"
    """"no" (float32) or "bf16" (matrix products in bfloat16, weights in float32)."""
    checkpoint_blocks: bool = False
    """Recompute the activations of each dynamics block in the backward pass: much less memory,
    about a third more time."""
    compile_blocks: bool = False
    """`torch.compile` each dynamics block: faster on a GPU, after minutes of compilation."""

    def __post_init__(self) -> None:
        if self.precision not in ("no", "bf16"):
            raise ValueError(f'`precision` must be "no" or "bf16", got {self.precision!r}.')
