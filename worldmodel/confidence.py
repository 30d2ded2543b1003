"""Confidence heads: for every subpatch, the probability that its error is at most ε.

The error is the absolute difference between a generated and the true final latent, in latent
standard deviations. Heads read detached features of the dynamics network: training one never moves
the dynamics.

Every head has `confidence` and `loss`, and takes features [batch, tokens, dim], the horizon in
frames [batch] and errors [batch, tokens, channel]. The loss is a mean over the tokens `counted`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from worldmodel.scoring import brier, logarithmic, threshold_crps

RULES = {"brier": brier, "logarithmic": logarithmic}
"""Scoring rules of a probability at one ε."""


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig:
    """Confidence head."""

    head: str = "distribution"
    """"distribution" (every ε from one pass) or "continuous_scale" (ε is an input, after C3)."""
    rule: str = "crps"
    """Strictly proper loss: "crps" (distribution only), "brier" or "logarithmic"."""
    hidden: int = 256
    """Hidden width."""
    thresholds: int = 32
    """Error levels of the distribution head."""
    smallest_error: float = 0.02
    """Lowest error level, in latent standard deviations."""
    largest_error: float = 4.0
    """Highest error level, in latent standard deviations."""

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"`head` must be one of {sorted(HEADS)}, got {self.head!r}.")
        rules = {"crps", *RULES} if self.head == "distribution" else set(RULES)
        if self.rule not in rules:
            raise ValueError(
                f"`rule` of a {self.head} head must be one of {sorted(rules)}, got {self.rule!r}."
            )
        if self.thresholds < 2:
            raise ValueError(f"`thresholds` must be at least 2, got {self.thresholds}.")
        if not 0 < self.smallest_error < self.largest_error:
            raise ValueError(
                "`smallest_error` must be positive and below `largest_error`, got "
                f"{self.smallest_error} and {self.largest_error}."
            )


class Trunk(nn.Module):
    """Features of a token, the mean over its frame and the horizon, to a hidden vector."""

    def __init__(self, dim: int, hidden: int, extra: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.token = nn.Linear(dim, hidden)
        self.frame = nn.Linear(dim, hidden)
        self.horizon = nn.Linear(8 + extra, hidden)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())

    def forward(
        self,
        features: Float[Tensor, "batch tokens dim"],
        horizon: Float[Tensor, " batch"],
        extra: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        x = self.norm(features.detach().to(self.token.weight.dtype))
        waves = torch.log1p(horizon)[:, None] * torch.arange(1, 5, device=x.device) / 2
        side = torch.cat((waves.sin(), waves.cos()), dim=-1)
        if extra is not None:
            side = torch.cat((side, extra), dim=-1)
        return self.mix(
            self.token(x) + (self.frame(x.mean(1)) + self.horizon(side.to(x.dtype)))[:, None]
        )


class Distribution(nn.Module):
    """The whole distribution of the error, per subpatch, from one pass.

    Logits over the intervals between log-spaced error levels give a cumulative distribution, linear
    in log error between levels: monotone in ε by construction, 0 at ε = 0 and 1 as ε grows.
    """

    levels: Tensor

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig) -> None:
        super().__init__()
        self.rule = config.rule
        self.channels = channels
        span = math.log(config.smallest_error), math.log(config.largest_error)
        self.register_buffer("levels", torch.linspace(*span, config.thresholds).exp())
        self.trunk = Trunk(dim, config.hidden)
        self.out = nn.Linear(config.hidden, channels * (config.thresholds + 1))

    def _log_masses(
        self, features: Tensor, horizon: Tensor
    ) -> Float[Tensor, "batch tokens channel intervals"]:
        logits = rearrange(
            self.out(self.trunk(features, horizon)), "b n (c k) -> b n c k", c=self.channels
        )
        return logits.float().log_softmax(-1)

    def cdf(
        self, features: Tensor, horizon: Tensor
    ) -> Float[Tensor, "batch tokens channel levels"]:
        """P(error <= level) at the head's own levels."""
        return self._log_masses(features, horizon).exp().cumsum(-1)[..., :-1].clamp(0, 1)

    def confidence(
        self, features: Tensor, horizon: Tensor, epsilon: Float[Tensor, " levels"]
    ) -> Tensor:
        """P(error <= ε), [batch, tokens, channel, ε]."""
        return interpolate_cdf(self.cdf(features, horizon), self.levels, epsilon.to(self.levels))

    def loss(
        self,
        features: Tensor,
        horizon: Tensor,
        error: Tensor,
        *,
        generator: Generator,
        counted: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Tensor:
        """Threshold CRPS over log error, or another score of the interval the error fell in."""
        log_masses = self._log_masses(features, horizon)
        if self.rule == "crps":
            cdf = log_masses.exp().cumsum(-1)[..., :-1]
            even = torch.full_like(self.levels, 1 / len(self.levels))  # uniform weight in log error
            return mean_over(threshold_crps(cdf, self.levels, error, even), counted)
        interval = torch.bucketize(error, self.levels)
        if self.rule == "logarithmic":
            return mean_over(-log_masses.gather(-1, interval[..., None])[..., 0], counted)
        fell_in = nn.functional.one_hot(interval, log_masses.shape[-1])
        return mean_over(brier(log_masses.exp(), fell_in).sum(-1), counted)


def mean_over(
    values: Float[Tensor, "batch tokens channel"], counted: Bool[Tensor, "batch tokens"] | None
) -> Float[Tensor, ""]:
    """Mean over the tokens that count, all for None; 0 if none does.

    >>> mean_over(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[True, False]]))
    tensor(1.)
    """
    if counted is None:
        return values.mean()
    return values[counted].sum() / (counted.sum() * values.shape[-1]).clamp_min(1)


def interpolate_cdf(
    cdf: Float[Tensor, "*batch thresholds"],
    levels: Float[Tensor, " thresholds"],
    epsilon: Float[Tensor, " levels"],
) -> Float[Tensor, "*batch levels"]:
    """The cumulative distribution at each ε: linear in log ε between levels.

    Below the first level it is linear in ε, down to 0; above the last it is linear in 1/ε, up to 1.

    >>> cdf, levels = torch.tensor([0.2, 0.6]), torch.tensor([1.0, 4.0])
    >>> interpolate_cdf(cdf, levels, torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0]))
    tensor([0.1000, 0.2000, 0.4000, 0.6000, 0.8000])
    """
    clamped = epsilon.clamp(float(levels[0]), float(levels[-1]))
    right = torch.bucketize(clamped, levels).clamp(1, len(levels) - 1)
    low, high = levels[right - 1].log(), levels[right].log()
    weight = (clamped.log() - low) / (high - low)
    inside = cdf[..., right - 1] * (1 - weight) + cdf[..., right] * weight
    below = (epsilon / levels[0]).clamp(0, 1)
    above = (levels[-1] / epsilon).clamp(0, 1)
    return 1 - (1 - inside * below) * above


class ContinuousScale(nn.Module):
    """C3's continuous-scale head (arXiv:2512.05927, Section 4): ε in, a probability out.

    One pass per ε, and nothing makes the answers monotone in ε. Outside the range it was trained
    on, ε counts as the nearest end.
    """

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig) -> None:
        super().__init__()
        self.rule = RULES[config.rule]
        self.range = (config.smallest_error, config.largest_error)
        self.trunk = Trunk(dim, config.hidden, extra=8)
        self.out = nn.Linear(config.hidden, channels)

    def _probability(
        self, features: Tensor, horizon: Tensor, epsilon: Float[Tensor, " batch"]
    ) -> Tensor:
        waves = epsilon.log()[:, None] * torch.arange(1, 5, device=epsilon.device) / 2
        extra = torch.cat((waves.sin(), waves.cos()), dim=-1)
        return self.out(self.trunk(features, horizon, extra)).float().sigmoid()

    def confidence(
        self, features: Tensor, horizon: Tensor, epsilon: Float[Tensor, " levels"]
    ) -> Tensor:
        """P(error <= ε), [batch, tokens, channel, ε]."""
        columns = [
            self._probability(features, horizon, level.expand(len(features)))
            for level in epsilon.to(horizon).clamp(*self.range)
        ]
        return torch.stack(columns, dim=-1)

    def loss(
        self,
        features: Tensor,
        horizon: Tensor,
        error: Tensor,
        *,
        generator: Generator,
        counted: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Tensor:
        """The scoring rule at one ε per item, drawn log-uniformly."""
        low, high = self.range
        draw = torch.rand(len(features), generator=generator, device=generator.device).to(error)
        epsilon = low * (high / low) ** draw
        reached = (error <= epsilon[:, None, None]).to(error.dtype)
        return mean_over(self.rule(self._probability(features, horizon, epsilon), reached), counted)


HEADS: dict[str, type[Distribution] | type[ContinuousScale]] = {
    "distribution": Distribution,
    "continuous_scale": ContinuousScale,
}
"""Name in a config -> head."""


def build_head(dim: int, channels: int, config: ConfidenceConfig) -> Distribution | ContinuousScale:
    """The head a config names, for features `dim` wide and tokens of `channels` subpatches."""
    return HEADS[config.head](dim, channels, config)
