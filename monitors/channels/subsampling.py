"""A small set of points that stands for a large one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

ROUNDS = 8
"""Rounds of drawing; each sees the points that the earlier ones chose."""


def distance_sample(
    points: Float64[np.ndarray, "n d"], size: int, *, rng: np.random.Generator
) -> Float64[np.ndarray, "m d"]:
    """About `size` of the points, drawn by squared distance to those drawn before.

    This is the seeding of k-means|| (Bahmani et al. 2012). Unlike an even draw it keeps what is
    rare, such as the one small object on a large table.
    """
    from scipy.spatial import KDTree

    if len(points) <= size:
        return points
    each = -(-size // ROUNDS)
    chosen = rng.choice(len(points), each, replace=False)
    distance = np.full(len(points), np.inf)
    for _ in range(ROUNDS - 1):
        newest = KDTree(points[chosen[-each:]])
        distance = np.minimum(distance, newest.query(points)[0])
        draw = min(each, int(np.count_nonzero(distance)))
        if draw == 0:  # every point is chosen, or equals one that is
            break
        weight = distance**2 / (distance**2).sum()
        chosen = np.append(chosen, rng.choice(len(points), draw, replace=False, p=weight))
    return points[chosen]
