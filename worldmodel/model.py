"""World model: tokenizer, compositor, dynamics, confidence head and success classifiers.

A checkpoint is one folder, without pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldmodel.checkpoint import (
    checkpoint_folder,
    copy_if_present,
    recover_folder,
    replaced_folder,
)
from worldmodel.imagination import Imagined, Network, imagine
from worldmodel.model_config import ModelConfig, read_config
from worldmodel.networks.c3 import C3Config, C3Network
from worldmodel.networks.compositing import LastReal, composed_pictures, training_free_shares
from worldmodel.networks.compositor import Compositor
from worldmodel.networks.confidence_heads import Head, build_head
from worldmodel.networks.declared_size import require_declared_size
from worldmodel.networks.dynamics import Dynamics, only_valid
from worldmodel.networks.images import resize, to_model, to_pixels
from worldmodel.networks.pixel_confidence import PixelConfidence
from worldmodel.networks.recurrent import RecurrentConfig, RecurrentDynamics
from worldmodel.networks.rollout import RolloutInputs
from worldmodel.networks.sampler import Sampling
from worldmodel.networks.success import ActionSuccessClassifier, SuccessClassifier
from worldmodel.networks.tokenizer import Tokenizer


class WorldModel(nn.Module):
    """World model that imagines latent frames from real frames and actions, with a confidence."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        dynamics = config.dynamics
        expected = (dynamics.channels, dynamics.height, dynamics.width)
        shape = (tokenizer.channels, *(side // tokenizer.stride for side in config.image_size))
        if shape != expected:
            raise ValueError(
                f"`tokenizer` makes latents of {shape} (channels, height, width) from frames of "
                f"{config.image_size} pixels; the dynamics network expects {expected}."
            )
        self.config = config
        self.tokenizer = tokenizer
        self.dynamics: Network
        self.confidence: Head | None = None
        if isinstance(dynamics, C3Config):
            self.dynamics = C3Network(dynamics)
        elif isinstance(dynamics, RecurrentConfig):
            self.dynamics = RecurrentDynamics(dynamics)
        else:
            self.dynamics = Dynamics(dynamics)
        if not self.states_confidence:
            self.confidence = build_head(
                dynamics.dim, dynamics.channels * dynamics.patch**2, config.confidence
            )
        num_tasks = max(1, len(config.tasks))
        self.judge = SuccessClassifier(dynamics.channels, dynamics.views, tasks=num_tasks)
        self.action_judge = ActionSuccessClassifier(dynamics.action_dim, tasks=num_tasks)
        self.compositor: Compositor | None = None
        if config.compositor is not None:
            self.compositor = Compositor(dynamics.channels, config.compositor)
        self.picture_confidence: PixelConfidence | None = None
        if config.pictures is not None:
            self.picture_confidence = PixelConfidence(config.pictures)

    @property
    def device(self) -> torch.device:
        """Device of the weights; inputs are moved to it, results stay on it."""
        return self.tokenizer.mean.device

    def compute_in(self, dtype: torch.dtype) -> WorldModel:
        """Run tokenizer and dynamics in this precision; heads and results stay in float32."""
        self.tokenizer.compute_dtype = self.dynamics.compute_dtype = dtype
        return self

    @property
    def states_confidence(self) -> bool:
        """Whether the network has its own confidence head, as C3 does."""
        return isinstance(self.dynamics, C3Network) and self.dynamics.has_confidence

    @property
    def sampling(self) -> Sampling:
        """Default sampler of the checkpoint."""
        return self.config.sampling

    @property
    def has_confidence(self) -> bool:
        """False for an imported WorldGym network, until a confidence head is trained for it."""
        record = self.config.provenance
        return "imported" not in record or "confidence" in record.get("stages", ())

    @torch.inference_mode()
    def encode(
        self,
        frames: UInt8[Tensor, "time view height width 3"],
        *,
        view_valid: Bool[Tensor, "time view"] | None = None,
        chunk: int = 64,
    ) -> Float[Tensor, "time view channel h w"]:
        """Encode frames of any size as whitened latents; zeros where `view_valid` is false."""
        if frames.ndim != 5 or frames.shape[-1] != 3:
            expected = "(time, view, height, width, 3)"
            raise ValueError(f"`frames` must have shape {expected}, got {tuple(frames.shape)}.")
        views = frames.shape[1]
        if views != self.config.dynamics.views:
            raise ValueError(
                f"`frames` has {views} views; the model was trained on {self.config.cameras}."
            )
        device, size = self.device, self.config.image_size
        flat = rearrange(frames, "t v h w c -> (t v) h w c")
        parts = [
            self.tokenizer.encode(resize(to_model(part.to(device)), size))
            for part in torch.split(flat, chunk)
        ]
        latents = rearrange(torch.cat(parts), "(t v) c h w -> t v c h w", v=views)
        if view_valid is None:
            return latents
        return only_valid(latents[None], view_valid[None].to(device))[0]

    @torch.inference_mode()
    def decode(
        self, latents: Float[Tensor, "*batch channel h w"], *, chunk: int = 64
    ) -> UInt8[Tensor, "*batch height width 3"]:
        """Decode latents to uint8 pixels."""
        flat = latents.to(self.device).reshape(-1, *latents.shape[-3:])
        parts = [to_pixels(self.tokenizer.decode(part)) for part in torch.split(flat, chunk)]
        pixels = torch.cat(parts)
        return pixels.reshape(*latents.shape[:-3], *pixels.shape[1:])

    @torch.inference_mode()
    def show(
        self,
        latents: Float[Tensor, "*batch channel h w"],
        last_real: UInt8[Tensor, "*last h_real w_real 3"],
        *,
        last_latents: Float[Tensor, "*last channel h w"] | None = None,
        seen: Bool[Tensor, "*last"] | None = None,
        chunk: int = 64,
    ) -> UInt8[Tensor, "*batch height width 3"]:
        """Compose pictures of imagined latents with the last real frame before them.

        What did not change looks as in `last_real`; the rest is decoded, as by `decode`. Models
        without a trained compositor use `training_free_shares`.

        Args:
            latents: Imagined latents.
            last_real: Last real frame of each, of any size; its leading axes are broadcast, so that
                the views of one frame serve a whole rollout [time, view].
            last_latents: Latents of `last_real`, if they are at hand; default: encoded.
            seen: False for a missing camera, whose picture is decoded; default: all true.
            chunk: Pictures decoded at once.

        Raises:
            ValueError: The leading axes of `last_real` do not fit those of `latents`.
        """
        leading, own, device = latents.shape[:-3], last_real.shape[:-3], self.device
        flat = latents.to(device).float().reshape(-1, *latents.shape[-3:])
        frames = to_model(last_real.to(device)).reshape(-1, 3, *last_real.shape[-3:-1])
        frames = resize(frames, self.config.image_size)
        if last_latents is None:
            codes = torch.cat([self.tokenizer.encode(part) for part in torch.split(frames, chunk)])
        else:
            codes = last_latents.to(device).float().reshape(-1, *latents.shape[-3:])
        decoded = torch.cat([self.tokenizer.decode(part) for part in torch.split(codes, chunk)])
        last = LastReal(frames, codes, decoded, None if seen is None else seen.to(device).flatten())
        try:
            rows = torch.arange(len(frames), device=device).reshape(own).expand(leading).flatten()
        except RuntimeError as error:
            fit = f"that fit {tuple(leading)}, those of `latents`, got {tuple(own)}"
            raise ValueError(f"`last_real` must have leading axes {fit}.") from error
        shares = training_free_shares if self.compositor is None else self.compositor
        pixels = composed_pictures(self.tokenizer, shares, flat, last, rows, chunk=chunk)
        return pixels.reshape(*leading, *pixels.shape[1:])

    @torch.inference_mode()
    def success(
        self,
        latents: Float[Tensor, "batch time view channel h w"],
        task: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """P(the task is done) in each frame, by the success classifier, on the CPU."""
        task = None if task is None else task.to(self.device)
        return self.judge(latents.to(self.device), task).sigmoid().cpu()

    @torch.inference_mode()
    def success_from_actions(
        self,
        actions: Float[Tensor, "batch time action"],
        task: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """P(the episode succeeds), by the classifier that sees actions alone, on the CPU."""
        task = None if task is None else task.to(self.device)
        return self.action_judge(actions.to(self.device), task).sigmoid().cpu()

    def set_compositor(self, compositor: Compositor | None) -> None:
        """Replace the compositor; None: pictures are composed without one."""
        self.compositor = compositor
        config = None if compositor is None else compositor.config
        self.config = replace(self.config, compositor=config)

    def set_picture_confidence(self, head: PixelConfidence | None) -> None:
        """Replace the confidence in pictures; None: the model states none."""
        self.picture_confidence = head
        self.config = replace(self.config, pictures=None if head is None else head.config)

    def imagine(  # noqa: PLR0913 - all options of a rollout, keyword-only
        self,
        context: Float[Tensor, "batch start view channel h w"],
        actions: Float[Tensor, "batch rows action"],
        *,
        action_valid: Bool[Tensor, "batch rows"] | None = None,
        seeds: Sequence[int] | None = None,
        epsilon: Sequence[float] = (0.5,),
        noise: Float[Tensor, "batch frames view channel h w"] | None = None,
        view_valid: Bool[Tensor, "batch start view"] | None = None,
        sampling: Sampling | None = None,
        first_state: Float[Tensor, "batch 10"] | None = None,
    ) -> Imagined:
        """Imagine frames from latents of real frames and from actions.

        Args:
            context: Latents of the frames before the rollout, from `encode`.
            actions: Row t takes frame t to frame t + 1, row 0 belongs to the first context frame.
            action_valid: False where an action is unknown; default: all known.
            seeds: One per rollout; default: 0, 1, 2, ...
            epsilon: Error levels of the confidence, in latent standard deviations.
            noise: Initial noise of each imagined frame; default: drawn from the seeds.
            view_valid: View mask of the context, false for missing cameras, whose latents are
                ignored; the cameras of the last context frame are imagined. Default: all true.
            sampling: Sampler; default: that of the checkpoint.
            first_state: Robot state at the first context frame, see `RolloutInputs.first_state`.

        Returns:
            `rows - start + 1` imagined frames per rollout.

        Raises:
            ValueError: Wrong shape of `context` or `actions`, NaN in `actions`, wrong number of
                seeds, or no camera.
        """
        self._check_shapes(context, actions)
        device, known = self.device, torch.ones(actions.shape[:2], dtype=torch.bool)
        inputs = RolloutInputs(
            context=context.to(device),
            actions=actions.to(device),
            action_valid=(known if action_valid is None else action_valid).to(device),
            seeds=range(len(context)) if seeds is None else seeds,
            noise=None if noise is None else noise.to(device),
            view_valid=None if view_valid is None else view_valid.to(device),
            first_state=None if first_state is None else first_state.to(device),
        )
        levels = torch.tensor(list(epsilon), dtype=torch.float32, device=device)
        return imagine(
            self.dynamics, self.confidence, inputs,
            sampling=sampling or self.sampling, epsilon=levels,
        )  # fmt: skip

    def _check_shapes(self, context: Tensor, actions: Tensor) -> None:
        dynamics = self.config.dynamics
        latent = dynamics.views, dynamics.channels, dynamics.height, dynamics.width
        width = dynamics.action_dim
        if actions.ndim == 3 and actions.shape[-1] != width:
            raise ValueError(
                f"`actions` must be rows of {width} numbers, got rows of {actions.shape[-1]}."
            )
        if context.ndim != 6 or context.shape[2:] != latent:
            expected = ", ".join(map(str, ("batch", "start", *latent)))
            raise ValueError(
                f"`context` must have shape ({expected}), got {tuple(context.shape)}; `encode` "
                "makes latents of frames."
            )
        if actions.ndim != 3 or len(actions) != len(context):
            raise ValueError(
                f"`actions` must have shape ({len(context)}, rows, {width}) for "
                f"{len(context)} rollouts, got {tuple(actions.shape)}."
            )

    def save(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json`, `weights.safetensors` and `tokenizer/` into `folder`.

        An existing checkpoint is replaced only after the new one is complete; its monitor and its
        README.md are kept.
        """
        folder = Path(folder)
        with replaced_folder(folder) as partial:
            self._write(partial, dtype)
            recover_folder(folder / "monitor")
            for extra in ("monitor", "README.md"):
                copy_if_present(folder / extra, partial / extra)

    def _write(self, partial: Path, dtype: torch.dtype) -> None:
        """Write all files of the checkpoint into a new folder."""
        (partial / "config.json").write_text(
            json.dumps(self.config.as_dict(), indent=2) + "\n", encoding="utf-8"
        )
        stored = {
            name: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
            for name, value in self._own_state().items()
        }
        save_file(stored, partial / "weights.safetensors")
        self.tokenizer.save(partial / "tokenizer", dtype=dtype)
        for file in partial.rglob("*.safetensors"):  # written readable for their owner only
            shutil.copymode(partial / "config.json", file)

    def _own_state(self) -> dict[str, Tensor]:
        """Weights and buffers without the tokenizer, which has its own folder."""
        state = self.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("tokenizer.")}

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> WorldModel:
        """Load a model from a folder or by the name of a shipped one ("tabletop"), in eval mode.

        Args:
            source: The folder or name.
            device: Device of its weights.
            dtype: Precision of its networks, see `compute_in`.

        Raises:
            ValueError: The checkpoint does not exist, or one of its files is missing, corrupt or
                from another model.
        """
        folder = checkpoint_folder(source)
        config, tokenizer = read_config(folder), Tokenizer.from_pretrained(folder / "tokenizer")
        try:
            weights = load_file(folder / "weights.safetensors")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"The weights in {str(folder)!r} cannot be read: {error}.") from error
        num_bytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        sizes = {"dynamics": asdict(config.dynamics), "confidence": asdict(config.confidence)}
        if config.compositor is not None:
            sizes["compositor"] = asdict(config.compositor)
        if config.pictures is not None:
            sizes["pictures"] = asdict(config.pictures)
        try:
            require_declared_size(lambda: cls(config, tokenizer), sizes, num_bytes)
            model = cls(config, tokenizer)
        except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
            reason = str(error).removesuffix(".")
            raise ValueError(
                f"The weights in {str(folder)!r} do not fit its config.json: {reason}."
            ) from error
        wrong = first_mismatch(model._own_state(), weights)
        if wrong is not None:
            raise ValueError(f"The weights in {str(folder)!r} do not fit its config.json: {wrong}.")
        # Weights stored in half precision are cast when copied into the parameters.
        model.load_state_dict(weights, strict=False)
        return model.eval().to(device).compute_in(dtype)


def first_mismatch(expected: dict[str, Tensor], stored: dict[str, Tensor]) -> str | None:
    """First difference in names or shapes between expected and stored weights, or None.

    >>> first_mismatch({"a": torch.zeros(2)}, {"a": torch.zeros(3)})
    'a has shape (3,) instead of (2,)'
    """
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is unexpected"
        shapes = tuple(stored[name].shape), tuple(expected[name].shape)
        if shapes[0] != shapes[1]:
            return f"{name} has shape {shapes[0]} instead of {shapes[1]}"
    return None
