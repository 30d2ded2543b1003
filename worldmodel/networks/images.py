"""Image conversion and resizing between uint8 frames and model input."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


def to_model(
    frames: UInt8[Tensor, "*batch height width 3"],
) -> Float[Tensor, "*batch 3 height width"]:
    """uint8 RGB, channels last, to float in [-1, 1], channels first."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_pixels(
    frames: Float[Tensor, "*batch 3 height width"],
) -> UInt8[Tensor, "*batch height width 3"]:
    """The inverse of `to_model`, rounded and clamped."""
    return ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def resize(
    frames: Float[Tensor, "*batch 3 h w"], size: tuple[int, int]
) -> Float[Tensor, "*batch 3 height width"]:
    """Frames at `size` (height, width) pixels, antialiased; untouched where they have it."""
    if frames.shape[-2:] == size:
        return frames
    flat = frames.reshape(-1, *frames.shape[-3:])
    small = F.interpolate(flat, size, mode="bilinear", antialias=True, align_corners=False)
    return small.reshape(*frames.shape[:-2], *size)
