"""Confidence heads: for every subpatch, the probability that its error is at most ε.

The error is the absolute difference between a generated and the true final latent, in latent
standard deviations.

Every head has `confidence` and `loss`, and takes features [batch, tokens, dim], the horizon in
frames [batch] and errors [batch, tokens, channel]. The loss is a mean over the tokens `counted`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from worldmodel.networks.c3_heads import ContinuousScale, FixedScale
from worldmodel.networks.head_trunk import (
    EPSILONS,
    RULES,
    ConfidenceConfig,
    Familiarity,
    Trunk,
    TrunkAndOutput,
    mean_over,
)
from worldmodel.networks.scoring_rules import (
    categorical_brier,
    categorical_logarithmic,
    categorical_spherical,
    ranked_probability,
    threshold_crps,
)

__all__ = [
    "EPSILONS",
    "HEADS",
    "RULES",
    "ConfidenceConfig",
    "ContinuousScale",
    "Distribution",
    "Familiarity",
    "FixedScale",
    "Head",
    "MultiClass",
    "Trunk",
    "build_head",
    "mean_over",
    "shares_below",
]

CATEGORICAL = {
    "brier": categorical_brier,
    "spherical": categorical_spherical,
    "rps": ranked_probability,
}
"""Scoring rules of a distribution over intervals, but for the two that need more than masses."""


def shares_below(
    levels: Float[Tensor, " levels"], epsilon: Float[Tensor, " epsilons"], *, log: bool
) -> Float[Tensor, "intervals epsilons"]:
    """Share of each interval's mass that counts as error <= ε; the first ends at the first level.

    Between levels the mass lies evenly over the logarithm of the error, or over the error itself;
    below the first level evenly over the error, down to 0; above the last, P(error > ε) falls as
    1 / ε.

    >>> shares_below(torch.tensor([1.0, 4.0]), torch.tensor([0.5, 2.0, 8.0]), log=True)
    tensor([[0.5000, 1.0000, 1.0000],
            [0.0000, 0.5000, 1.0000],
            [0.0000, 0.0000, 0.5000]])
    """
    epsilon = epsilon.to(levels).clamp_min(0)
    at, place = (epsilon.log(), levels.log()) if log else (epsilon, levels)
    between = (at - place[:-1, None]) / place.diff()[:, None]
    first, last = epsilon / levels[0], 1 - levels[-1] / epsilon
    return torch.cat((first[None], between, last[None])).clamp(0, 1)


class Intervals(TrunkAndOutput):
    """A distribution over the intervals between error levels, per subpatch, from one pass.

    Its cumulative distribution answers for every ε, and is monotone in it by construction: 0 at
    ε = 0 and 1 as ε grows.
    """

    levels: Tensor
    log_spaced: bool

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig, levels: int) -> None:
        super().__init__(dim, channels, config, numbers=levels + 1)
        self.rule = config.rule

    def cdf(
        self, features: Tensor, horizon: Tensor
    ) -> Float[Tensor, "batch tokens channel levels"]:
        """P(error <= level) at the head's own levels."""
        return self.numbers(features, horizon).softmax(-1).cumsum(-1)[..., :-1].clamp(0, 1)

    def confidence(
        self, features: Tensor, horizon: Tensor, epsilon: Float[Tensor, " levels"]
    ) -> Float[Tensor, "batch tokens channel levels"]:
        """P(error <= ε)."""
        shares = shares_below(self.levels, epsilon, log=self.log_spaced)
        return (self.numbers(features, horizon).softmax(-1) @ shares).clamp(0, 1)

    def loss(
        self,
        features: Tensor,
        horizon: Tensor,
        error: Tensor,
        *,
        generator: Generator,
        counted: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Tensor:
        """A score of the interval the error fell in; "crps" is that over the levels' logarithm."""
        log_masses = self.numbers(features, horizon).log_softmax(-1)
        if self.rule == "crps":
            cdf = log_masses.exp().cumsum(-1)[..., :-1]
            even = torch.full_like(self.levels, 1 / len(self.levels))  # uniform weight in log error
            return mean_over(threshold_crps(cdf, self.levels, error, even), counted)
        interval = torch.bucketize(error, self.levels)
        if self.rule == "logarithmic":
            return mean_over(categorical_logarithmic(log_masses, interval), counted)
        return mean_over(CATEGORICAL[self.rule](log_masses.exp(), interval), counted)


class Distribution(Intervals):
    """The whole distribution of the error over `thresholds` log-spaced levels."""

    log_spaced = True

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig) -> None:
        super().__init__(dim, channels, config, config.thresholds)
        span = math.log(config.smallest_error), math.log(config.largest_error)
        self.register_buffer("levels", torch.linspace(*span, config.thresholds).exp())


class MultiClass(Intervals):
    """C3's multi-class head (arXiv:2512.05927, Section 4): which two scales is the error between?

    Between scales the answer is linear in ε. Above the last, where C3 has one open class, it goes
    on to 1 as that of `Distribution` does.
    """

    log_spaced = False

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig) -> None:
        super().__init__(dim, channels, config, len(config.scales))
        self.register_buffer("levels", torch.tensor(config.scales), persistent=False)


Head = Distribution | MultiClass | FixedScale | ContinuousScale
"""Any confidence head."""

HEADS: dict[str, type[Head]] = {
    "distribution": Distribution,
    "multi_class": MultiClass,
    "fixed_scale": FixedScale,
    "continuous_scale": ContinuousScale,
}
"""Name in a config -> head."""


def build_head(dim: int, channels: int, config: ConfidenceConfig) -> Head:
    """The head a config names, for features `dim` wide and tokens of `channels` subpatches."""
    return HEADS[config.head](dim, channels, config)
