"""What is usual at each horizon of a rollout, and how far a value lies above it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64, Int

from worldmodel.monitors.errors import require_fitted


class HorizonScale:
    """Mean and spread of some values per horizon.

    Between fitted horizons both are interpolated; beyond the longest its own count, which errs on
    the side of distrust.
    """

    def fit(
        self, values: Float[np.ndarray, "n k"], horizon: Int[np.ndarray, " n"], *, floor: float
    ) -> HorizonScale:
        """Learn from nominal episodes; a spread below `floor` is luck of a small sample."""
        self.horizons_ = np.unique(horizon)
        groups = [values[horizon == h].astype(np.float64) for h in self.horizons_]
        self.mean_ = np.stack([group.mean(axis=0) for group in groups])
        self.spread_ = np.stack([group.std(axis=0) for group in groups]).clip(floor)
        return self

    def standardised(
        self, values: Float[np.ndarray, "n k"], horizon: Int[np.ndarray, " n"]
    ) -> Float64[np.ndarray, "n k"]:
        """In standard deviations above the mean."""
        require_fitted(self, "mean_")
        mean, spread = (
            np.stack([np.interp(horizon, self.horizons_, column) for column in table.T], axis=-1)
            for table in (self.mean_, self.spread_)
        )
        return (values - mean) / spread

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "mean_")
        return {"horizons_": self.horizons_, "mean_": self.mean_, "spread_": self.spread_}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> HorizonScale:
        """The inverse of `arrays`."""
        scale = cls()
        scale.horizons_ = arrays["horizons_"]
        scale.mean_, scale.spread_ = arrays["mean_"], arrays["spread_"]
        return scale
