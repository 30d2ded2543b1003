"""Image corruptions of episodes, to train the confidence head on unfamiliar frames.

Each clip gets one to three corruptions, constant over time except for noise and moving patches.
They imitate problems around a robot (light, colours, a moved camera, new objects) without knowledge
of the scene. Common corruptions: Hendrycks & Dietterich 2019 (arXiv:1903.12261); patches: DeVries &
Taylor 2017 (arXiv:1708.04552).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from worldmodel.datasets.clip_dataset import stack_views
from worldmodel.datasets.resampling import resample
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.clips import LatentBatch, to_latent_batch, view_mask_of
from worldmodel.model import WorldModel
from worldmodel.networks.images import to_model, to_pixels

Pixels = Float[Tensor, "time 3 height width"]
"""Frames of one camera, in [-1, 1]."""


def corrupt(
    frames: UInt8[Tensor, "time view height width 3"], rng: np.random.Generator
) -> UInt8[Tensor, "time view height width 3"]:
    """Apply one to three random corruptions to the frames of each camera, independently."""
    views = [_corrupt_view(to_model(frames[:, view]), rng) for view in range(frames.shape[1])]
    return torch.stack([to_pixels(view) for view in views], dim=1)


def _corrupt_view(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    count = rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])
    chosen = rng.choice(len(CORRUPTIONS), count, replace=False)
    for index in sorted(chosen.tolist()):  # in order: `move_camera` must not move the patches
        pixels = list(CORRUPTIONS.values())[index](pixels, rng).clamp(-1, 1)
    return pixels


def corrupted_episode(
    model: WorldModel, trajectory: Trajectory, rng: np.random.Generator
) -> LatentBatch:
    """Corrupt the frames of an episode and encode it like `encode_episode`."""
    trajectory = resample(trajectory, model.config.action_spec)
    cameras = model.config.cameras
    frames = corrupt(torch.from_numpy(stack_views(trajectory, cameras, slice(None))), rng)
    latents = model.encode(frames, view_valid=view_mask_of(trajectory, cameras))
    stored = latents[None].half().cpu().clone()
    return to_latent_batch(stored, trajectory, cameras, model.config)


def tint(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Change brightness, colour of light and gamma."""
    gain = np.exp(rng.normal(0, 0.3)) * np.exp(rng.normal(0, 0.12, 3))
    gamma = np.exp(rng.normal(0, 0.25))
    light = ((pixels + 1) / 2).clamp_min(0) ** gamma * _column(gain, pixels)
    return 2 * light - 1


def recolour(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Mix the colour channels, as if materials had changed."""
    mix = np.eye(3) + rng.normal(0, 0.25, (3, 3))
    mix /= mix.sum(axis=1, keepdims=True).clip(0.3)
    return torch.einsum("dc,tchw->tdhw", torch.as_tensor(mix, dtype=pixels.dtype), pixels)


def texture(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Add a pattern of stripes or checks of random strength."""
    height, width = pixels.shape[-2:]
    rows, columns = np.mgrid[:height, :width] / height
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 12)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    across = np.cos(angle) * columns - np.sin(angle) * rows
    pattern = np.sin(2 * np.pi * waves * along + rng.uniform(0, 6))
    if rng.random() < 0.5:
        pattern = pattern * np.sin(2 * np.pi * waves * across)
    colour = rng.normal(0, 0.25, 3)
    shade = torch.as_tensor(pattern, dtype=pixels.dtype) * _column(colour, pixels)
    return pixels + shade


def move_camera(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Rotate, scale, shear and shift the images, repeating border pixels."""
    angle = rng.normal(0, 0.2)
    scale, shear = np.exp(rng.normal(0, 0.12)), rng.normal(0, 0.12)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * rotation @ np.array([[1.0, shear], [0.0, 1.0]])
    rows = np.concatenate([matrix, rng.normal(0, 0.15, (2, 1))], axis=1)
    theta = torch.as_tensor(rows, dtype=pixels.dtype).expand(len(pixels), -1, -1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur the images, like a lens out of focus."""
    small = [max(1, round(side / rng.uniform(1.5, 4))) for side in pixels.shape[-2:]]
    low = F.interpolate(pixels, small, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(low, pixels.shape[-2:], mode="bilinear", align_corners=False)


def noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Add sensor noise, independent in every frame."""
    deviation = rng.uniform(0.03, 0.2)
    return pixels + deviation * torch.as_tensor(rng.standard_normal(pixels.shape)).to(pixels)


def insert_patches(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Insert one to four patches: plain, textured or copied from the image; some move."""
    pixels = pixels.clone()
    for _ in range(rng.integers(1, 5)):
        _insert(pixels, rng)
    return pixels


def _insert(pixels: Pixels, rng: np.random.Generator) -> None:
    time, _, height, width = pixels.shape
    h = int(rng.integers(max(2, height // 12), max(3, height // 3)))
    w = int(rng.integers(max(2, width // 12), max(3, width // 3)))
    content = _content(pixels, h, w, rng)
    top, left = rng.uniform(0, height - h), rng.uniform(0, width - w)
    speed = rng.normal(0, 0.02 * height, 2) if rng.random() < 0.4 else np.zeros(2)
    flickers = rng.random() < 0.2
    for t in range(time):
        y = int(np.clip(top + t * speed[0], 0, height - h))
        x = int(np.clip(left + t * speed[1], 0, width - w))
        if not (flickers and rng.random() < 0.5):
            pixels[t, :, y : y + h, x : x + w] = content


def _content(pixels: Pixels, h: int, w: int, rng: np.random.Generator) -> Float[Tensor, "3 h w"]:
    kind = rng.integers(3)
    if kind == 0:
        return _column(rng.uniform(-1, 1, 3), pixels)[0].expand(-1, h, w)
    if kind == 1:
        coarse = torch.as_tensor(rng.uniform(-1, 1, (1, 3, 4, 4)), dtype=pixels.dtype)
        return F.interpolate(coarse, (h, w), mode="nearest")[0]
    height, width = pixels.shape[-2:]
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return pixels[int(rng.integers(len(pixels))), :, y : y + h, x : x + w].flip(-1).clone()


def _column(values: np.ndarray, like: Tensor) -> Float[Tensor, "1 3 1 1"]:
    return rearrange(torch.as_tensor(values, dtype=like.dtype), "c -> 1 c 1 1")


CORRUPTIONS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "tint": tint,
    "recolour": recolour,
    "texture": texture,
    "move_camera": move_camera,
    "blur": blur,
    "noise": noise,
    "insert_patches": insert_patches,
}
"""Name -> corruption, in the order of application."""
