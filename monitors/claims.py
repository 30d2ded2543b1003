"""What a world model says of a frame before it comes, as the monitor is given it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, UInt8


@dataclass(frozen=True)
class PredictionCheck:
    """What the monitor needs of the world model's prediction of a frame."""

    confidence: Float[np.ndarray, "*map"]
    """P(error <= epsilon) per subpatch: [h, w], [channel, h, w] or [view, channel, h, w]."""
    horizon: int
    """Steps ahead that the frame was imagined; 1 or more."""
    error_ratio: Float[np.ndarray, "*map"] | None = None
    """`error_ratio` of the same subpatches, now that the real frame is there; None: the surprise
    channel does not run."""


@runtime_checkable
class Claims(Protocol):
    """A world model that runs beside the monitor and claims what the next frame will be."""

    def observe(
        self, frame: UInt8[np.ndarray, "*view height width 3"], action: Float64[np.ndarray, " a"]
    ) -> PredictionCheck | None:
        """What was claimed of this frame; None if nothing was. An unknown action is NaN."""

    def imagine(self, executed: Float64[np.ndarray, " a"] | None = None) -> None:
        """Claim the next frame now, if that is not done; `executed`: the action really taken."""

    def reset(self) -> None:
        """Start a new episode, or go on after a gap."""

    def sibling(self) -> Claims:
        """The same for another robot."""
