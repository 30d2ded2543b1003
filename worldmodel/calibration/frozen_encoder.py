"""Features of real frames from a frozen encoder of diffusers, timm, transformers, or your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from worldmodel.networks.autoencoders import KINDS
from worldmodel.networks.images import resize

MAPS = ("last_hidden_state", "x_norm_patchtokens", "latent", "latents")
"""Fields that hold the features in outputs of transformers, DINOv2 and diffusers."""

MOST_EXTRA = 16
"""Maximum number of class, register and distillation tokens before the patch tokens."""


class FrozenEncoder:
    """Feature function for the monitor: frame -> features of the frame and of every position.

    `module` may be a diffusers autoencoder or unconditional UNet, a timm model, a vision model of
    transformers (also within CLIP or SigLIP), DINOv2 from its own repository, or any module that
    maps frames [batch, 3, height, width] to a map [batch, c, h, w], tokens [batch, n, c] with the
    patches last, or vectors [batch, c]. It is set to `eval` mode, and gradients are disabled.

    Features of the frame: mean and standard deviation of each channel over the positions of each
    view.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        image_size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        patch_size: int | None = None,
    ) -> None:
        """Freeze the encoder.

        Args:
            module: The encoder.
            image_size: Height and width in pixels that frames are resized to; None: the size in
                the module's config, or no resizing if it has none.
            mean: Mean of each colour channel in [0, 1], which is subtracted; None: the mean in the
                module's config. Configs of transformers have none (see the image processor).
            std: Standard deviation of each colour channel, to divide by; None: as for `mean`.
            patch_size: Side of a patch in pixels; None: the size in the module's config.

        Raises:
            ValueError: A required value is neither given nor in the config, or the module does not
                take RGB frames.
        """
        module = getattr(module, "vision_model", module)
        config = getattr(module, "config", None)
        for name in ("in_channels", "num_channels"):
            if getattr(config, name, 3) != 3:
                raise ValueError(
                    f"`module` must take RGB frames, got one that takes {getattr(config, name)} "
                    "channels; wrap it in a module that converts RGB frames."
                )
        self.module = module.eval().requires_grad_(False)
        self.image_size = image_size or _image_size(module)
        self.mean, self.std = _colours(module, mean, std)
        self.patch_size = _pair(patch_size) or _patch_size(module)

    def __call__(
        self, frame: UInt8[np.ndarray, "*view height width 3"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "*view h w c"]]:
        """Features of one frame."""
        pooled, positions = self.of_episode(torch.from_numpy(np.array(frame))[None])
        return pooled[0], positions[0]

    @torch.inference_mode()
    def of_episode(
        self, frames: UInt8[Tensor, "time *view height width 3"], *, chunk: int = 16
    ) -> tuple[Float[np.ndarray, "time d"], Float[np.ndarray, "time *view h w c"]]:
        """Features of every frame of an episode, `chunk` images at a time."""
        flat = frames.reshape(-1, *frames.shape[-3:])
        parts = [self._map(flat[i : i + chunk]).cpu() for i in range(0, len(flat), chunk)]
        positions = rearrange(torch.cat(parts), "n c h w -> n h w c")
        std, mean = torch.std_mean(positions, (1, 2), correction=0)
        pooled = torch.cat((mean, std), dim=1).reshape(len(frames), -1)
        shaped = positions.reshape(*frames.shape[:-3], *positions.shape[1:])
        return pooled.numpy(), shaped.numpy()

    def _map(self, frames: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n c h w"]:
        like = next(self.module.parameters(), torch.empty(0))
        pixels = rearrange(frames.to(like.device), "n h w c -> n c h w").float() / 255
        if self.image_size is not None:
            pixels = resize(pixels, self.image_size)
        mean, std = (rearrange(pixels.new_tensor(v), "c -> c 1 1") for v in (self.mean, self.std))
        pixels = ((pixels - mean) / std).to(like.dtype)
        features = _tensor(_run(self.module, pixels), self.module)
        height, width = pixels.shape[-2:]
        return self._as_map(features, (height, width)).float()

    def _as_map(self, features: Tensor, size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
        """Feature map of a map, of patch tokens (extra tokens dropped), or of a vector (1 x 1)."""
        if features.ndim == 4:
            last = getattr(self.module, "output_fmt", "NCHW") == "NHWC"  # for example timm's Swin
            return rearrange(features, "n h w c -> n c h w") if last else features
        if features.ndim == 2:
            return rearrange(features, "n c -> n c 1 1")
        if features.ndim != 3:
            raise ValueError(
                f"`module` must return a map, tokens or vectors, got shape {tuple(features.shape)}."
            )
        if self.patch_size is None:
            raise ValueError("`module` returns tokens; give the side of a patch in `patch_size`.")
        h, w = (pixels // patch for pixels, patch in zip(size, self.patch_size, strict=True))
        if h * w == 0 or not 0 <= features.shape[1] - h * w <= MOST_EXTRA:
            raise ValueError(
                f"`patch_size` {self.patch_size} makes {h} x {w} tokens of frames of {size} "
                f"pixels, but `module` returns {features.shape[1]}; give the right `patch_size`."
            )
        return rearrange(features[:, -h * w :], "n (h w) c -> n c h w", h=h)


def _run(module: Any, pixels: Float[Tensor, "n 3 height width"]) -> object:
    """Output of the module, from the method that computes its features."""
    if type(module).__name__ in KINDS:
        return KINDS[type(module).__name__].encode(module, pixels)
    if _is_diffusers(module) and hasattr(module, "mid_block") and hasattr(module, "time_proj"):
        return _middle(module, pixels)
    for method in ("encode", "forward_features"):
        if hasattr(module, method):
            return getattr(module, method)(pixels)
    return module(pixels)


def _middle(unet: Any, pixels: Float[Tensor, "n 3 height width"]) -> object:
    """Output of the middle block of a diffusers UNet for frames without noise."""
    outputs: list[object] = []
    hook = unet.mid_block.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        unet(pixels, 0)
    finally:
        hook.remove()
    return outputs[-1]


def _tensor(output: object, module: nn.Module) -> Tensor:
    """Features in a module's output."""
    if isinstance(output, Tensor):
        return output
    fields = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    for name in MAPS:
        if isinstance(fields.get(name), Tensor):
            return fields[name]
    if "latent_dist" in fields:
        return fields["latent_dist"].mode()
    if fields.get("feature_maps"):
        return fields["feature_maps"][-1]
    raise ValueError(
        f"`module` must return a tensor or one of {', '.join(MAPS)}, latent_dist, feature_maps, "
        f"got {type(output).__name__} from {type(module).__name__}; pass the submodule that "
        "computes the features."
    )


def _is_diffusers(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("diffusers.") for kind in type(module).__mro__)


def _pretrained(module: nn.Module, name: str) -> Any:
    """An entry of timm's `pretrained_cfg`, a dict or an object; None if there is none."""
    entries = getattr(module, "pretrained_cfg", None) or {}
    return entries.get(name) if isinstance(entries, Mapping) else getattr(entries, name, None)


def _image_size(module: nn.Module) -> tuple[int, int] | None:
    built = getattr(getattr(module, "patch_embed", None), "img_size", None)
    named = getattr(getattr(module, "config", None), "image_size", None)
    return _pair(built or named or (_pretrained(module, "input_size") or ())[1:])


def _patch_size(module: nn.Module) -> tuple[int, int] | None:
    owners = (getattr(module, name, None) for name in ("config", "patch_embed"))
    named = [getattr(owner, "patch_size", None) for owner in (*owners, module)]
    return next((_pair(size) for size in named if size), None)


def _colours(
    module: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that normalise colours in [0, 1]."""
    middle = (0.5, 0.5, 0.5) if _is_diffusers(module) else None
    values = []
    for name, given in (("mean", mean), ("std", std)):
        value = next((v for v in (given, _pretrained(module, name), middle) if v is not None), None)
        if value is None:
            raise ValueError(
                f"`{name}` must be given: the config of {type(module).__name__} has no `{name}`; "
                "look it up in its image processor or model card."
            )
        if len(value) != 3:
            raise ValueError(f"`{name}` must hold 3 numbers, one per colour, got {value}.")
        values.append(tuple(float(number) for number in value))
    if min(values[1]) <= 0:
        raise ValueError(f"`std` must be above 0, got {values[1]}.")
    return values[0], values[1]


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width from one number or two; None from none."""
    if not size:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
