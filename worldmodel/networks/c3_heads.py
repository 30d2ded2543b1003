"""C3's fixed-scale and continuous-scale confidence heads (arXiv:2512.05927, Section 4)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from worldmodel.networks.head_trunk import ConfidenceConfig, TrunkAndOutput, masked_mean
from worldmodel.networks.scoring_rules import brier, logarithmic, spherical

BINARY = {"brier": brier, "logarithmic": logarithmic, "spherical": spherical}
"""Scoring rules of a binary outcome: error <= ε."""


class FixedScale(TrunkAndOutput):
    """C3's fixed-scale head: one logit per scale, for scales fixed in training.

    C3 uses one scale, this head several. It gives confidence only for its scales and is not
    monotone in ε by construction.
    """

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig) -> None:
        super().__init__(dim, channels, config, numbers=len(config.scales))
        self.rule = BINARY[config.rule]
        self.scales = config.scales

    def confidence(
        self, features: Tensor, horizon: Tensor, epsilon: Float[Tensor, " levels"]
    ) -> Float[Tensor, "batch tokens channel levels"]:
        """P(error <= ε).

        Raises:
            ValueError: An ε is not one of the scales.
        """
        columns = [self._column(level) for level in epsilon.tolist()]
        return self.numbers(features, horizon)[..., columns].sigmoid()

    def _column(self, epsilon: float) -> int:
        """Index of the scale equal to ε, up to single precision."""
        for index, scale in enumerate(self.scales):
            if abs(epsilon - scale) <= 1e-5 * scale:
                return index
        raise ValueError(
            f"`epsilon` must be one of the scales that the fixed_scale head was trained for, "
            f"{list(self.scales)}, got {epsilon:g}; use one of them or another head."
        )

    def loss(
        self,
        features: Tensor,
        horizon: Tensor,
        error: Tensor,
        *,
        generator: Generator,
        counted: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Tensor:
        """Scoring rule averaged over the scales; `generator` is not used."""
        reached = (error[..., None] <= error.new_tensor(self.scales)).to(error.dtype)
        score = self.rule(self.numbers(features, horizon).sigmoid(), reached)
        return masked_mean(score.mean(-1), counted)


class ContinuousScale(TrunkAndOutput):
    """C3's continuous-scale head: ε is an input of the network.

    It needs one pass per ε and is not monotone in ε by construction. ε is clamped to the training
    range.
    """

    def __init__(self, dim: int, channels: int, config: ConfidenceConfig) -> None:
        super().__init__(dim, channels, config, numbers=1, extra=8)
        self.rule = BINARY[config.rule]
        self.range = (config.smallest_error, config.largest_error)

    def _probability(
        self, features: Tensor, horizon: Tensor, epsilon: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch tokens channel"]:
        waves = epsilon.log()[:, None] * torch.arange(1, 5, device=epsilon.device) / 2
        extra = torch.cat((waves.sin(), waves.cos()), dim=-1)
        return self.numbers(features, horizon, extra)[..., 0].sigmoid()

    def confidence(
        self, features: Tensor, horizon: Tensor, epsilon: Float[Tensor, " levels"]
    ) -> Float[Tensor, "batch tokens channel levels"]:
        """P(error <= ε)."""
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
        """Scoring rule at one log-uniform random ε per item."""
        low, high = self.range
        draw = torch.rand(len(features), generator=generator, device=generator.device).to(error)
        epsilon = low * (high / low) ** draw
        reached = (error <= epsilon[:, None, None]).to(error.dtype)
        return masked_mean(
            self.rule(self._probability(features, horizon, epsilon), reached), counted
        )
