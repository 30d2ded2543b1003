"""Confidence heads: the probability per subpatch that its error is at most ε.

The error is the absolute difference between the generated and the true latent, in latent standard
deviations.

Every head has `confidence` and `loss`. Inputs are features [batch, tokens, dim], the horizon in
frames [batch] and errors [batch, tokens, channel]. The loss is a mean over the tokens in the mask
`counted`.
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
    TrunkAndOutput,
    masked_mean,
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
    "build_head",
    "masked_mean",
    "shares_below",
]

CATEGORICAL = {
    "brier": categorical_brier,
    "spherical": categorical_spherical,
    "rps": ranked_probability,
}
"""Scoring rules that need only the probability masses of the intervals."""


def shares_below(
    levels: Float[Tensor, " levels"], epsilon: Float[Tensor, " epsilons"], *, log: bool
) -> Float[Tensor, "intervals epsilons"]:
    """Fraction of each interval's probability mass with error <= ε.

    The first interval is from 0 to the first level. Between levels the mass is uniform in the
    logarithm of the error (`log`) or in the error itself; below the first level it is uniform in
    the error; above the last level, P(error > ε) decays as 1 / ε.

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
    """Distribution over the intervals between error levels, per subpatch, from one pass.

    Its cumulative distribution gives the confidence for every ε and is monotone in ε by
    construction: 0 at ε = 0, and 1 in the limit of large ε.
    """

    levels: Tensor
    log_spaced: bool

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig, levels: int) -> None:
        super().__init__(dim, channels, config, numbers=levels + 1)
        self.rule = config.rule

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
        """Scoring rule of the interval with the error; "crps" integrates over the log error."""
        log_masses = self.numbers(features, horizon).log_softmax(-1)
        if self.rule == "crps":
            cdf = log_masses.exp().cumsum(-1)[..., :-1]
            # Equal weights: uniform in log error.
            weights = torch.full_like(self.levels, 1 / len(self.levels))
            return masked_mean(threshold_crps(cdf, self.levels, error, weights), counted)
        interval = torch.bucketize(error, self.levels)
        if self.rule == "logarithmic":
            return masked_mean(categorical_logarithmic(log_masses, interval), counted)
        return masked_mean(CATEGORICAL[self.rule](log_masses.exp(), interval), counted)


class Distribution(Intervals):
    """Distribution head: the error's distribution over `thresholds` log-spaced levels."""

    log_spaced = True

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig) -> None:
        super().__init__(dim, channels, config, config.thresholds)
        span = math.log(config.smallest_error), math.log(config.largest_error)
        self.register_buffer("levels", torch.linspace(*span, config.thresholds).exp())


class MultiClass(Intervals):
    """C3's multi-class head (arXiv:2512.05927, Section 4): classes are intervals between scales.

    The confidence is linear in ε between scales. Above the last scale, where C3 has one open class,
    it tends to 1 as in `Distribution`.
    """

    log_spaced = False

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig) -> None:
        super().__init__(dim, channels, config, len(config.scales))
        self.register_buffer("levels", torch.tensor(config.scales), persistent=False)


Head = Distribution | MultiClass | FixedScale | ContinuousScale
"""Union of all confidence heads."""

HEADS: dict[str, type[Head]] = {
    "distribution": Distribution,
    "multi_class": MultiClass,
    "fixed_scale": FixedScale,
    "continuous_scale": ContinuousScale,
}
"""Value of `ConfidenceConfig.head` -> class."""


def build_head(dim: int, channels: int, config: ConfidenceConfig) -> Head:
    """Confidence head of `config`, for features of width `dim` with `channels` subpatches."""
    return HEADS[config.head](dim, channels, config)
