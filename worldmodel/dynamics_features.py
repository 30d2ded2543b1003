"""Features of real frames from the dynamics network, for the monitor's appearance channel."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from worldmodel.calibration.features import FrameFeatures, project
from worldmodel.model import WorldModel
from worldmodel.networks.dynamics import Dynamics, FrameInputs
from worldmodel.networks.images import resize, to_model


class DynamicsFeatures(FrameFeatures):
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

    def _weights(self) -> dict[str, Tensor]:
        parts = {"tokenizer": self.model.tokenizer, "dynamics": self.dynamics}
        return {
            f"{n}.{key}": value for n, p in parts.items() for key, value in p.state_dict().items()
        }

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
