"""Input signals of the channels for one episode, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8


@dataclass(frozen=True, kw_only=True)
class EpisodeSignals:
    """Signals of one episode, one row per frame; None where a signal is not available."""

    pooled: Float[np.ndarray, "time d"] | None = None
    """Pooled features of each frame."""
    positions: Float[np.ndarray, "time *place c"] | None = None
    """Features of each latent position: place is [h, w] or [view, h, w]. Required with `pooled`."""
    places: Float64[np.ndarray, " time *place"] | None = None
    """Appearance scores of each position, filled in once and shared by scores, trust map and
    evidence."""
    frames: UInt8[np.ndarray, "time *view height width 3"] | None = None
    """Camera frames, for the colour channel."""
    absences: Float64[np.ndarray, "time view anchor"] | None = None
    """Distance of each familiar colour over the last frames (`colour.running_minimum`), filled in
    from `frames`."""
    confidence: Float[np.ndarray, " time *map"] | None = None
    """Confidence in the imagined frame, [h, w], [channel, h, w] or [view, channel, h, w] per
    frame."""
    horizon: Int[np.ndarray, " time"] | None = None
    """Prediction horizon of each frame in steps; 0: not imagined, and confidence is ignored."""
    error_ratio: Float[np.ndarray, " time *map"] | None = None
    """Observed over expected error, for the same frames as `confidence`."""
    actions: Float[np.ndarray, "time recent a"] | None = None
    """Actions commanded at each frame and before it (`recent_actions`); NaN: unknown."""

    def __post_init__(self) -> None:
        if (self.pooled is None) != (self.positions is None):
            raise ValueError("`pooled` and `positions` must be given together, or neither.")
        if (self.confidence is None) != (self.horizon is None):
            raise ValueError("`confidence` and `horizon` must be given together, or neither.")
        if self.error_ratio is not None and self.horizon is None:
            raise ValueError("`error_ratio` needs `confidence` and `horizon`.")
        lengths = {len(rows) for rows in vars(self).values() if rows is not None}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"All signals need the same number of frames, at least 1, got {sorted(lengths)}."
            )
        if self.horizon is not None and self.horizon.min() < 0:
            raise ValueError(f"`horizon` must be 0 or more, got {self.horizon.min()}.")

    def __len__(self) -> int:
        return next(len(rows) for rows in vars(self).values() if rows is not None)

    def imagined(
        self,
    ) -> (
        tuple[Bool[np.ndarray, " time"], Float[np.ndarray, " n *map"], Int[np.ndarray, " n"]] | None
    ):
        """Mask of imagined frames, their confidence and their horizons; None if there are none."""
        if self.confidence is None or self.horizon is None or not self.horizon.any():
            return None
        rows = self.horizon > 0
        return rows, self.confidence[rows], self.horizon[rows]


def stacked(
    episodes: Sequence[EpisodeSignals],
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n *place c"]]:
    """Concatenate pooled and per-position features of all episodes."""
    pooled = [episode.pooled for episode in episodes if episode.pooled is not None]
    positions = [episode.positions for episode in episodes if episode.positions is not None]
    return np.concatenate(pooled), np.concatenate(positions)
