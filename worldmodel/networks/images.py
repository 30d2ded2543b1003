"""Image conversion and resizing between uint8 frames and model input."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F


def to_model(
    frames: UInt8[Tensor, "*batch height width 3"],
) -> Float[Tensor, "*batch 3 height width"]:
    """Convert uint8 RGB, channels last, to float in [-1, 1], channels first."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_pixels(
    frames: Float[Tensor, "*batch 3 height width"],
) -> UInt8[Tensor, "*batch height width 3"]:
    """Convert back to uint8, the inverse of `to_model`; rounds and clamps."""
    return ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def resize(
    frames: Float[Tensor, "*batch 3 h w"], size: tuple[int, int]
) -> Float[Tensor, "*batch 3 height width"]:
    """Resize frames to `size` (height, width) with antialiasing; no copy if they have that size."""
    if frames.shape[-2:] == size:
        return frames
    flat = frames.reshape(-1, *frames.shape[-3:])
    resized = F.interpolate(flat, size, mode="bilinear", antialias=True, align_corners=False)
    return resized.reshape(*frames.shape[:-2], *size)


def psnr_db(
    a: Shaped[Tensor, "*any"],
    b: Shaped[Tensor, "*any"],
    *,
    peak: float = 255.0,
    dim: tuple[int, ...] | None = None,
    floor: float = 1e-8,
) -> Float[Tensor, "*kept"]:
    """Peak signal-to-noise ratio in decibels: 10 lg(peak² / mean squared error).

    Args:
        a: Images, or latents.
        b: Others of the same shape.
        peak: Largest possible value; 255 for uint8 images.
        dim: Axes to average over; None: all.
        floor: Lower bound of the mean squared error, which keeps the PSNR of equal images finite.

    >>> psnr_db(torch.zeros(4), torch.full((4,), 0.1), peak=1.0)
    tensor(20.)
    """
    mean_square = (a.float() - b.float()).square().mean(dim)
    return 10 * torch.log10(peak**2 / mean_square.clamp_min(floor))
