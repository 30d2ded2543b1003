"""Config, trunk and familiarity input shared by all confidence heads.

Heads read detached features of the dynamics network: training a head never changes the dynamics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

EPSILONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Default error levels ε of the confidence, in latent standard deviations."""

RULES = {
    "continuous_scale": ("brier", "logarithmic", "spherical"),
    "distribution": ("brier", "crps", "logarithmic", "rps", "spherical"),
    "fixed_scale": ("brier", "logarithmic", "spherical"),
    "multi_class": ("brier", "logarithmic", "rps", "spherical"),
}
"""Head -> strictly proper scoring rules it can be trained with."""


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig:
    """Configuration of the confidence head."""

    head: str = "distribution"
    """"distribution" (every ε from one pass) or a head of C3: "continuous_scale" (ε is an input),
    "fixed_scale" (one probability per scale) or "multi_class" (classes between the scales)."""
    rule: str = "crps"
    """Strictly proper scoring rule, the loss: "brier", "logarithmic" or "spherical"; for
    "distribution" and "multi_class" also "rps"; for "distribution" also "crps" ("rps" divided by
    the number of levels)."""
    hidden: int = 256
    """Hidden width."""
    thresholds: int = 32
    """Error levels of the distribution head."""
    smallest_error: float = 0.02
    """Lowest error level, in latent standard deviations."""
    largest_error: float = 4.0
    """Highest error level, in latent standard deviations."""
    scales: tuple[float, ...] = EPSILONS
    """Error levels of the "fixed_scale" and "multi_class" heads, in latent standard deviations."""
    familiarity: bool = False
    """Whether the head also reads the distance of features from the training features."""

    def __post_init__(self) -> None:
        if self.head not in RULES:
            raise ValueError(f"`head` must be one of {sorted(RULES)}, got {self.head!r}.")
        if self.rule not in RULES[self.head]:
            raise ValueError(
                f"`rule` of a {self.head} head must be one of {list(RULES[self.head])}, "
                f"got {self.rule!r}."
            )
        if self.thresholds < 2:
            raise ValueError(f"`thresholds` must be at least 2, got {self.thresholds}.")
        if not 0 < self.smallest_error < self.largest_error:
            raise ValueError(
                "`smallest_error` must be positive and below `largest_error`, got "
                f"{self.smallest_error} and {self.largest_error}."
            )
        bounds = (0.0, *self.scales, math.inf)
        if not self.scales or any(not a < b for a, b in pairwise(bounds)):
            raise ValueError(
                f"`scales` must be one or more positive numbers in rising order, got {self.scales}."
            )


