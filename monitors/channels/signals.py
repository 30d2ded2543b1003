"""What the channels see of one episode, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8


@dataclass(frozen=True, kw_only=True)
class EpisodeSignals:
    """One row per frame. What is not there (no tokenizer, no dynamics model) is None."""

    pooled: Float[np.ndarray, "time d"] | None = None
    """Features of the frame as a whole."""
    positions: Float[np.ndarray, "time *place c"] | None = None
    """Features of every latent position: place is [h, w] or [view, h, w]. None exactly if `pooled`
    is."""
    places: Float64[np.ndarray, " time *place"] | None = None
    """How unfamiliar every position is, once the appearance channel has been asked: scores, trust
    and evidence share the answer."""
    frames: UInt8[np.ndarray, "time *view height width 3"] | None = None
    """The frames themselves, for what looks at colours."""
    confidence: Float[np.ndarray, " time *map"] | None = None
    """Stated confidence in the imagined frame, [h, w], [channel, h, w] or [view, channel, h, w] per
    frame."""
    horizon: Int[np.ndarray, " time"] | None = None
    """How many steps ahead each frame was imagined; 0 where it was not, and its confidence is
    ignored."""
    error_ratio: Float[np.ndarray, " time *map"] | None = None
    """Observed error over the error that was to be expected, of the same frames as `confidence`."""
    actions: Float[np.ndarray, "time recent a"] | None = None
    """The action commanded at each frame and those before it (`recent_actions`); NaN: unknown."""

    def __post_init__(self) -> None:
        if (self.pooled is None) != (self.positions is None):
            raise ValueError("`pooled` and `positions` come together: give both or neither.")
        if (self.confidence is None) != (self.horizon is None):
            raise ValueError("`confidence` and `horizon` come together: give both or neither.")
        if self.error_ratio is not None and self.horizon is None:
            raise ValueError("`error_ratio` comes only with `confidence` and `horizon`.")
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
        """Which frames were imagined, their confidence and their horizons; None if none was."""
        if self.confidence is None or self.horizon is None or not self.horizon.any():
            return None
        rows = self.horizon > 0
        return rows, self.confidence[rows], self.horizon[rows]


def stacked(
    episodes: Sequence[EpisodeSignals],
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n *place c"]]:
    """Pooled and per-position features of all frames of all episodes."""
    pooled = [episode.pooled for episode in episodes if episode.pooled is not None]
    positions = [episode.positions for episode in episodes if episode.positions is not None]
    return np.concatenate(pooled), np.concatenate(positions)
