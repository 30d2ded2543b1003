"""From noise to a latent by following the flow: Euler's method with few steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from worldmodel.schedule import sampling_levels

Denoise = Callable[[Tensor, float], Tensor]
"""(x_s, s) -> estimate of the latent z."""


def euler(denoise: Denoise, noise: Tensor, num_steps: int) -> Tensor:
    """Integrate dx/ds = (x - z(x, s)) / s from s = 1 to s = 0.

    The first-order part of Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364). One step returns
    `denoise(noise, 1.0)`, the posterior mean.

    >>> import torch
    >>> euler(lambda x, s: torch.full_like(x, 3.0), torch.randn(2), 4)
    tensor([3., 3.])
    """
    x = noise
    levels = sampling_levels(num_steps).tolist()
    for level, following in pairwise(levels):
        clean = denoise(x, level)
        # The last step is `clean` itself; writing it so avoids a rounding residue of the noise.
        x = clean if following == 0 else clean + (following / level) * (x - clean)
    return x
