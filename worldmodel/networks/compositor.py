"""Network that composes pictures: which part of an imagined picture is new, and which was seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.networks.compositing import LastReal, at_pixels, latent_change

SMALLEST_SHARE = 1e-6
"""Weight of the generated picture where the latent did not change."""


@dataclass(frozen=True, kw_only=True)
class CompositorConfig:
    """Network that mixes the pictures."""

    latent_width: int = 32
    """Hidden channels per latent position."""
    width: int = 16
    """Hidden channels per pixel."""

    def __post_init__(self) -> None:
        if min(self.latent_width, self.width) < 1:
            raise ValueError(
                f"`latent_width` and `width` must be positive, got {self.latent_width} and "
                f"{self.width}."
            )


class Compositor(nn.Module):
    """Convolutional network for the shares of the three pictures, for images of any size.

    It sees how the latent changed, how the picture changed (decode(z) - decode(z0)), what the
    tokenizer loses (frame - decode(z0)), and the change of the whole view, which tells motion from
    drift. Where a latent did not change at all, nothing is generated.
    """

    def __init__(self, channels: int, config: CompositorConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.latent_width, config.width
        self.latent_layers = nn.Sequential(
            nn.Conv2d(2 * channels + 6, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, width, 1),
        )
        self.pixel_input = nn.Conv2d(13, width, 3, padding=1)
        self.pixel_layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def forward(
        self,
        latents: Float[Tensor, "batch channel h w"],
        decoded: Float[Tensor, "batch 3 height width"],
        last: LastReal,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Shares of the generated, carried and copied picture."""
        size = (decoded.shape[-2], decoded.shape[-1])
        change = latent_change(latents, last.latents)[:, None]
        lost, moved = last.frames - last.decoded, decoded - last.decoded
        of_view = _whole_view(change, lost, moved)
        inputs = torch.cat((latents, last.latents, change, torch.exp(-change.square()), of_view), 1)
        pixels = torch.cat(
            (lost, moved, last.frames, at_pixels(change, size), _size(lost), _size(moved),
             _size(moved + lost)), 1,
        )  # fmt: skip
        hidden = self.pixel_input(pixels) + at_pixels(self.latent_layers(inputs), size)
        generated, others = self.pixel_layers(hidden).split((1, 2), 1)
        may_generate = at_pixels(1 - torch.exp(-(4 * change).square()), size)
        barrier = may_generate.clamp_min(SMALLEST_SHARE).log()
        return torch.cat((generated + barrier, others), 1).softmax(1)


def _size(picture: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Mean absolute value over colours."""
    return picture.abs().mean(1, keepdim=True)


def _whole_view(change: Tensor, lost: Tensor, moved: Tensor) -> Float[Tensor, "batch 4 h w"]:
    """Mean and median change of a view's latents, and mean loss and change of its picture."""
    flat = change.flatten(1)
    values = torch.stack(
        (flat.mean(1), flat.median(1).values, lost.abs().mean((1, 2, 3)),
         moved.abs().mean((1, 2, 3))), 1,
    )  # fmt: skip
    return repeat(values, "b k -> b k h w", h=change.shape[-2], w=change.shape[-1])
