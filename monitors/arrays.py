"""Validation of input arrays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64


def require_probabilities(confidence: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
    """Convert to float64 in [0, 1]; raise on NaN or values outside."""
    stated = confidence.astype(np.float64)
    if not np.all((stated >= -ROUNDING) & (stated <= 1 + ROUNDING)):  # catches NaN too
        raise ValueError(
            "`confidence` must hold probabilities in [0, 1]; it holds other numbers or NaN."
        )
    return stated.clip(0.0, 1.0)


ROUNDING = 1e-6
"""Values at most this far outside [0, 1] count as rounding errors and are clipped."""
