"""From frames to whitened latents and back, through any diffusers autoencoder."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.networks.autoencoders import kind_of
from worldmodel.networks.tokenizer_files import (
    WHITENING,
    find_folder,
    load_autoencoder,
    read_whitening,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderDC


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Small convolutional autoencoder, trained from scratch."""

    channels: int = 8
    """Latent channels."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Feature channels at each resolution, finest first; each halves the one before."""
    layers: tuple[int, ...] = (0, 1, 1, 2)
    """Residual blocks at each resolution; 0 at the finest folds it into the next, which saves most
    of the work."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.layers):
            raise ValueError(
                f"`widths` and `layers` must be of one length, got {self.widths} and {self.layers}."
            )
        if self.widths[-1] % self.channels:
            raise ValueError(
                f"`channels` must divide the last of `widths`, got {self.channels} and "
                f"{self.widths}."
            )

    @property
    def stride(self) -> int:
        """Pixels along a latent position's side."""
        return 2 ** (len(self.widths) - 1)


def build_autoencoder(config: TokenizerConfig) -> AutoencoderDC:
    """A small `diffusers.AutoencoderDC` (Chen et al. 2024, arXiv:2410.10733) of residual blocks."""
    from diffusers import AutoencoderDC

    stages = len(config.widths)
    return AutoencoderDC(
        latent_channels=config.channels,
        attention_head_dim=config.widths[-1],
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=config.widths,
        decoder_block_out_channels=config.widths,
        encoder_layers_per_block=config.layers,
        decoder_layers_per_block=config.layers,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        scaling_factor=1.0,
    )


class Tokenizer(nn.Module):
    """A diffusers autoencoder of single frames behind whitened latents.

    Whitened: zero mean and unit standard deviation per channel, once `fit_whitening` has run.
    Before that, latents have the scale that diffusion models on this autoencoder are trained on.

    An autoencoder of videos sees each frame as a clip of one frame: latents of a frame then depend
    on nothing but that frame, which a rollout one frame at a time needs. What it could save along
    time is given up.

    Raises:
        ValueError: an autoencoder of a class that is not in `KINDS`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, autoencoder: nn.Module, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
    ) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.kind = kind_of(type(autoencoder).__name__)
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())

    @classmethod
    def from_config(cls, config: TokenizerConfig) -> Tokenizer:
        """An untrained small tokenizer, whitening still the identity."""
        return cls(
            build_autoencoder(config), torch.zeros(config.channels), torch.ones(config.channels)
        )

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Tokenizer:
        """A diffusers autoencoder from a folder, or from the hub.

        Its whitening comes from there too; without a fitted one it is the autoencoder's own.

        Args:
            source: A folder, or a `str` "org/name" or "org/name/subfolder" on the hub where there
                is no folder of that name. A `Path` never asks the network.

        Raises:
            ValueError: there is no autoencoder, it is of a class that is not in `KINDS`, or a file
                of it is missing, corrupt or of another.
        """
        folder = find_folder(source)
        autoencoder = load_autoencoder(folder)
        return cls(autoencoder, *read_whitening(folder, autoencoder))

    @property
    def channels(self) -> int:
        """Latent channels."""
        return len(self.mean)

    @property
    def stride(self) -> int:
        """Pixels along a latent position's side."""
        return self.kind.stride(self.autoencoder.config)

    def fingerprint(self) -> str:
        """Name of this tokenizer's latents: a hash of its class, config, weights and whitening."""
        config = {k: v for k, v in self.autoencoder.config.items() if not k.startswith("_")}
        named = json.dumps([type(self.autoencoder).__name__, config], sort_keys=True)
        digest = hashlib.sha256(named.encode())
        for name, value in sorted(self.state_dict().items()):
            plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + plain.numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel h w"]:
        """Whitened latents of frames in [-1, 1].

        Raises:
            ValueError: height or width is no multiple of the stride.
        """
        return (self._encode(frames) - self.mean[:, None, None]) / self.std[:, None, None]

    def _encode(self, frames: Tensor) -> Tensor:
        """The autoencoder's own latents."""
        (height, width), stride = frames.shape[-2:], self.stride
        if height % stride or width % stride or not height or not width:
            near = [max(1, round(side / stride)) * stride for side in (height, width)]
            raise ValueError(
                f"`frames` must have a height and width that are multiples of the tokenizer's "
                f"stride {stride}, got {height} x {width}; resize them, to {near[0]} x {near[1]} "
                "perhaps."
            )
        return self.kind.encode(self.autoencoder, frames)

    def decode(
        self, latents: Float[Tensor, "batch channel h w"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Frames, about [-1, 1], of whitened latents."""
        latents = latents * self.std[:, None, None] + self.mean[:, None, None]
        return self.kind.decode(self.autoencoder, latents)

    @torch.no_grad()
    def fit_whitening(self, batches: Iterable[Float[Tensor, "_ 3 _ _"]]) -> Tokenizer:
        """Set mean and standard deviation per channel from frames; forgets what was set before."""
        count = 0
        total, square = torch.zeros(2, self.channels, dtype=torch.float64, device=self.mean.device)
        for frames in batches:
            latents = self._encode(frames.to(self.mean.device)).double()
            count += latents[:, 0].numel()
            total += latents.sum((0, 2, 3))
            square += latents.square().sum((0, 2, 3))
        if count == 0:
            raise ValueError("`batches` is empty: whitening needs frames.")
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((square / count - mean.square()).clamp_min(1e-12).sqrt())
        return self

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the autoencoder in diffusers' own format, whitening beside it."""
        nn.Module.to(copy.deepcopy(self.autoencoder), dtype).save_pretrained(folder)
        (folder / WHITENING).write_text(
            json.dumps({"mean": self.mean.tolist(), "std": self.std.tolist()})
        )


class BottleneckInput:
    """What a tokenizer's encoder has made of frames just before it squeezes them into latents.

    The input of the encoder's last convolution, where the pass through it ends. Works on a copy of
    the encoder, laid out for fast convolutions: no hooks, so threads need not take turns.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.device = tokenizer.mean.device
        encoder = copy.deepcopy(tokenizer.autoencoder.encoder)
        if not tokenizer.kind.video:
            encoder = encoder.to(memory_format=torch.channels_last)
        named = [n for n, part in encoder.named_modules() if isinstance(part, nn.Conv2d)]
        encoder.set_submodule("conv_out" if hasattr(encoder, "conv_out") else named[-1], _End())
        self._cut = copy.copy(tokenizer.autoencoder)
        self._cut._modules = {**tokenizer.autoencoder._modules, "encoder": encoder}

    def __call__(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch c h w"]:
        """Features of frames in [-1, 1], one per latent position."""
        frames = frames.to(self.device).contiguous(memory_format=torch.channels_last)
        try:
            self.tokenizer.kind.encode(self._cut, frames)
        except _ReachedError as reached:
            features = reached.features
        else:
            raise RuntimeError("the encoder's last convolution was not reached.")
        features = features[:, :, 0] if self.tokenizer.kind.video else features
        height, width = (side // self.tokenizer.stride for side in frames.shape[-2:])
        if features.shape[-2:] == (height, width):
            return features
        return nn.functional.adaptive_avg_pool2d(features, (height, width))


class _ReachedError(Exception):
    """Carries features out of the middle of a network."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class _End(nn.Module):
    """Ends a forward pass."""

    def forward(self, features: Tensor, *_: object, **__: object) -> Tensor:
        raise _ReachedError(features)
