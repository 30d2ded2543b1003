"""Confidence channel: does the model trust its own prediction?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64, Int

from worldmodel.monitors.arrays import require_probabilities
from worldmodel.monitors.channels.horizon_scale import HorizonScale
from worldmodel.monitors.channels.regions import position_means, window_means
from worldmodel.monitors.errors import require_fitted

MIN_SPREAD = 0.01
"""Smallest standard deviation of a signal (both are shares of 1): less is luck of a small
sample."""


def low_confidence_share(
    confidence: Float[np.ndarray, " time *map"], threshold: float
) -> Float64[np.ndarray, " time"]:
    """Share of each frame's subpatches whose confidence is below `threshold`."""
    low = confidence.reshape(len(confidence), -1) < threshold
    return low.mean(axis=1)


def worst_region(
    confidence: Float[np.ndarray, " time *map"], size: int
) -> Float64[np.ndarray, " time"]:
    """Lowest mean confidence of any `size` x `size` window of latent positions within one view."""
    means = window_means(position_means(confidence), size)
    return means.reshape(len(means), -1).min(axis=1)


class ConfidenceChannel:
    """How far confidence lies below what is usual at the same horizon in nominal episodes.

    Confidence falls with the horizon even when all is well, so both signals (share of
    low-confidence subpatches, distrust of the worst region) are standardised per horizon. The score
    is the larger of the two, in standard deviations.
    """

    def __init__(self, *, threshold: float = 0.5, region: int = 3) -> None:
        if not 0 < threshold < 1 or region < 1:
            raise ValueError(
                "`threshold` must lie in (0, 1) and `region` be at least 1 latent position, "
                f"got {threshold} and {region}."
            )
        self.threshold, self.region = threshold, region

    def fit(
        self, confidence: Float[np.ndarray, " n *map"], horizon: Int[np.ndarray, " n"]
    ) -> ConfidenceChannel:
        """Learn what is usual from confidence maps of nominal episodes; horizons start at 1."""
        if len(confidence) == 0 or len(confidence) != len(horizon) or horizon.min() < 1:
            raise ValueError(
                "`confidence` needs at least one map, and one `horizon` of 1 or more per map."
            )
        self.map_shape_: np.ndarray | None = np.array(confidence.shape[1:])
        signals = self._signals(confidence)
        self.scale_ = HorizonScale().fit(signals, horizon, floor=MIN_SPREAD)
        return self

    def score(
        self, confidence: Float[np.ndarray, " n *map"], horizon: Int[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """Standard deviations of distrust above the usual, per map; higher is more surprising."""
        require_fitted(self, "scale_")
        signals = self._signals(confidence)
        if self.map_shape_ is not None and confidence.shape[1:] != tuple(self.map_shape_):
            raise ValueError(
                f"`confidence` must have the shape {tuple(self.map_shape_.tolist())} per frame, "
                f"got {confidence.shape[1:]}."
            )
        return self.scale_.standardised(signals, horizon).max(axis=-1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "scale_")
        learned = self.scale_.arrays()
        if self.map_shape_ is not None:
            learned["map_shape_"] = self.map_shape_
        return learned

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], *, threshold: float, region: int
    ) -> ConfidenceChannel:
        """The inverse of `arrays`, given the constructor's arguments."""
        channel = cls(threshold=threshold, region=region)
        channel.scale_ = HorizonScale.from_arrays(arrays)
        channel.map_shape_ = arrays.get("map_shape_")  # monitors of version 0.1.0 have none
        return channel

    def _signals(self, confidence: Float[np.ndarray, " n *map"]) -> Float64[np.ndarray, "n 2"]:
        confidence = require_probabilities(confidence)
        share = low_confidence_share(confidence, self.threshold)
        return np.stack([share, 1.0 - worst_region(confidence, self.region)], axis=-1)
