"""Bootstrap interval of a mean over episodes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.stats import bootstrap


def mean_and_interval(values: Float64[np.ndarray, " episode"]) -> tuple[float, float, float]:
    """Mean over episodes, at least 2, and its 95% percentile bootstrap interval.

    >>> mean_and_interval(np.array([1.0, 1.0, 1.0]))
    (1.0, 1.0, 1.0)
    """
    rng = np.random.default_rng(0)
    result = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=rng)
    low, high = result.confidence_interval
    return float(values.mean()), float(low), float(high)
