"""Checks of arrays that the monitor is given."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64


def require_probabilities(confidence: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
    """The same numbers in float64 and in [0, 1]; anything that is no probability is refused."""
    stated = confidence.astype(np.float64)
    if not np.all((stated >= -ROUNDING) & (stated <= 1 + ROUNDING)):  # catches NaN too
        raise ValueError(
            "`confidence` must be a probability in [0, 1]; it holds other numbers or NaN."
        )
    return stated.clip(0.0, 1.0)


ROUNDING = 1e-6
"""A confidence this far outside [0, 1] is taken for a rounding error of its producer and
clipped."""
