"""Standardisation of values per horizon of a rollout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64, Int

from worldmodel.monitors.errors import require_fitted


class HorizonScale:
    """Mean and standard deviation per horizon.

    Interpolated between fitted horizons; constant beyond the longest, which gives larger scores.
    """

    def fit(
        self, values: Float[np.ndarray, "n k"], horizon: Int[np.ndarray, " n"], *, floor: float
    ) -> HorizonScale:
        """Fit to nominal episodes; standard deviations are raised to at least `floor`."""
        self.horizons_ = np.unique(horizon)
        groups = [values[horizon == h].astype(np.float64) for h in self.horizons_]
        self.mean_ = np.stack([group.mean(axis=0) for group in groups])
        self.spread_ = np.stack([group.std(axis=0) for group in groups]).clip(floor)
        return self

    def standardised(
        self, values: Float[np.ndarray, "n k"], horizon: Int[np.ndarray, " n"]
    ) -> Float64[np.ndarray, "n k"]:
        """Values in standard deviations above the mean of their horizon."""
        require_fitted(self, "mean_")
        mean, spread = (
            np.stack([np.interp(horizon, self.horizons_, column) for column in table.T], axis=-1)
            for table in (self.mean_, self.spread_)
        )
        return (values - mean) / spread

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "mean_")
        return {"horizons_": self.horizons_, "mean_": self.mean_, "spread_": self.spread_}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> HorizonScale:
        """Inverse of `arrays`."""
        scale = cls()
        scale.horizons_ = arrays["horizons_"]
        scale.mean_, scale.spread_ = arrays["mean_"], arrays["spread_"]
        return scale
