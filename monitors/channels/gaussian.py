"""Whitening with a shrunk covariance, stable for few samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

RIDGE = 1e-2
"""Added to the variance of each standardised feature, so that a direction with almost no variance
does not alarm at a tenth of a feature's standard deviation."""


def ledoit_wolf(samples: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "d d"]:
    """Covariance shrunk towards a multiple of the identity (Ledoit and Wolf 2004).

    The shrinkage weight minimises the expected squared error.
    """
    n, d = samples.shape
    centred = samples - samples.mean(axis=0)
    covariance = centred.T @ centred / n
    target = np.trace(covariance) / d * np.eye(d)
    distance = ((covariance - target) ** 2).sum()
    noise = (((centred**2).sum(axis=1) ** 2).mean() - (covariance**2).sum()) / n
    weight = min(max(noise, 0.0) / distance, 1.0) if distance > 0 else 1.0
    return (1 - weight) * covariance + weight * target


def fit_whitening(
    samples: Float[np.ndarray, "n d"], effects: Sequence[Float[np.ndarray, "_ d"]] = ()
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
    """Mean m and whitening matrix W: W (x - m) has about unit covariance.

    Features are standardised first, so units do not matter; a constant feature keeps its unit.

    Args:
        samples: Familiar features.
        effects: Changes of features by each of several harmless influences. Their second moments
            add to the covariance, so a distance counts less along the directions they move in.
    """
    rows = samples.astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    covariance = ledoit_wolf((rows - mean) / scale) + RIDGE * np.eye(rows.shape[1])
    for effect in effects:
        moved = effect / scale
        covariance += moved.T @ moved / len(moved)
    return mean, np.linalg.inv(np.linalg.cholesky(covariance)) / scale
