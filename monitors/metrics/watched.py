"""Scores and levels of a recorded episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from worldmodel.monitors.channels.channel_set import Scores


@dataclass(frozen=True)
class WatchedEpisode:
    """What the monitor made of a recorded episode, one row per frame."""

    scores: Scores
    alarm_score: Float64[np.ndarray, " time"]
    """Largest standardised score: what the thresholds are compared with."""
    levels: Int[np.ndarray, " time"]
    """`Level` after hysteresis."""
