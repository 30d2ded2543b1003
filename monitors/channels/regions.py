"""Averages of subpatch maps over channels and windows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64
from numpy.lib.stride_tricks import sliding_window_view


def position_means(
    maps: Float[np.ndarray, " time *map"], *, name: str = "confidence"
) -> Float64[np.ndarray, "time *view h w"]:
    """Mean over channels of maps [h, w], [channel, h, w] or [view, channel, h, w] per frame."""
    if not 3 <= maps.ndim <= 5:
        raise ValueError(
            f"`{name}` must be [h, w], [channel, h, w] or [view, channel, h, w] per frame, "
            f"got shape {maps.shape[1:]}."
        )
    means = maps.mean(axis=-3, dtype=np.float64) if maps.ndim > 3 else maps
    return means.astype(np.float64)


def window_means(
    values: Float[np.ndarray, "*lead h w"], size: int
) -> Float64[np.ndarray, "*lead y x"]:
    """Mean of every `size` x `size` window (smaller where the map is) of the last two axes.

    >>> window_means(np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), 2)
    array([[0.5, 1.5]])
    """
    height, width = values.shape[-2:]
    window = (min(size, height), min(size, width))
    return sliding_window_view(values, window, axis=(-2, -1)).mean(axis=(-2, -1), dtype=np.float64)
