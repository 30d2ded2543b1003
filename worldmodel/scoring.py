"""Strictly proper scoring rules: smallest in expectation at the true probability, and only there.

Gneiting & Raftery 2007, "Strictly proper scoring rules, prediction, and estimation". All are losses
(lower is better), elementwise, without reduction.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

PROBABILITY_FLOOR = 1e-6
"""Probabilities are kept this far from 0 and 1 inside logarithms."""


def brier(probability: Tensor, outcome: Tensor) -> Tensor:
    """(p - y)², with y in {0, 1}.

    >>> brier(torch.tensor([0.75]), torch.tensor([1.0]))
    tensor([0.0625])
    """
    return (probability - outcome).square()


def logarithmic(probability: Tensor, outcome: Tensor) -> Tensor:
    """-y log p - (1 - y) log(1 - p), in nats.

    >>> logarithmic(torch.tensor([0.5]), torch.tensor([1.0]))
    tensor([0.6931])
    """
    p = probability.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -(outcome * p.log() + (1 - outcome) * (1 - p).log())


def threshold_crps(
    cdf: Float[Tensor, "*batch thresholds"],
    thresholds: Float[Tensor, " thresholds"],
    value: Float[Tensor, "*batch"],
    weights: Float[Tensor, " thresholds"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Threshold-weighted continuous ranked probability score on a grid.

    ∫ w(x) (F(x) - 1{value <= x})² dx (Gneiting & Ranjan 2011, Eq. 5), as a sum over `thresholds`
    with `weights` in place of w(x) dx; without `weights`, the trapezoid rule's. It is a weighted
    sum of Brier scores, so it is proper, and strictly proper for the probabilities at the
    thresholds when every weight is positive.
    """
    if weights is None:
        gaps = thresholds.diff()
        ends = gaps.new_zeros(1)
        weights = (torch.cat((gaps, ends)) + torch.cat((ends, gaps))) / 2
    reached = (value[..., None] <= thresholds).to(cdf.dtype)
    return (weights * brier(cdf, reached)).sum(-1)
