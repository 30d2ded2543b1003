"""Surprise channel: prediction error relative to the error the model expected."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64, Int

from worldmodel.monitors.channels.horizon_scale import HorizonScale
from worldmodel.monitors.channels.regions import position_means
from worldmodel.monitors.errors import require_fitted

REGION_SHARE = 1 / 8
"""Share of a frame's positions, the most surprising ones, over which its score is averaged."""
MIN_SPREAD = 0.05
"""Smallest standard deviation of a score; ratios are of order 1."""
LARGEST_RATIO = 1e6
"""Ratios are clipped here, so that an expected error of 0 gives a finite ratio."""


def error_ratio(
    error: Float[np.ndarray, "*map"],
    confidence: Float[np.ndarray, "*map levels"],
    epsilons: Float[np.ndarray, " levels"],
) -> Float64[np.ndarray, "*map"]:
    """Observed error over the expected error of the predicted distribution; 1 is as predicted.

    The expected error is the integral of 1 - P(error <= e) up to the largest epsilon. Unlike the
    probability integral transform, the ratio does not saturate when an error exceeds every epsilon,
    and it detects more changes (comparison in docs/monitor.md).

    Args:
        error: Absolute difference of the imagined and the real latent.
        confidence: P(error <= epsilon) for each epsilon, in increasing order of epsilon.
        epsilons: Tolerances in the unit of the error, above 0.
    """
    steps = np.diff(epsilons, prepend=0.0)
    stated = confidence.astype(np.float64)
    before = np.concatenate([np.zeros_like(stated[..., :1]), stated[..., :-1]], axis=-1)
    expected = ((1 - (stated + before) / 2) * steps).sum(axis=-1)
    floor = 0.1 * epsilons[0]
    return (error / (expected + floor)).clip(0, LARGEST_RATIO)


class SurpriseChannel:
    """Error ratio above that of nominal episodes at the same horizon.

    The score of a frame is the mean ratio of its most surprising positions, in standard deviations
    above the mean of nominal frames at the same horizon.
    """

    def fit(
        self, ratio: Float[np.ndarray, " n *map"], horizon: Int[np.ndarray, " n"]
    ) -> SurpriseChannel:
        """Fit to nominal episodes.

        Args:
            ratio: `error_ratio` per subpatch.
            horizon: Prediction horizon of each frame, 1 or more.
        """
        if len(ratio) == 0 or len(ratio) != len(horizon) or horizon.min() < 1:
            raise ValueError(
                "`ratio` needs at least one map, and one `horizon` of 1 or more per map."
            )
        self.scale_ = HorizonScale().fit(_worst(ratio)[:, None], horizon, floor=MIN_SPREAD)
        return self

    def score(
        self, ratio: Float[np.ndarray, " n *map"], horizon: Int[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """Score per frame, in standard deviations."""
        require_fitted(self, "scale_")
        return self.scale_.standardised(_worst(ratio)[:, None], horizon)[:, 0]

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "scale_")
        return self.scale_.arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SurpriseChannel:
        """Inverse of `arrays`."""
        channel = cls()
        channel.scale_ = HorizonScale.from_arrays(arrays)
        return channel


def _worst(ratio: Float[np.ndarray, " n *map"]) -> Float64[np.ndarray, " n"]:
    if not np.isfinite(ratio).all() or (ratio < 0).any():
        raise ValueError("`ratio` must hold finite numbers of 0 or more.")
    flat = position_means(ratio, name="ratio").reshape(len(ratio), -1)
    count = max(1, round(REGION_SHARE * flat.shape[1]))
    return np.sort(flat, axis=1)[:, -count:].mean(axis=1)
