"""Features of real frames from the dynamics network, for the monitor's appearance channel."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from safetensors.torch import save
from torch import Tensor

from worldmodel.model import WorldModel, resize
from worldmodel.tokenizers import to_model
from worldmodel.transformer import Dynamics, FrameInputs
from worldmodel.trust import project, whole_frame


class DynamicsFeatures:
    """A feature function for the monitor: what the dynamics network makes of a frame on its own.

    Hidden states that its confidence head would read, of the frame without noise, past or action.
    Position: 32 random directions of its token's state, as `FrameFeatures` has them. Whole frame:
    mean and standard deviation of these over the positions of each view.
    """

    def __init__(self, model: WorldModel) -> None:
        """Use a model's tokenizer and dynamics.

        Raises:
            ValueError: the dynamics are an imported network, which needs past frames.
        """
        if not isinstance(model.dynamics, Dynamics):
            raise ValueError(
                "`model` must have dynamics of its own, got an imported network; take "
                "`FrameFeatures`, which asks its tokenizer alone."
            )
        self.model, self.dynamics = model, model.dynamics

    @property
    def name(self) -> str:
        """Of these features alone: with a hash of the weights of tokenizer and dynamics."""
        parts = {"tokenizer": self.model.tokenizer, "dynamics": self.dynamics}
        state = {
            f"{name}.{key}": value.cpu().contiguous()
            for name, part in parts.items()
            for key, value in part.state_dict().items()
        }
        return f"{type(self).__name__} {hashlib.sha256(save(state)).hexdigest()[:16]}"

    def __call__(
        self, frame: UInt8[np.ndarray, "*view height width 3"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "view h w c"]]:
        """Features of one frame at the model's size."""
        views = frame.reshape(-1, *frame.shape[-3:])
        pooled, positions = self.of_episode(torch.from_numpy(views)[None])
        return pooled[0], positions[0]

    @torch.inference_mode()
    def of_episode(
        self, frames: UInt8[Tensor, "time view height width 3"], *, chunk: int = 32
    ) -> tuple[Float[np.ndarray, "time d"], Float[np.ndarray, "time view h w c"]]:
        """Features of every frame of an episode, each as if it were the first."""
        positions = torch.cat([self._positions(part) for part in torch.split(frames, chunk)])
        return whole_frame(positions).cpu().numpy(), positions.cpu().numpy()

    def _positions(
        self, frames: UInt8[Tensor, "n view height width 3"]
    ) -> Float[Tensor, "n view h w c"]:
        config, views = self.dynamics.config, frames.shape[1]
        pixels = to_model(frames.to(self.model.tokenizer.mean.device).flatten(0, 1))
        latents = self.model.tokenizer.encode(resize(pixels, self.model.config.image_size))
        latents = rearrange(latents, "(n v) c h w -> n 1 v c h w", v=views)
        blank = latents.new_zeros(len(latents), 1)
        alone = FrameInputs(
            noisy=latents,
            previous=torch.zeros_like(latents),
            level=blank,
            actions=latents.new_zeros(len(latents), 1, config.action_dim),
            action_valid=blank.bool(),
        )
        states = self.dynamics.step(alone, self.dynamics.new_cache(), keep=False).features
        tokens = project(states[:, 0].float())
        rows = config.height // config.patch
        per_view = rearrange(tokens, "n (v h w) c -> n v h w c", v=views, h=rows)
        return repeat(per_view, "n v h w c -> n v (h p) (w q) c", p=config.patch, q=config.patch)
