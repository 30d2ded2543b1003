"""Tokenizer: whitened latents of frames, from any supported diffusers autoencoder."""

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
from worldmodel.precision import PrecisionModule

if TYPE_CHECKING:
    from diffusers import AutoencoderDC


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Configuration of a small convolutional autoencoder, trained from scratch."""

    channels: int = 8
    """Latent channels."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Feature channels per resolution, finest first; each stage halves the resolution."""
    layers: tuple[int, ...] = (0, 1, 1, 2)
    """Residual blocks per resolution; 0 at the finest merges it into the next, which saves most of
    the computation."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.layers):
            raise ValueError(
                f"`widths` and `layers` must have equal length, got {self.widths} and "
                f"{self.layers}."
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
    """Small `diffusers.AutoencoderDC` (Chen et al. 2024, arXiv:2410.10733) of residual blocks."""
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


class Tokenizer(PrecisionModule):
    """Diffusers autoencoder that encodes single frames as whitened latents.

    Whitened latents have zero mean and unit standard deviation per channel, after `fit_whitening`.
    Before that, they have the scale on which diffusers' pipelines run diffusion models.

    A video autoencoder encodes each frame as a clip of length one, so a latent depends only on its
    own frame, as rollouts need. This gives up the autoencoder's compression along time.

    Raises:
        ValueError: The class of the autoencoder is not in `KINDS`.
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
        """Untrained small tokenizer with identity whitening."""
        return cls(
            build_autoencoder(config), torch.zeros(config.channels), torch.ones(config.channels)
        )

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Tokenizer:
        """Load a diffusers autoencoder and its whitening from a folder or from the hub.

        Without a `whitening.json`, the whitening follows the autoencoder's config.

        Args:
            source: A folder; or, if no such folder exists, a `str` "org/name" or
                "org/name/subfolder" on the hub. A `Path` is always local.

        Raises:
            ValueError: No autoencoder is found, its class is not in `KINDS`, or one of its files is
                missing, corrupt or from another autoencoder.
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
        """Hash of class, config, weights and whitening; identifies the latents."""
        config = {k: v for k, v in self.autoencoder.config.items() if not k.startswith("_")}
        identity = json.dumps([type(self.autoencoder).__name__, config], sort_keys=True)
        digest = hashlib.sha256(identity.encode())
        for name, value in sorted(self.state_dict().items()):
            plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + plain.numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel h w"]:
        """Whitened latents of frames in [-1, 1].

        Raises:
            ValueError: Height or width is not a multiple of the stride.
        """
        return (self._encode(frames) - self.mean[:, None, None]) / self.std[:, None, None]

    def _encode(self, frames: Tensor) -> Tensor:
        """Latents of the autoencoder, before whitening."""
        (height, width), stride = frames.shape[-2:], self.stride
        if height % stride or width % stride or not height or not width:
            near = [max(1, round(side / stride)) * stride for side in (height, width)]
            raise ValueError(
                f"`frames` must have a height and width that are multiples of the tokenizer's "
                f"stride {stride}, got {height} x {width}; resize them, for example to {near[0]} x "
                f"{near[1]}."
            )
        with self.computing():
            return self.computed(self.kind.encode(self.autoencoder, frames))

    def decode(
        self, latents: Float[Tensor, "batch channel h w"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Frames in about [-1, 1] from whitened latents."""
        latents = latents * self.std[:, None, None] + self.mean[:, None, None]
        with self.computing():
            return self.computed(self.kind.decode(self.autoencoder, latents))

    @torch.no_grad()
    def fit_whitening(self, batches: Iterable[Float[Tensor, "_ 3 _ _"]]) -> Tokenizer:
        """Fit mean and standard deviation per channel to frames; forgets earlier fits."""
        count = 0
        total, square = torch.zeros(2, self.channels, dtype=torch.float64, device=self.mean.device)
        for frames in batches:
            latents = self._encode(frames.to(self.mean.device)).double()
            count += latents[:, 0].numel()
            total += latents.sum((0, 2, 3))
            square += latents.square().sum((0, 2, 3))
        if count == 0:
            raise ValueError("`batches` must hold at least one batch of frames, got none.")
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((square / count - mean.square()).clamp_min(1e-12).sqrt())
        return self

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the autoencoder in diffusers' format, and `whitening.json` next to it."""
        nn.Module.to(copy.deepcopy(self.autoencoder), dtype).save_pretrained(folder)
        (folder / WHITENING).write_text(
            json.dumps({"mean": self.mean.tolist(), "std": self.std.tolist()}), encoding="utf-8"
        )


class BottleneckInput:
    """Bottleneck features of a tokenizer: the input of its encoder's last convolution.

    Runs a truncated copy of the encoder, in a memory format for fast convolutions. It uses no
    hooks, so it is safe to call from several threads.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.device = tokenizer.mean.device
        encoder = copy.deepcopy(tokenizer.autoencoder.encoder)
        if not tokenizer.kind.video:
            encoder = encoder.to(memory_format=torch.channels_last)
        convolutions = [n for n, part in encoder.named_modules() if isinstance(part, nn.Conv2d)]
        last = "conv_out" if hasattr(encoder, "conv_out") else convolutions[-1]
        encoder.set_submodule(last, _End())
        self._truncated = copy.copy(tokenizer.autoencoder)
        self._truncated._modules = {**tokenizer.autoencoder._modules, "encoder": encoder}

    def __call__(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch c h w"]:
        """Features of frames in [-1, 1], one vector per latent position."""
        frames = frames.to(self.device).contiguous(memory_format=torch.channels_last)
        try:
            with self.tokenizer.computing():
                self.tokenizer.kind.encode(self._truncated, frames)
        except _ReachedError as reached:
            features = self.tokenizer.computed(reached.features)
        else:
            raise RuntimeError("The encoder did not reach its last convolution.")
        features = features[:, :, 0] if self.tokenizer.kind.video else features
        height, width = (side // self.tokenizer.stride for side in frames.shape[-2:])
        if features.shape[-2:] == (height, width):
            return features
        return nn.functional.adaptive_avg_pool2d(features, (height, width))


class _ReachedError(Exception):
    """Carries features out of an interrupted forward pass."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class _End(nn.Module):
    """Stops the forward pass and raises its input in a `_ReachedError`."""

    def forward(self, features: Tensor, *_: object, **__: object) -> Tensor:
        raise _ReachedError(features)
