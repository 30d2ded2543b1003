"""The world model as one object: tokenizer, dynamics, confidence head, judges; saved as one folder without pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.confidence import ConfidenceConfig, build_head
from worldmodel.datasets.actions import ActionSpec
from worldmodel.imagination import Imagined, RolloutInputs, imagine
from worldmodel.judge import ActionJudge, LatentJudge
from worldmodel.tokenizers import Tokenizer, to_model, to_pixels
from worldmodel.transformer import Dynamics, DynamicsConfig

SHIPPED = Path(__file__).parent / "checkpoints"
"""Checkpoints inside the package, loaded by their folder's name."""
FORMAT = 1
"""Version of the folder's layout."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a checkpoint was made for, stored beside its weights."""

    dynamics: DynamicsConfig
    confidence: ConfidenceConfig
    image_size: tuple[int, int]
    """Height and width frames are resized to, in pixels."""
    cameras: tuple[str, ...]
    """Names of the cameras, in the order of the view axis."""
    action_spec: ActionSpec
    """Meaning of the actions it was trained on."""
    num_steps: int = 1
    """Sampler steps per imagined frame."""
    trained_horizon: int = 16
    """Longest horizon, in frames, whose errors the confidence head was trained on."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was trained: data, steps, seed, versions."""

    @property
    def rate_hz(self) -> float:
        return self.action_spec.rate_hz

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "action_spec": self.action_spec.as_dict(), "format": FORMAT}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> ModelConfig:
        """The inverse of `as_dict`."""
        if stored.get("format") != FORMAT:
            raise ValueError(
                f"`format` must be {FORMAT}, got {stored.get('format')!r}; made by another version."
            )
        fields = {name: value for name, value in stored.items() if name != "format"}
        fields["dynamics"] = DynamicsConfig(**fields["dynamics"])
        fields["confidence"] = ConfidenceConfig(**fields["confidence"])
        fields["action_spec"] = ActionSpec.from_dict(fields["action_spec"])
        fields["image_size"] = tuple(fields["image_size"])
        fields["cameras"] = tuple(fields["cameras"])
        return cls(**fields)


def resize(
    frames: Float[Tensor, "*batch 3 h w"], size: tuple[int, int]
) -> Float[Tensor, "*batch 3 height width"]:
    """Frames at `size` (height, width) pixels, antialiased; untouched where they have it already."""
    if frames.shape[-2:] == size:
        return frames
    flat = frames.reshape(-1, *frames.shape[-3:])
    small = F.interpolate(flat, size, mode="bilinear", antialias=True, align_corners=False)
    return small.reshape(*frames.shape[:-2], *size)


