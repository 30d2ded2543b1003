"""Confidence in pictures: the probability that a patch of the shown picture is right.

The event is "the mean absolute error of an 8 x 8 patch against the camera's true frame is at most δ
grey levels", the tokenizer's loss included. A small network reads evidence about every patch
(`episodes.picture_evidence`) and states the distribution of its error, so the confidence is
monotone in δ by construction. Its score is the logarithmic one, which is strictly proper (Gneiting
& Raftery 2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.networks.confidence_heads import shares_below
from worldmodel.networks.scoring_rules import categorical_logarithmic

PATCH = 8
"""Side of a patch in pixels."""
DELTAS = (4.0, 8.0, 16.0, 32.0, 64.0)
"""Default errors δ, in grey levels of 255."""
CLIP = 0.0005
"""Share of the training evidence beyond which inputs are clipped, at either end."""


@dataclass(frozen=True, kw_only=True)
class PixelConfidenceConfig:
    """Configuration of the confidence in pictures."""

    inputs: int
    """Numbers of evidence per patch."""
    hidden: int = 96
    """Width of both hidden layers."""
    thresholds: int = 33
    """Error levels, evenly spaced in their logarithm."""
    smallest_error: float = 0.5
    """Lowest error level in grey levels."""
    largest_error: float = 128.0
    """Highest error level in grey levels."""

    def __post_init__(self) -> None:
        if min(self.inputs, self.hidden) < 1 or self.thresholds < 2:
            raise ValueError(
                "`inputs` and `hidden` must be at least 1 and `thresholds` at least 2, got "
                f"{self.inputs}, {self.hidden} and {self.thresholds}."
            )
        if not 0 < self.smallest_error < self.largest_error:
            raise ValueError(
                "`smallest_error` must be positive and below `largest_error`, got "
                f"{self.smallest_error} and {self.largest_error}."
            )


class PixelConfidence(nn.Module):
    """Distribution of the error of a patch, from evidence about it."""

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor
    levels: Tensor

    def __init__(self, config: PixelConfidenceConfig) -> None:
        super().__init__()
        self.config = config
        count, hidden = config.inputs, config.hidden
        self.register_buffer("low", torch.full((count,), -torch.inf))
        self.register_buffer("high", torch.full((count,), torch.inf))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        span = math.log(config.smallest_error), math.log(config.largest_error)
        levels = torch.linspace(*span, config.thresholds).exp()
        self.register_buffer("levels", levels, persistent=False)
        self.net = nn.Sequential(
            nn.Linear(count, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, config.thresholds + 1),
        )  # fmt: skip

    @torch.no_grad()
    def fit_inputs(self, evidence: Float[Tensor, "n inputs"]) -> PixelConfidence:
        """Fit scales and clipping of the inputs to training evidence."""
        if len(evidence) < 2 or not evidence.isfinite().all():
            raise ValueError("`evidence` must hold at least 2 rows of finite numbers.")
        rows = evidence.double()
        ordered = rows.sort(0).values
        margin = round(CLIP * (len(rows) - 1))
        self.low.copy_(ordered[margin])
        self.high.copy_(ordered[len(rows) - 1 - margin])
        self.mean.copy_(rows.mean(0))
        self.std.copy_(rows.std(0, correction=0).clamp_min(1e-3))
        return self

    def log_masses(
        self, evidence: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "*batch intervals"]:
        """Log probability of every interval between error levels."""
        inside = evidence.maximum(self.low).minimum(self.high)
        return self.net((inside - self.mean) / self.std).log_softmax(-1)

    def forward(
        self, evidence: Float[Tensor, "*batch inputs"], deltas: Float[Tensor, " deltas"]
    ) -> Float[Tensor, "*batch deltas"]:
        """P(mean absolute error <= δ) of every patch."""
        shares = shares_below(self.levels, deltas, log=True)
        return (self.log_masses(evidence).exp() @ shares).clamp(0, 1)

    def loss(
        self, evidence: Float[Tensor, "*batch inputs"], error: Float[Tensor, "*batch"]
    ) -> Float[Tensor, ""]:
        """Mean logarithmic score of the interval that holds the error."""
        interval: Int[Tensor, "*batch"] = torch.bucketize(error, self.levels)
        return categorical_logarithmic(self.log_masses(evidence), interval).mean()


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of a picture; the last ones may be smaller than `PATCH`.

    >>> patch_grid(64, 90)
    (8, 12)
    """
    return -(-height // PATCH), -(-width // PATCH)


def per_patch(values: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch rows columns"]:
    """Mean of every patch.

    >>> per_patch(torch.arange(4.0).repeat_interleave(8).repeat(8, 1))
    tensor([[0., 1., 2., 3.]])
    """
    return _pooled(values, F.avg_pool2d, count_include_pad=False)


def largest_per_patch(
    values: Float[Tensor, "*batch height width"],
) -> Float[Tensor, "*batch rows columns"]:
    """Maximum of every patch."""
    return _pooled(values, F.max_pool2d)


def _pooled(values: Tensor, pool: object, **options: bool) -> Tensor:
    flat = values.reshape(-1, 1, *values.shape[-2:])
    pooled = pool(flat, PATCH, ceil_mode=True, **options)  # type: ignore[operator]
    return pooled.reshape(*values.shape[:-2], *pooled.shape[-2:])


def patch_error(shown: Tensor, true: Tensor) -> Float[Tensor, "*batch rows columns"]:
    """Mean absolute error of every patch in grey levels, of pictures [*batch, height, width, 3].

    >>> patch_error(torch.zeros(8, 8, 3), torch.full((8, 8, 3), 2))
    tensor([[2.]])
    """
    return per_patch((shown.float() - true.float()).abs().mean(-1))
