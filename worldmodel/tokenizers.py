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
from jaxtyping import Float, UInt8
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

WHITENING = "whitening.json"


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


def encode_deterministically(autoencoder: Any, frames: Tensor) -> Tensor:
    """The mode of an autoencoder's latent, whichever attribute its class puts it in."""
    output = autoencoder.encode(frames)
    for name in ("latent", "latents"):
        if hasattr(output, name):
            return getattr(output, name)
    return output.latent_dist.mode()


class Tokenizer(nn.Module):
    """A diffusers autoencoder of single frames behind whitened latents.

    Whitened: zero mean and unit standard deviation per channel, once `fit_whitening` has run.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, autoencoder: nn.Module, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
    ) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
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
        """A diffusers autoencoder from a folder (a `Path`) or a folder or hub name (a `str`).

        The whitening comes from the folder where it has one.

        Raises:
            ValueError: there is no autoencoder, or a file of it is missing, corrupt or of another.
        """
        if isinstance(source, Path) and not source.is_dir():
            raise ValueError(f"No tokenizer in {str(source)!r}: there is no such folder.")
        autoencoder = load_autoencoder(str(source))
        return cls(autoencoder, *read_whitening(Path(source), autoencoder.config.latent_channels))

    @property
    def channels(self) -> int:
        """Latent channels."""
        return len(self.mean)

    @property
    def stride(self) -> int:
        """Pixels along a latent position's side."""
        config = self.autoencoder.config
        for name in ("encoder_block_out_channels", "block_out_channels"):
            if name in config:
                return 2 ** (len(config[name]) - 1)
        return int(self.autoencoder.spatial_compression_ratio)

    def fingerprint(self) -> str:
        """Name of this tokenizer's latents: a hash of its weights and whitening."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel h w"]:
        """Whitened latents of frames in [-1, 1]."""
        latents = encode_deterministically(self.autoencoder, frames)
        return (latents - self.mean[:, None, None]) / self.std[:, None, None]

    def decode(
        self, latents: Float[Tensor, "batch channel h w"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Frames, about [-1, 1], of whitened latents."""
        latents = latents * self.std[:, None, None] + self.mean[:, None, None]
        return self.autoencoder.decode(latents).sample

    @torch.no_grad()
    def fit_whitening(self, batches: Iterable[Float[Tensor, "_ 3 _ _"]]) -> Tokenizer:
        """Set mean and standard deviation per channel from frames; forgets what was set before."""
        count = 0
        total, square = torch.zeros(2, self.channels, dtype=torch.float64, device=self.mean.device)
        for frames in batches:
            latents = encode_deterministically(
                self.autoencoder, frames.to(self.mean.device)
            ).double()
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


def load_autoencoder(source: str) -> Any:
    """A diffusers autoencoder from a folder or a hub name, every weight of it from there."""
    import diffusers
    from safetensors import SafetensorError

    try:
        config = diffusers.AutoencoderDC.load_config(source)
        kind = config.get("_class_name") if isinstance(config, dict) else None
        if not str(kind).startswith("Autoencoder") or not hasattr(diffusers, str(kind)):
            raise ValueError(f"its config.json is of {kind}.")
        autoencoder, report = getattr(diffusers, str(kind)).from_pretrained(
            source, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"its weights lack {min(report['missing_keys'])}.")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"No readable diffusers autoencoder in {source!r}: {reason}") from error
    return autoencoder


def read_whitening(folder: Path, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel as `Tokenizer.save` wrote them; 0 and 1 without."""
    file = folder / WHITENING
    if not file.is_file():
        return torch.zeros(channels), torch.ones(channels)
    try:
        stored = json.loads(file.read_text())
        mean, std = (torch.tensor(stored[name], dtype=torch.float32) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} holds no whitening (lists `mean` and `std`).") from error
    if mean.shape != (channels,) or std.shape != (channels,) or not (std > 0).all():
        raise ValueError(
            f"{str(file)!r} must hold {channels} means and positive standard deviations, "
            f"got {stored['mean']} and {stored['std']}."
        )
    return mean, std
