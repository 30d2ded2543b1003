"""Adapters for the diffusers autoencoders that a tokenizer can use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one class of autoencoder encodes and decodes single frames."""

    stride: Callable[[Config], int]
    """Stride in pixels per latent position, computed from the class's config."""
    channels: str = "latent_channels"
    """Name of the config entry with the number of latent channels."""
    video: bool = False
    """Whether it encodes clips [batch, channel, time, height, width]; a frame becomes a clip of
    length one."""
    decode_options: Mapping[str, Any] = field(default_factory=dict)
    """Extra keyword arguments of its `decode`."""
    statistics_per_frame: bool = False
    """Whether `latents_mean` and `latents_std` hold one value per channel and latent frame."""

    def encode(
        self, autoencoder: Any, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel h w"]:
        """Mode of each frame's latent distribution."""
        frames = rearrange(frames, "b c h w -> b c 1 h w") if self.video else frames
        output = autoencoder.encode(frames)
        if hasattr(output, "latent"):
            latents = output.latent
        elif hasattr(output, "latents"):
            latents = output.latents
        else:
            latents = output.latent_dist.mode()
        return rearrange(latents, "b c 1 h w -> b c h w") if self.video else latents

    def decode(
        self, autoencoder: Any, latents: Float[Tensor, "batch channel h w"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Frames from their latents, each decoded on its own."""
        latents = rearrange(latents, "b c h w -> b c 1 h w") if self.video else latents
        frames = autoencoder.decode(latents, **self.decode_options).sample
        return rearrange(frames, "b c 1 h w -> b c h w") if self.video else frames

    def whitening(self, config: Config) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean and standard deviation per channel, from the autoencoder's config.

        They match the scale on which diffusers' pipelines run diffusion models:
        `(z - latents_mean) / latents_std * scaling_factor`, or, without these statistics,
        `(z - shift_factor) * scaling_factor`.

        Raises:
            ValueError: The statistics have another number of channels, or a scale is not positive.
        """
        channels = config[self.channels]
        shift, scale = (
            default if config.get(name) is None else float(config[name])
            for name, default in (("shift_factor", 0.0), ("scaling_factor", 1.0))
        )
        mean = self._statistic(config, "latents_mean", torch.full((channels,), shift))
        std = self._statistic(config, "latents_std", torch.ones(channels)) / scale
        if not ((std > 0) & std.isfinite()).all():
            raise ValueError(
                f"its config.json must hold positive `scaling_factor` and `latents_std`, got "
                f"{scale} and {config.get('latents_std')}."
            )
        return mean, std

    def _statistic(self, config: Config, name: str, default: Tensor) -> Tensor:
        if config.get(name) is None:
            return default
        values = torch.tensor(config[name], dtype=torch.float32)
        if self.statistics_per_frame and len(values) % len(default) == 0:
            values = values.reshape(len(default), -1)[:, 0]
        if values.shape != default.shape:
            raise ValueError(
                f"its config.json must hold {len(default)} values in `{name}`, one per latent "
                f"channel, got {len(values)}."
            )
        return values


def halved_between(blocks: str) -> Callable[[Config], int]:
    """Stride function of an encoder that halves the image between consecutive blocks."""

    def stride(config: Config) -> int:
        return 2 ** (len(config[blocks]) - 1)

    return stride


def cosmos_stride(config: Config) -> int:
    """Stride of Cosmos: patches, then halvings up to the ratio, in all blocks but the last."""
    patch = int(config["patch_size"])
    halvings = (config["spatial_compression_ratio"] // patch).bit_length() - 1
    return patch * 2 ** min(halvings, len(config["encoder_block_out_channels"]) - 2)


def wan_stride(config: Config) -> int:
    """Stride of Wan: halvings between blocks, after patches if the config has them (Wan 2.2)."""
    return 2 ** (len(config["dim_mult"]) - 1) * (config["patch_size"] or 1)


KINDS = {
    "AutoencoderKL": Kind(stride=halved_between("block_out_channels")),
    "AutoencoderTiny": Kind(stride=halved_between("encoder_block_out_channels")),
    "AutoencoderDC": Kind(stride=halved_between("encoder_block_out_channels")),
    "AutoencoderKLCosmos": Kind(stride=cosmos_stride, video=True, statistics_per_frame=True),
    "AutoencoderKLWan": Kind(stride=wan_stride, channels="z_dim", video=True),
    # Its decoder mixes the frames of a clip; `num_frames=1` decodes each frame on its own.
    "AutoencoderKLTemporalDecoder": Kind(
        stride=halved_between("block_out_channels"), decode_options={"num_frames": 1}
    ),
}
"""Name of the diffusers class -> its adapter."""


def kind_of(name: object) -> Kind:
    """Adapter of a diffusers class, by the class's name."""
    if name not in KINDS:
        raise ValueError(f"`autoencoder` must be one of {', '.join(KINDS)}, got {name}.")
    return KINDS[str(name)]
