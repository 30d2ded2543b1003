"""Scores and levels of an episode that was judged offline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from worldmodel.monitors.channels.channel_set import Scores


@dataclass(frozen=True)
class WatchedEpisode:
    """Output of the monitor for a recorded episode, one row per frame."""

    scores: Scores
    alarm_score: Float64[np.ndarray, " time"]
    """Largest standardised score; compared with the thresholds."""
    levels: Int[np.ndarray, " time"]
    """`Level` after hysteresis."""
