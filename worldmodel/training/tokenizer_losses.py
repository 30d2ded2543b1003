"""Image similarity: multi-scale SSIM, and distance between features of a random network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weight of each scale, finest first (Wang, Simoncelli and Bovik 2003)."""
WINDOW = 11
"""Side of the SSIM window, in pixels of each scale."""


def num_scales(side: int) -> int:
    """Number of SSIM scales for an image whose shorter side is `side` pixels.

    Each scale halves the resolution; torchmetrics requires room for `(scales - 1) ** 2` windows.

    >>> [num_scales(side) for side in (16, 48, 64, 128, 256)]
    [1, 3, 3, 4, 5]
    """
    possible = [
        scales
        for scales in range(1, len(SCALE_WEIGHTS) + 1)
        if side // max(2 ** (scales - 1), (scales - 1) ** 2) >= WINDOW
    ]
    if not possible:
        raise ValueError(
            f"`structure` needs images of at least {WINDOW} pixels a side, got {side}; set its "
            "weight to 0 for smaller ones."
        )
    return possible[-1]


def structural_similarity(
    a: Float[Tensor, "batch 3 height width"], b: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Mean multi-scale SSIM of images in [-1, 1]; between 0 and 1, 1 for equal images.

    Uses as many of the five scales as fit, with weights normalised to 1. Each scale's similarity s
    enters as (1 + s) / 2, so images of opposite structure still have a gradient.

    Source: Wang, Simoncelli and Bovik, "Multiscale structural similarity", Asilomar 2003.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    weights = SCALE_WEIGHTS[: num_scales(min(a.shape[-2:]))]
    # Variances are small differences of large numbers and need full precision.
    with torch.autocast(a.device.type, enabled=False):
        return multiscale_structural_similarity_index_measure(
            (a.float() + 1) / 2,
            (b.float() + 1) / 2,
            data_range=1.0,
            kernel_size=WINDOW,
            betas=tuple(weight / sum(weights) for weight in weights),
            normalize="simple",
        )


class PerceptualDistance(nn.Module):
    """Perceptual distance between features of a small random convolutional network.

    Features are normalised to unit length at each position; their squared differences are summed
    over channels and averaged over positions and layers, as in LPIPS (Zhang et al. 2018,
    arXiv:1801.03924). Random filters work nearly as well as learned ones and need no download
    (Amir and Weiss 2021, "Understanding and Simplifying Perceptual Distances", CVPR). The filters
    come from a fixed seed and are neither trained nor saved.
    """

    widths = (16, 32, 64)
    """Channels of each layer; each layer halves the resolution."""

    def __init__(self) -> None:
        super().__init__()
        generator = Generator().manual_seed(0)
        channels = 3
        for layer, width in enumerate(self.widths):
            shape = (width, channels, 3, 3)
            filters = torch.randn(shape, generator=generator) * (2 / (9 * channels)) ** 0.5
            bias = 0.2 * torch.randn((width,), generator=generator)
            self.register_buffer(f"filters_{layer}", filters, persistent=False)
            self.register_buffer(f"bias_{layer}", bias, persistent=False)
            channels = width

    def features(self, frames: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Unit-length features of each layer, finest first."""
        features = []
        for layer in range(len(self.widths)):
            frames = F.avg_pool2d(frames, 2) if layer else frames
            filters, bias = self.get_buffer(f"filters_{layer}"), self.get_buffer(f"bias_{layer}")
            frames = F.relu(F.conv2d(frames, filters, bias, padding=1))
            features.append(F.normalize(frames, dim=1, eps=1e-3))
        return features

    def forward(
        self, a: Float[Tensor, "batch 3 height width"], b: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, ""]:
        """Mean distance of images in [-1, 1]; 0 for equal images."""
        pairs = zip(self.features(a), self.features(b), strict=True)
        return torch.stack([(x - y).square().sum(1).mean() for x, y in pairs]).mean()
