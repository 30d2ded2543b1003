"""Appearance channel: does this frame look like the frames the model was trained on?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64

from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.gaussian import ledoit_wolf, whitened_distance, whitening

RIDGE = 1e-2
"""Added to every variance, in units of the feature's overall variance: a position (say, static
background) that hardly varies in the reference must not raise an alarm over a hundredth of the
usual variation."""

USUAL_QUANTILE = 0.99
"""Share of the reference frames' positions whose score counts as usual in a trust map."""
LEARNED = (
    "scale_",
    "mean_",
    "whitener_",
    "position_scale_",
    "position_mean_",
    "position_whitener_",
    "usual_position_",
)


class AppearanceChannel:
    """Mahalanobis distance of a frame to the reference frames, as a whole and per position.

    Features are scaled to unit variance; covariances are shrunk as Ledoit and Wolf (2004) do it. A
    score is the distance divided by the square root of the number of features: about 1 for a
    familiar frame, higher when more surprising.
    """

    def fit(
        self,
        pooled: Float[np.ndarray, "n d"],
        positions: Float[np.ndarray, "n *place c"],
    ) -> AppearanceChannel:
        """Learn from reference frames: features of the whole and of every latent position."""
        if len(pooled) < 2 or len(pooled) != len(positions):
            raise ValueError(
                "`pooled` and `positions` need one row per reference frame and at least 2 frames, "
                f"got {len(pooled)} and {len(positions)} rows."
            )
        rows = _finite("pooled", pooled)
        self.scale_ = _spread(rows.std(axis=0))
        self.mean_, covariance = ledoit_wolf(rows / self.scale_)
        self.whitener_ = whitening(covariance + RIDGE * np.eye(rows.shape[-1]))
        self._fit_positions(_finite("positions", positions))
        return self

    def _fit_positions(self, positions: Float64[np.ndarray, "n *place c"]) -> None:
        c = positions.shape[-1]
        self.position_scale_ = _spread(positions.std(axis=tuple(range(positions.ndim - 1))))
        scaled = np.moveaxis(positions / self.position_scale_, 0, -2)
        self.position_mean_, covariance = ledoit_wolf(scaled)
        self.position_whitener_ = whitening(covariance + RIDGE * np.eye(c))
        self.usual_position_ = np.quantile(self.position_scores(positions), USUAL_QUANTILE)

    def score(self, pooled: Float[np.ndarray, "*time d"]) -> Float64[np.ndarray, "*time"]:
        """How unfamiliar each frame is as a whole."""
        require_fitted(self, "mean_")
        _same_shape("pooled", pooled.shape[-1:], self.mean_.shape)
        return whitened_distance(
            _finite("pooled", pooled) / self.scale_ - self.mean_, self.whitener_
        )

    def position_scores(
        self, positions: Float[np.ndarray, "*time_place c"]
    ) -> Float64[np.ndarray, "*time_place"]:
        """How unfamiliar each latent position of each frame is."""
        require_fitted(self, "position_mean_")
        place = self.position_mean_.ndim
        _same_shape("positions", positions.shape[-place:], self.position_mean_.shape)
        scaled = _finite("positions", positions) / self.position_scale_
        return whitened_distance(scaled - self.position_mean_, self.position_whitener_)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "mean_")
        return {name: np.asarray(getattr(self, name)) for name in LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> AppearanceChannel:
        """The inverse of `arrays`."""
        channel = cls()
        for name in LEARNED:
            setattr(channel, name, arrays[name])
        return channel


def _finite(name: str, features: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    if not np.isfinite(features).all():
        raise ValueError(f"`{name}` holds NaN or infinite features.")
    return features.astype(np.float64)


def _spread(deviation: Float64[np.ndarray, " d"]) -> Float64[np.ndarray, " d"]:
    """Standard deviations with 1 in place of 0: a feature that never varied keeps its own unit."""
    return np.where(deviation > 0, deviation, 1.0)


def _same_shape(name: str, shape: tuple[int, ...], fitted: tuple[int, ...]) -> None:
    if shape != fitted:
        raise ValueError(f"`{name}` must end in the shape {fitted} it was fitted on, got {shape}.")
