"""Gaussian fits that stay usable with few samples, and distances under them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64


def ledoit_wolf(
    samples: Float64[np.ndarray, "*group n d"],
) -> tuple[Float64[np.ndarray, "*group d"], Float64[np.ndarray, "*group d d"]]:
    """Mean and covariance, shrunk towards a multiple of the identity (Ledoit and Wolf 2004).

    The weight of the shrinkage is the one that minimises the expected squared error of the
    covariance.
    """
    n, d = samples.shape[-2:]
    mean = samples.mean(axis=-2)
    centred = samples - mean[..., None, :]
    covariance = np.swapaxes(centred, -1, -2) @ centred / n
    variance = np.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / d
    target = variance * np.eye(d)
    fourth = ((centred**2).sum(axis=-1) ** 2).mean(axis=-1)[..., None, None]
    noise = (fourth - _squared_norm(covariance)) / n
    distance = _squared_norm(covariance - target)
    weight = np.divide(noise.clip(0.0), distance, out=np.ones_like(noise), where=distance > 0).clip(
        0, 1
    )
    return mean, (1 - weight) * covariance + weight * target


def whitening(covariance: Float64[np.ndarray, "*group d d"]) -> Float64[np.ndarray, "*group d d"]:
    """The matrix W with W covariance Wᵀ = identity; `covariance` must be positive definite."""
    return np.linalg.inv(np.linalg.cholesky(covariance))


def whitened_distance(
    difference: Float[np.ndarray, "*group d"], whitener: Float64[np.ndarray, "*parts d d"]
) -> Float64[np.ndarray, "*group"]:
    """Mahalanobis distance over the square root of d: about 1 for a sample of the Gaussian."""
    whitened = np.einsum("...ij,...j->...i", whitener, difference)
    return np.sqrt((whitened**2).mean(axis=-1))


def _squared_norm(matrix: Float64[np.ndarray, "*group d d"]) -> Float64[np.ndarray, "*group 1 1"]:
    return (matrix**2).sum(axis=(-2, -1), keepdims=True)
