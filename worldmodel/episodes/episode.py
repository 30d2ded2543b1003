"""Recorded episode with frames at the model's image size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.networks.images import resize, to_model, to_pixels


def to_model_size(
    frames: UInt8[Tensor, "*batch h w 3"], model: WorldModel
) -> UInt8[Tensor, "*batch height width 3"]:
    """Resize frames to the model's image size, the input of the monitor."""
    return to_pixels(resize(to_model(frames), model.config.image_size))


@dataclass(frozen=True)
class Episode:
    """Recorded episode, ready for imagination and for the monitor."""

    name: str
    frames: UInt8[Tensor, "time view height width 3"]
    """Frames at the model's image size."""
    batch: LatentBatch
    stretch: float = 1.0
    """Aspect ratio (width / height) of the source frames divided by that of the model's frames; 1
    if resizing kept the aspect ratio."""


MAX_STRETCH = 0.1
"""Largest |log(stretch)| that counts as rounding to the tokenizer's stride."""


def unstretched(episode: Episode) -> UInt8[Tensor, "time view height width 3"]:
    """Frames for the monitor: at the model's size, or with the source's aspect ratio if it differs.

    A clearly different aspect ratio means another camera. Resizing to the model's shape would hide
    it; with the source's aspect ratio, the monitor's sensor check rejects the shape.
    """
    if abs(math.log(episode.stretch)) < MAX_STRETCH:
        return episode.frames
    height, width = episode.frames.shape[-3:-1]
    size = (height, max(1, round(width * episode.stretch)))
    return to_pixels(resize(to_model(episode.frames), size))
