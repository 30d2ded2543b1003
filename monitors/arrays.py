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


def require_floats(name: str, values: object) -> Float[np.ndarray, "*any"]:
    """Convert to an array; raise unless it holds real floating-point numbers without a mask.

    NaN and infinity pass; the code that computes with the values checks for them.
    """
    array = np.asarray(values)
    if isinstance(values, np.ma.MaskedArray) or not np.issubdtype(array.dtype, np.floating):
        kind = type(values).__name__
        raise ValueError(f"`{name}` must hold floating-point numbers, got {kind} of {array.dtype}.")
    return array


def require_integer(name: str, number: object) -> int:
    """Convert to int; raise unless it is an integer (a bool is not)."""
    if not isinstance(number, int | np.integer) or isinstance(number, bool):
        raise ValueError(f"`{name}` must be an integer, got {number!r}.")
    return int(number)
