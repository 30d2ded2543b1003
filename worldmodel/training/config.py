"""How one stage is trained, and how its arithmetic is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise


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
    curriculum: tuple[tuple[float, int], ...] = ()
    """(share of the steps, frames): from that share of the steps on, clips are cut to so many
    frames, somewhere in them; empty: clips stay whole."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    validate_every: int = 200
    """Steps between looks at held-out clips; the last step is always followed by one."""
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
        """Share of the peak rate at `step`."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))

    def clip_frames(self, step: int) -> int | None:
        """Frames that clips are cut to at `step`; None: they stay whole.

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
    """How the arithmetic is done: this changes speed and memory, and the result by rounding."""

    precision: str = "no"
    """"no" (float32) or "bf16" (matrix products in bfloat16, weights in float32)."""
    checkpoint_blocks: bool = False
    """Compute each block of the dynamics again on the way back instead of keeping what is in it:
    much less memory, about a third more time."""
    compile_blocks: bool = False
    """`torch.compile` each block of the dynamics: pays on a GPU, after minutes of compiling."""

    def __post_init__(self) -> None:
        if self.precision not in ("no", "bf16"):
            raise ValueError(f'`precision` must be "no" or "bf16", got {self.precision!r}.')
