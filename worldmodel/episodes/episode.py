"""A recorded episode at the size the model works at."""

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
    """Frames at the size the model works at: what the monitor is shown."""
    return to_pixels(resize(to_model(frames), model.config.image_size))


@dataclass(frozen=True)
class Episode:
    """A recorded episode, ready to be imagined and watched."""

    name: str
    frames: UInt8[Tensor, "time view height width 3"]
    """At the model's size."""
    batch: LatentBatch
    stretch: float = 1.0
    """Width over height of the source's frames, over that of the model's: 1 if only scaled."""


MAX_STRETCH = 0.1
"""Largest |log| of a stretch that rounding to the tokenizer's stride may bring about."""


def unstretched(episode: Episode) -> UInt8[Tensor, "time view height width 3"]:
    """The frames the monitor is shown: at the model's size, or in their own proportions.

    A camera of clearly other proportions is another camera, and squeezing its pictures would hide
    that: the monitor's sensor check sees their shape and stops.
    """
    if abs(math.log(episode.stretch)) < MAX_STRETCH:
        return episode.frames
    height, width = episode.frames.shape[-3:-1]
    own = (height, max(1, round(width * episode.stretch)))
    return to_pixels(resize(to_model(episode.frames), own))
