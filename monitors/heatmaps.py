"""Heatmaps of confidence, readable for colour-blind people too.

Colour map cividis (Nuñez et al. 2018): dark blue is confidence 0, yellow is 1.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Float64, UInt8

from worldmodel.monitors.arrays import require_probabilities

TICKS = (0.0, 0.5, 1.0)
"""Tick labels of the legend."""
LEGEND_WIDTH = 56
"""Pixels."""


@cache
def palette() -> UInt8[np.ndarray, "256 3"]:
    """Colours of confidence 0 to 1."""
    from matplotlib import colormaps

    colours = colormaps["cividis"](np.arange(256))[:, :3]
    return np.round(255 * np.asarray(colours)).astype(np.uint8)


def upsample(
    values: Float[np.ndarray, "h w"], height: int, width: int
) -> Float64[np.ndarray, "height width"]:
    """Bilinear interpolation between the centres of the latent positions, constant outside them.

    The alternative, spreading each position over the decoder's receptive field, localises worse on
    the tabletop because that field is wide: pixel AUROC 0.920 against 0.938 for the appearance
    channel, 0.574 against 0.609 for confidence (144 pictures of 24 episodes).

    >>> upsample(np.array([[0.0, 1.0]]), 1, 4)
    array([[0.  , 0.25, 0.75, 1.  ]])
    """
    h, w = values.shape
    rows = (np.arange(height) + 0.5) * h / height - 0.5
    columns = (np.arange(width) + 0.5) * w / width - 0.5
    tall = np.stack([np.interp(rows, np.arange(h), column) for column in values.T], axis=1)
    return np.stack([np.interp(columns, np.arange(w), row) for row in tall])


def colours(confidence: Float[np.ndarray, "*any"]) -> UInt8[np.ndarray, "*any 3"]:
    """Colour of each confidence value."""
    return palette()[np.round(255 * require_probabilities(confidence)).astype(np.intp)]


def heatmap(
    confidence: Float[np.ndarray, " *channel h w"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Picture of confidence [h, w], or of [channel, h, w] averaged over channels."""
    return colours(upsample(_positions(confidence), height, width))


def overlay(
    frame: UInt8[np.ndarray, "height width 3"],
    confidence: Float[np.ndarray, " *channel h w"],
    *,
    opacity: float = 0.6,
) -> UInt8[np.ndarray, "height width 3"]:
    """Heatmap over the frame in grey, so that all colour in the picture means confidence."""
    height, width, _ = frame.shape
    grey = (frame @ np.array([0.299, 0.587, 0.114]))[..., None]
    blend = opacity * heatmap(confidence, height, width) + (1 - opacity) * grey
    return np.round(blend).astype(np.uint8)


def legend(height: int, *, label: str = "confidence") -> UInt8[np.ndarray, "height 56 3"]:
    """Colour bar with tick labels, to place right of a picture."""
    from PIL import Image, ImageDraw

    if height < 48:
        raise ValueError(f"`height` must be at least 48 pixels to hold the labels, got {height}.")
    canvas = Image.new("RGB", (LEGEND_WIDTH, height), "white")
    top, bottom = 18, height - 8
    bar = colours(np.linspace(1.0, 0.0, bottom - top))
    canvas.paste(Image.fromarray(np.repeat(bar[:, None], 12, axis=1)), (8, top))
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 1), label, fill="black", font_size=10)
    for tick in TICKS:
        y = bottom - tick * (bottom - 1 - top) - 1
        draw.line([(20, y), (24, y)], fill="black")
        draw.text((27, y), f"{tick:.1f}", fill="black", font_size=10, anchor="lm")
    return np.asarray(canvas)


def with_legend(picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height wide 3"]:
    """Append the legend at the right of a picture."""
    return np.concatenate([picture, legend(len(picture))], axis=1)


def _positions(confidence: Float[np.ndarray, " *channel h w"]) -> Float64[np.ndarray, "h w"]:
    if confidence.ndim not in (2, 3):
        raise ValueError(
            f"`confidence` must be [h, w] or [channel, h, w], got shape {confidence.shape}."
        )
    return require_probabilities(confidence).reshape(-1, *confidence.shape[-2:]).mean(axis=0)
