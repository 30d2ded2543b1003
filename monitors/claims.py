"""Predictions of the next frame, as a world model hands them to the monitor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, UInt8


@dataclass(frozen=True)
class PredictionCheck:
    """A world model's prediction of one frame: its confidence, and how large its error was."""

    confidence: Float[np.ndarray, "*map"]
    """P(error <= epsilon) per subpatch: [h, w], [channel, h, w] or [view, channel, h, w]."""
    horizon: int
    """Prediction horizon in steps, 1 or more."""
    error_ratio: Float[np.ndarray, "*map"] | None = None
    """Observed over expected error per subpatch (`channels.surprise.error_ratio`); None: the
    surprise channel does not run."""


@runtime_checkable
class Claims(Protocol):
    """A world model that runs beside the monitor and predicts the next frame."""

    def observe(
        self, frame: UInt8[np.ndarray, "*view height width 3"], action: Float64[np.ndarray, " a"]
    ) -> PredictionCheck | None:
        """Check the prediction of this frame; None if there was none. Unknown actions are NaN."""

    def imagine(self, executed: Float64[np.ndarray, " a"] | None = None) -> None:
        """Predict the next frame now, unless done; `executed`: the action actually executed."""

    def reset(self) -> None:
        """Start a new episode, or resume after a gap."""

    def sibling(self) -> Claims:
        """Copy with its own episode state, for another robot."""