class Familiarity(nn.Module):
    """Distance of features from the training features, under a Gaussian fitted to them.

    Two numbers per token: the log Mahalanobis distance within the leading principal directions
    (Lee et al. 2018, arXiv:1807.03888) and the log distance from their span (Wang et al. 2022,
    arXiv:2203.10807). Both are standardised to mean 0 and standard deviation 1 on the training
    features and clamped to ±`largest`.
    """

    directions: Tensor
    mean: Tensor
    scale: Tensor
    deviation: Tensor
    centre: Tensor
    spread: Tensor
    fitted: Tensor
    most_directions = 32
    largest = 10.0

    def __init__(self, dim: int) -> None:
        super().__init__()
        rank = min(dim, self.most_directions)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("directions", torch.zeros(dim, rank))
        self.register_buffer("deviation", torch.ones(rank))
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "*batch dim"]) -> Familiarity:
        """Fit mean and principal directions to training features; forgets earlier fits.

        Directions with almost no variance are dropped, so n rows give at most n - 1 directions.
        """
        rows = features.to(self.mean.device).flatten(0, -2).double()
        mean = rows.mean(0)
        centred = rows - mean
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(rows))
        scale = variance.mean().sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(scale if scale > 1e-12 else torch.ones_like(scale))
        rank = self.directions.shape[1]
        leading, axes = variance.flip(0)[:rank], axes.flip(1)[:, :rank]
        varies = leading > 1e-6 * leading[0].clamp_min(1e-18)
        self.directions.copy_(axes * varies)
        self.deviation.copy_(torch.where(varies, leading.sqrt() / self.scale, 1.0))
        distances = self._log_distances(rows)
        self.centre.copy_(distances.mean(0))
        self.spread.copy_(distances.std(0, correction=0).clamp_min(0.05))
        self.fitted.fill_(True)
        return self

    def _log_distances(self, features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 2"]:
        """Logarithms of the two root-mean-square distances."""
        x = (features.float() - self.mean.float()) / self.scale.float()
        x = x.clamp(-1e4, 1e4)  # keeps squares finite
        inside = x @ self.directions.float()
        whitened = (inside / self.deviation.float()).square().mean(-1)
        outside = (x.square().sum(-1) - inside.square().sum(-1)).clamp_min(0) / x.shape[-1]
        # The second distance is a small difference of two sums; 1e-4 hides its rounding error.
        return torch.stack((whitened, outside), -1).add(1e-4).log() / 2

    def forward(self, features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 2"]:
        if not self.fitted:
            raise ValueError(
                "A head with `familiarity` must be fitted to training features: call "
                "`fit_familiarity` first."
            )
        standard = (self._log_distances(features) - self.centre.float()) / self.spread.float()
        return standard.clamp(-self.largest, self.largest)


class Trunk(nn.Module):
    """Hidden vector per token, from its features, their mean over the frame, and the horizon."""

    def __init__(self, dim: int, hidden: int, *, extra: int = 0, familiarity: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.token = nn.Linear(dim, hidden)
        self.frame = nn.Linear(dim, hidden)
        self.horizon = nn.Linear(8 + extra, hidden)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.familiarity: Familiarity | None = None
        if familiarity:
            self.familiarity = Familiarity(dim)
            self.familiar = nn.Linear(4, hidden)

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
        hidden = self.token(x) + (self.frame(x.mean(1)) + self.horizon(side.to(x.dtype)))[:, None]
        if self.familiarity is not None:
            distance = self.familiarity(features.detach())
            frame_mean = distance.mean(1, keepdim=True).expand_as(distance)
            both = torch.cat((distance, frame_mean), dim=-1)
            hidden = hidden + self.familiar(both.to(x.dtype))
        return self.mix(hidden)


class TrunkAndOutput(nn.Module):
    """Network of every head: a trunk and a linear output of `numbers` values per subpatch."""

    def __init__(
        self, dim: int, channels: int, config: ConfidenceConfig, *, numbers: int, extra: int = 0
    ) -> None:
        super().__init__()
        self.channels = channels
        self.trunk = Trunk(dim, config.hidden, extra=extra, familiarity=config.familiarity)
        self.out = nn.Linear(config.hidden, channels * numbers)

    def numbers(
        self, features: Tensor, horizon: Tensor, extra: Tensor | None = None
    ) -> Float[Tensor, "batch tokens channel numbers"]:
        """Output values per subpatch, in single precision."""
        return (
            self.out(self.trunk(features, horizon, extra))
            .float()
            .unflatten(-1, (self.channels, -1))
        )

    def fit_familiarity(self, features: Float[Tensor, "n tokens dim"]) -> None:
        """Fit the familiarity to training features; call it before training the head.

        Raises:
            ValueError: `familiarity` is false in the head's config.
        """
        if self.trunk.familiarity is None:
            raise ValueError("`familiarity` must be true in the head's config, got False.")
        self.trunk.familiarity.fit(features)


def masked_mean(
    values: Float[Tensor, "batch tokens channel"], counted: Bool[Tensor, "batch tokens"] | None
) -> Float[Tensor, ""]:
    """Mean over the tokens in the mask `counted` (None: all); 0 if the mask is empty.

    >>> masked_mean(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[True, False]]))
    tensor(1.)
    """
    if counted is None:
        return values.mean()
    return values[counted].sum() / (counted.sum() * values.shape[-1]).clamp_min(1)
