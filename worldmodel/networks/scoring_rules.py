"""Strictly proper scoring rules: their expectation has its only minimum at the true probability.

Gneiting & Raftery 2007, "Strictly proper scoring rules, prediction, and estimation". All are losses
(lower is better), elementwise, without reduction. Categorical rules take a distribution along the
last axis and the index of the observed category.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

PROBABILITY_FLOOR = 1e-6
"""Minimum distance of probabilities from 0 and 1 inside logarithms."""


def brier(probability: Tensor, outcome: Tensor) -> Tensor:
    """Brier score (p - y)², with y in {0, 1} (Brier 1950).

    >>> brier(torch.tensor([0.75]), torch.tensor([1.0]))
    tensor([0.0625])
    """
    return (probability - outcome).square()


def logarithmic(probability: Tensor, outcome: Tensor) -> Tensor:
    """Logarithmic score -y log p - (1 - y) log(1 - p), in nats (Good 1952).

    >>> logarithmic(torch.tensor([0.5]), torch.tensor([1.0]))
    tensor([0.6931])
    """
    p = probability.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -(outcome * p.log() + (1 - outcome) * (1 - p).log())


def spherical(probability: Tensor, outcome: Tensor) -> Tensor:
    """Spherical score 1 - q / √(p² + (1 - p)²), q the probability of the outcome; in [0, 1].

    Gneiting & Raftery 2007, Example 3 (Good 1971), as a loss.

    >>> spherical(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 1.0, 1.0]))
    tensor([1.0000, 0.2929, 0.0000])
    """
    other = 1 - probability
    of_outcome = outcome * probability + (1 - outcome) * other
    return 1 - of_outcome / (probability.square() + other.square()).sqrt()


def categorical_brier(
    masses: Float[Tensor, "*batch categories"], category: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Brier score Σ (p_k - 1{k = category})², in [0, 2]; for two categories twice `brier`.

    >>> categorical_brier(torch.tensor([0.5, 0.25, 0.25]), torch.tensor(0))
    tensor(0.3750)
    """
    return masses.square().sum(-1) - 2 * _at(masses, category) + 1


def categorical_logarithmic(
    log_masses: Float[Tensor, "*batch categories"], category: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Logarithmic score -log p_category, in nats, from log probabilities (`log_softmax`).

    >>> categorical_logarithmic(torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor(0))
    tensor(0.6931)
    """
    return -_at(log_masses, category)


def categorical_spherical(
    masses: Float[Tensor, "*batch categories"], category: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Spherical score 1 - p_category / ‖p‖, in [0, 1] (Gneiting & Raftery 2007, Example 3).

    >>> categorical_spherical(torch.tensor([0.6, 0.0, 0.8, 0.0]) / 1.4, torch.tensor(2))
    tensor(0.2000)
    """
    return 1 - _at(masses, category) / masses.square().sum(-1).sqrt()


def ranked_probability(
    masses: Float[Tensor, "*batch categories"], category: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Ranked probability score Σ (F_k - 1{category <= k})², F the cumulative masses (Epstein 1969).

    Categories are ordered: a near miss costs less than a far one. Divided by the number of bounds
    between categories, it equals `threshold_crps` with equal weights.

    >>> ranked_probability(torch.tensor([[0.5, 0.25, 0.25]] * 2), torch.tensor([0, 2]))
    tensor([0.3125, 0.8125])
    """
    bounds = torch.arange(masses.shape[-1] - 1, device=masses.device)
    reached = (category[..., None] <= bounds).to(masses.dtype)
    return brier(masses.cumsum(-1)[..., :-1], reached).sum(-1)


def _at(values: Float[Tensor, "*batch categories"], category: Int[Tensor, "*batch"]) -> Tensor:
    """Value of the given category in each distribution."""
    return values.gather(-1, category[..., None])[..., 0]


def threshold_crps(
    cdf: Float[Tensor, "*batch thresholds"],
    thresholds: Float[Tensor, " thresholds"],
    value: Float[Tensor, "*batch"],
    weights: Float[Tensor, " thresholds"],
) -> Float[Tensor, "*batch"]:
    """Threshold-weighted continuous ranked probability score (CRPS) on a grid.

    ∫ w(x) (F(x) - 1{value <= x})² dx (Gneiting & Ranjan 2011, Eq. 5) as a sum over `thresholds`,
    with `weights` for w(x) dx. It is a weighted sum of Brier scores, so it is proper, and strictly
    proper for the probabilities at the thresholds if every weight is positive.
    """
    reached = (value[..., None] <= thresholds).to(cdf.dtype)
    return (weights * brier(cdf, reached)).sum(-1)
