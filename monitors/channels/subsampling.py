"""Coreset subsampling."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

ROUNDS = 8
"""Sampling rounds; each depends on the points chosen before."""


def distance_sample(
    points: Float64[np.ndarray, "n d"], size: int, *, rng: np.random.Generator
) -> Float64[np.ndarray, "m d"]:
    """Coreset of about `size` points, sampled by squared distance to the points chosen before.

    This is the seeding of k-means|| (Bahmani et al. 2012). Unlike uniform sampling it keeps rare
    points, such as those of one small object on a large table.
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
        if draw == 0:  # all remaining points are duplicates of chosen ones
            break
        weight = distance**2 / (distance**2).sum()
        chosen = np.append(chosen, rng.choice(len(points), draw, replace=False, p=weight))
    return points[chosen]
