"""Confidence channel: how low the model's confidence is, compared with nominal episodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64, Int

from worldmodel.monitors.arrays import require_probabilities
from worldmodel.monitors.channels.horizon_scale import HorizonScale
from worldmodel.monitors.channels.regions import position_means, window_means
from worldmodel.monitors.errors import require_fitted

MIN_SPREAD = 0.01
"""Smallest standard deviation of a signal (both lie in [0, 1]); a smaller estimate is sampling
noise."""


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
    """Confidence below that of nominal episodes at the same horizon, in standard deviations.

    Confidence falls with the horizon even in nominal episodes. Both signals, the share of
    low-confidence subpatches and 1 minus the confidence of the worst region, are therefore
    standardised per horizon. The score is the larger of the two.
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
        """Fit to confidence maps of nominal episodes; horizons start at 1."""
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
        """Score per map, in standard deviations."""
        require_fitted(self, "scale_")
        signals = self._signals(confidence)
        if self.map_shape_ is not None and confidence.shape[1:] != tuple(self.map_shape_):
            raise ValueError(
                f"`confidence` must have the shape {tuple(self.map_shape_.tolist())} per frame, "
                f"got {confidence.shape[1:]}."
            )
        return self.scale_.standardised(signals, horizon).max(axis=-1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "scale_")
        learned = self.scale_.arrays()
        if self.map_shape_ is not None:
            learned["map_shape_"] = self.map_shape_
        return learned

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], *, threshold: float, region: int
    ) -> ConfidenceChannel:
        """Inverse of `arrays`, given the constructor's arguments."""
        channel = cls(threshold=threshold, region=region)
        channel.scale_ = HorizonScale.from_arrays(arrays)
        channel.map_shape_ = arrays.get("map_shape_")  # monitors of version 0.1.0 have none
        return channel

    def _signals(self, confidence: Float[np.ndarray, " n *map"]) -> Float64[np.ndarray, "n 2"]:
        confidence = require_probabilities(confidence)
        share = low_confidence_share(confidence, self.threshold)
        return np.stack([share, 1.0 - worst_region(confidence, self.region)], axis=-1)
