"""Compositing: imagined pictures that show again what the last real frame showed.

A tokenizer loses detail, and a decoded picture pays this loss again for things that never moved.
Three pictures are at hand for an imagined latent z, with the last real frame and its latent z0:

    generated  decode(z)
    carried    decode(z) + frame - decode(z0)
    copied     frame

Their per-pixel shares add up to 1, as in visual foresight (Finn & Levine 2017, arXiv:1610.00696;
Ebert et al. 2018, arXiv:1812.00568). Where z equals z0, all that is carried or copied is the frame
itself. What the camera had not seen is generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from worldmodel.networks.images import to_pixels
from worldmodel.networks.tokenizer import Tokenizer

CHANGE_SCALE = 1.0
"""Change of a latent, in its standard deviations, at which the training-free share is 1/e."""


@dataclass(frozen=True)
class LastReal:
    """Last real frame before each imagined one, one row per view."""

    frames: Float[Tensor, "batch 3 height width"]  # in [-1, 1]
    latents: Float[Tensor, "batch channel h w"]
    decoded: Float[Tensor, "batch 3 height width"]
    """The tokenizer's picture of `latents`."""
    seen: Bool[Tensor, " batch"] | None = None
    """False where the camera is missing: its picture is generated; None: all are seen."""

    def rows(self, index: Int[Tensor, " rows"]) -> LastReal:
        """Last real frames of some imagined ones, by number."""
        seen = None if self.seen is None else self.seen[index]
        return LastReal(self.frames[index], self.latents[index], self.decoded[index], seen)


Shares = Callable[[Tensor, Tensor, LastReal], Tensor]
"""Shares [batch, 3, height, width] of the generated, carried and copied picture, from the latents,
their decoded pictures and the last real frames."""


def latent_change(
    latents: Float[Tensor, "batch channel h w"], reference: Float[Tensor, "batch channel h w"]
) -> Float[Tensor, "batch h w"]:
    """Root mean square difference over channels, in latent standard deviations.

    >>> latent_change(torch.full((1, 4, 1, 1), 3.0), torch.ones(1, 4, 1, 1))
    tensor([[[2.]]])
    """
    return (latents - reference).float().square().mean(1).sqrt()


def at_pixels(
    values: Float[Tensor, "batch channel h w"], size: tuple[int, int]
) -> Float[Tensor, "batch channel height width"]:
    """Enlarge values per latent position to pixels, bilinearly."""
    return F.interpolate(values, size, mode="bilinear", align_corners=False)


def training_free_shares(
    latents: Float[Tensor, "batch channel h w"],
    decoded: Float[Tensor, "batch 3 height width"],
    last: LastReal,
) -> Float[Tensor, "batch 3 height width"]:
    """Shares without a network: exp(-(change / CHANGE_SCALE)²) is carried, the rest generated."""
    change = latent_change(latents, last.latents)
    kept = torch.exp(-(change / CHANGE_SCALE).square())[:, None]
    carried = at_pixels(kept, (decoded.shape[-2], decoded.shape[-1]))
    return torch.cat((1 - carried, carried, torch.zeros_like(carried)), 1)


def compose(
    decoded: Float[Tensor, "batch 3 height width"],
    last: LastReal,
    shares: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, "batch 3 height width"]:
    """Sum of the generated, carried and copied picture, each times its share of the pixel."""
    if last.seen is not None:
        generated = shares.new_tensor([1.0, 0.0, 0.0])[:, None, None]
        shares = torch.where(last.seen[:, None, None, None], shares, generated)
    carried, copied = shares[:, 1:2], shares[:, 2:3]
    # From the decoded picture on: without carried and copied shares it stays as it is, bit by bit.
    return decoded + carried * (last.frames - last.decoded) + copied * (last.frames - decoded)


def composed_pictures(
    tokenizer: Tokenizer,
    shares: Shares,
    latents: Float[Tensor, "batch channel h w"],
    last: LastReal,
    index: Int[Tensor, " batch"],
    *,
    chunk: int = 64,
) -> UInt8[Tensor, "batch height width 3"]:
    """Decode latents and compose each with row `index` of `last`, `chunk` pictures at a time."""
    parts = []
    for codes, rows in zip(torch.split(latents, chunk), torch.split(index, chunk), strict=True):
        decoded, own = tokenizer.decode(codes), last.rows(rows)
        parts.append(to_pixels(compose(decoded, own, shares(codes, decoded, own))))
    return torch.cat(parts)
