"""Uncertainty decomposition of imagined rollouts: aleatoric (intent) and epistemic (model).

After S-QUBED (Mei et al. 2025, arXiv:2510.02571), h(V | l) = h(V | Z) + h(Z | l), with l the
intent, Z action sequences that follow it and V the rollouts imagined under each. h(Z | l) is
called aleatoric, h(V | Z) epistemic. Both are entropies of von Mises-Fisher distributions on the
unit sphere, fitted to embeddings, in nats.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from numpy.polynomial import Polynomial

Numbers = float | Float64[np.ndarray, "*numbers"]
Kappa = Numbers
"""Concentration: 0 is uniform on the sphere; the spread per axis is 1 / sqrt(kappa) if large."""

MAX_KAPPA = 1e8
"""Largest concentration, a spread of 1e-4 radian per axis: gives identical embeddings a finite
entropy."""
EXPANSION_ORDER = 40
"""Smallest Bessel order for the expansion; smaller orders follow by recurrence."""
EXPANSION_TERMS = 8


@functools.cache
def expansion(order: float) -> tuple[Polynomial, Polynomial]:
    """Polynomials in t: sums over k of u_k / order^k, and of (u_k / 2 + t u_k') / order^k.

    The u_k are those of Abramowitz and Stegun 9.3.9, from their recurrence 9.3.10.
    """
    u, t = Polynomial([1.0]), Polynomial([0.0, 1.0])
    total = slopes = Polynomial([0.0])
    for k in range(EXPANSION_TERMS):
        total = total + u / order**k
        slopes = slopes + (u / 2 + t * u.deriv()) / order**k
        u = (t**2 - t**4) * u.deriv() / 2 + ((1 - 5 * t**2) * u).integ() / 8
    return total, slopes


def scaled_bessel(order: float, x: Numbers) -> tuple[Numbers, Numbers]:
    """log(I_v(x) x^-v e^-x) and I_{v+1}(x) / (x I_v(x)), both finite from x = 0 on.

    Uniform expansion of Abramowitz and Stegun 9.7.7 and 9.7.9 at an order of at least
    `EXPANSION_ORDER`, arranged to avoid cancellation; then downward recurrence, which is stable.
    """
    steps = max(0, math.ceil(EXPANSION_ORDER - order))
    v, x = order + steps, np.asarray(x, dtype=np.float64)
    root = np.hypot(v, x)
    total, slopes = (terms(v / root) for terms in expansion(v))
    ratio = 1 / (root + v) - slopes / (root**2 * total)
    log = v**2 / (root + x) - v * np.log(v + root) + np.log(total) - np.log(2 * np.pi * root) / 2
    for _ in range(steps):
        ratio = 1 / (2 * v + x**2 * ratio)
        log, v = log - np.log(ratio), v - 1
    return log, ratio


def mean_resultant(kappa: Kappa, dim: int) -> Numbers:
    """Mean resultant length at a concentration: A(kappa) = I_{d/2} / I_{d/2-1}.

    >>> round(float(mean_resultant(1.0, 3)), 6)  # coth(1) - 1
    0.313035
    """
    return kappa * scaled_bessel(dim / 2 - 1, kappa)[1]


def log_normalizer(kappa: Kappa, dim: int) -> Numbers:
    """Log of C such that C exp(kappa <mean, x>) is a density on the sphere in `dim` dimensions.

    >>> round(float(log_normalizer(0.0, 3)), 6), round(-math.log(4 * math.pi), 6)
    (-2.531024, -2.531024)
    """
    return -dim / 2 * math.log(2 * math.pi) - scaled_bessel(dim / 2 - 1, kappa)[0] - kappa


def entropy(kappa: Kappa, dim: int) -> Numbers:
    """Differential entropy in nats; at most the log of the sphere's surface.

    >>> round(float(entropy(0.0, 3)), 6)  # log(4 pi)
    2.531024
    """
    log, ratio = scaled_bessel(dim / 2 - 1, kappa)
    return dim / 2 * math.log(2 * math.pi) + log + kappa * (1 - kappa * ratio)


def concentration(resultant: Numbers, dim: int) -> Kappa:
    """Maximum-likelihood kappa for a mean resultant length, at most `MAX_KAPPA`.

    Starts from r (d - r^2) / (1 - r^2) of Banerjee et al. 2005 and corrects it by fixed-point
    iteration. Newton's method (Sra 2012) loses all digits of its slope beyond kappa = 1e7.

    >>> round(float(concentration(mean_resultant(1e5, 512), 512)))
    100000
    """
    r = np.clip(resultant, 0, 1 - 1e-12)
    start = r * (dim - r**2) / (1 - r**2)
    kappa = np.minimum(start, MAX_KAPPA)
    for _ in range(12):
        ratio = scaled_bessel(dim / 2 - 1, kappa)[1]
        reached = kappa * ratio
        kappa = np.minimum(start * (1 - reached**2) / (ratio * (dim - reached**2)), MAX_KAPPA)
    return kappa


def unit_vectors(embeddings: Float[np.ndarray, "*batch dim"]) -> Float64[np.ndarray, "*batch dim"]:
    """Normalise embeddings to length 1.

    Raises:
        ValueError: fewer than two dimensions, NaN or infinity, or a zero vector.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.shape[-1] < 2:
        raise ValueError(
            f"`embeddings` need at least 2 dimensions to have a direction, got "
            f"{embeddings.shape[-1]}."
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("`embeddings` must be finite, got NaN or infinity.")
    length = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if (length == 0).any():
        raise ValueError("`embeddings` must not be zero vectors: they have no direction.")
    return embeddings / length


def mean_cosine(
    cosines: Float64[np.ndarray, "*batch n n"], counts: Float[np.ndarray, "*draws n"]
) -> Numbers:
    """Mean cosine between distinct samples, weighted by `counts`."""
    off_diagonal = cosines * (1 - np.eye(cosines.shape[-1]))
    pairs = counts.sum(-1) ** 2 - (counts**2).sum(-1)
    return np.einsum("...i,...ij,...j->...", counts, off_diagonal, counts) / pairs


def direction_entropy(
    embeddings: Float[np.ndarray, "*batch n dim"], counts: Float[np.ndarray, "*draws n"]
) -> Numbers:
    """Entropy of the von Mises-Fisher distribution fitted to embeddings, in nats.

    The mean resultant length is the square root of the mean cosine between distinct samples; unlike
    the length of the sample mean, it is not biased upwards for few samples.
    """
    unit, dim = unit_vectors(embeddings), embeddings.shape[-1]
    cosines = mean_cosine(unit @ np.swapaxes(unit, -1, -2), counts)
    return entropy(concentration(np.sqrt(np.maximum(cosines, 0)), dim), dim)


Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Entropies in nats with 95% bootstrap intervals over sequences.

    Compare them only between embeddings of the same kind and dimension: an entropy of directions
    may be negative, and its zero has no meaning.
    """

    aleatoric: float
    """h(Z | l): spread of the intent's action sequences."""
    aleatoric_interval: Interval
    epistemic: float
    """h(V | Z): spread of rollouts over seeds, averaged over sequences."""
    epistemic_interval: Interval
    total: float
    """Their sum, h(V | l)."""
    total_interval: Interval
    num_sequences: int
    num_seeds: int
    """Rollouts per sequence."""


def decompose(
    intents: Float[np.ndarray, "intent intent_dim"],
    rollouts: Float[np.ndarray, "sequence seed dim"],
    *,
    rng: np.random.Generator,
    num_resamples: int = 500,
) -> Decomposition:
    """Split the uncertainty of rollouts under one intent.

    Args:
        intents: Embeddings of action sequences drawn from the intent.
        rollouts: Embeddings of rollouts of each sequence, several seeds each.
        rng: Generator of the bootstrap over sequences.
        num_resamples: Number of resamples.

    Raises:
        ValueError: fewer than two sequences or seeds, or embeddings without a direction.
    """
    num_sequences, num_seeds = rollouts.shape[:2]
    if len(intents) != num_sequences:
        raise ValueError(
            f"`rollouts` must hold one row per intent, got {num_sequences} and {len(intents)}."
        )
    if num_sequences < 2 or num_seeds < 2:
        raise ValueError(
            "`rollouts` needs at least 2 sequences of 2 seeds each to have a spread, got "
            f"{num_sequences} of {num_seeds}."
        )
    draws = rng.integers(num_sequences, size=(num_resamples, num_sequences))
    counts = np.stack([np.bincount(draw, minlength=num_sequences) for draw in draws])
    counts = np.concatenate((np.ones((1, num_sequences)), counts[(counts > 0).sum(1) > 1]))
    aleatoric = np.asarray(direction_entropy(intents, counts))
    per_sequence = direction_entropy(rollouts, np.ones(num_seeds))
    epistemic = counts @ per_sequence / num_sequences
    total = aleatoric + epistemic
    return Decomposition(
        aleatoric=float(aleatoric[0]),
        aleatoric_interval=interval(aleatoric[1:]),
        epistemic=float(epistemic[0]),
        epistemic_interval=interval(epistemic[1:]),
        total=float(total[0]),
        total_interval=interval(total[1:]),
        num_sequences=num_sequences,
        num_seeds=num_seeds,
    )


def interval(values: Float[np.ndarray, " n"]) -> Interval:
    """95% percentile interval of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