class WorldModel(nn.Module):
    """Imagines latent frames from real ones and actions, and says how sure it is of every subpatch."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        dynamics = config.dynamics
        self.tokenizer = tokenizer
        self.dynamics = Dynamics(dynamics)
        self.confidence = build_head(
            dynamics.dim, dynamics.channels * dynamics.patch**2, config.confidence
        )
        self.judge = LatentJudge(dynamics.channels, dynamics.views)
        self.action_judge = ActionJudge(dynamics.action_dim)

    @torch.inference_mode()
    def encode(
        self, frames: UInt8[Tensor, "time view height width 3"], *, chunk: int = 64
    ) -> Float[Tensor, "time view channel h w"]:
        """Whitened latents of frames of any size."""
        device = self.tokenizer.mean.device
        views = frames.shape[1]
        if views != self.config.dynamics.views:
            raise ValueError(
                f"`frames` has {views} views; the model was trained on {self.config.cameras}."
            )
        flat = rearrange(frames, "t v h w c -> (t v) h w c")
        parts = []
        for start in range(0, len(flat), chunk):
            pixels = resize(
                to_model(flat[start : start + chunk].to(device)), self.config.image_size
            )
            parts.append(self.tokenizer.encode(pixels))
        return rearrange(torch.cat(parts), "(t v) c h w -> t v c h w", v=views)

    @torch.inference_mode()
    def decode(
        self, latents: Float[Tensor, "*batch channel h w"], *, chunk: int = 64
    ) -> UInt8[Tensor, "*batch height width 3"]:
        """Pixels of latents."""
        flat = latents.reshape(-1, *latents.shape[-3:])
        parts = [
            to_pixels(self.tokenizer.decode(flat[i : i + chunk]))
            for i in range(0, len(flat), chunk)
        ]
        pixels = torch.cat(parts)
        return pixels.reshape(*latents.shape[:-3], *pixels.shape[1:])

    def imagine(  # noqa: PLR0913
        self,
        context: Float[Tensor, "batch start view channel h w"],
        actions: Float[Tensor, "batch rows action"],
        *,
        action_valid: Bool[Tensor, "batch rows"] | None = None,
        seeds: Sequence[int] | None = None,
        epsilon: Sequence[float] = (0.5,),
    ) -> Imagined:
        """Roll out from latents of real frames under canonical actions.

        Args:
            context: latents of the frames before the rollout (`encode` makes them).
            actions: row t takes frame t to frame t + 1; the first row belongs to the first context frame.
            action_valid: false where an action is unknown; default: all known.
            seeds: one per rollout; default: 0, 1, 2, ...
            epsilon: error levels, in latent standard deviations, to state the confidence for.

        Returns:
            `rows - start + 1` imagined frames per rollout.

        Raises:
            ValueError: too few action rows, NaN actions, or seeds that do not match the batch.
        """
        known = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device)
        inputs = RolloutInputs(
            context=context,
            actions=actions,
            action_valid=known if action_valid is None else action_valid,
            seeds=range(len(context)) if seeds is None else seeds,
        )
        levels = torch.tensor(list(epsilon), device=context.device)
        return imagine(
            self.dynamics, self.confidence, inputs, num_steps=self.config.num_steps, epsilon=levels
        )

    def save(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json`, `weights.safetensors` and `tokenizer/` into `folder`, replacing it only when whole."""
        folder = Path(folder)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "config.json").write_text(json.dumps(self.config.as_dict(), indent=2) + "\n")
        weights = {k: v for k, v in self.state_dict().items() if not k.startswith("tokenizer.")}
        half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
        save_file({k: v.contiguous() for k, v in half.items()}, partial / "weights.safetensors")
        self.tokenizer.save(partial / "tokenizer", dtype=dtype)
        for extra in ("monitor", "README.md"):
            _carry_over(folder / extra, partial / extra)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    @classmethod
    def load(cls, source: str | Path) -> WorldModel:
        """A model from a folder, or the shipped one of that name ("tabletop"), in evaluation mode.

        Raises:
            ValueError: no such folder or checkpoint, or a file in it is missing, corrupt or of another model.
        """
        folder = checkpoint_folder(source)
        try:
            config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
            weights = load_file(folder / "weights.safetensors")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Checkpoint {str(folder)!r} cannot be read: {error}.") from error
        model = cls(config, Tokenizer.from_pretrained(folder / "tokenizer"))
        try:
            missing, unexpected = model.load_state_dict(
                {k: v.float() if v.is_floating_point() else v for k, v in weights.items()},
                strict=False,
            )
        except RuntimeError as error:
            raise ValueError(
                f"Weights in {str(folder)!r} do not fit its config.json: {error}"
            ) from error
        wrong = [k for k in missing if not k.startswith("tokenizer.")] + list(unexpected)
        if wrong:
            raise ValueError(
                f"Weights in {str(folder)!r} do not fit its config.json; first mismatch: {wrong[0]}."
            )
        return model.eval()


def _carry_over(source: Path, target: Path) -> None:
    """Copy a folder or file if it is there."""
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copy2(source, target)


def checkpoint_folder(source: str | Path) -> Path:
    """The folder of a checkpoint given by path or by the name of a shipped one."""
    folder = Path(source)
    if (folder / "config.json").is_file():
        return folder
    if (SHIPPED / str(source) / "config.json").is_file():
        return SHIPPED / str(source)
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    raise ValueError(
        f"No checkpoint in {str(source)!r} (no config.json there); shipped checkpoints: {shipped}."
    )
