"""Recurrent dynamics network: a small convolutional network with a memory at every position.

It predicts the next latent frame in one pass, without sampling noise, and costs the same at every
frame of a rollout. Trained by backpropagation through its own rollouts, it holds up over long
horizons; being deterministic, it predicts a mean where the future is open, which the confidence
head then states. The gated memory is that of a minimal gated unit (Zhou et al. 2016,
arXiv:1603.09420), convolutional as in Shi et al. 2015 (arXiv:1506.04214).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldmodel.networks.commanded_pose import CommandedPose
from worldmodel.networks.dynamics import FrameInputs, only_valid
from worldmodel.precision import PrecisionModule

GRID = 8
"""Largest height and width of the maps that the conditioning network makes."""
HIDDEN = 192
"""Hidden width of the conditioning network."""


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Configuration of the recurrent dynamics network."""

    channels: int = 8
    """Latent channels."""
    height: int = 8
    """Latent height in positions."""
    width: int = 8
    """Latent width in positions."""
    views: int = 1
    """Cameras."""
    action_dim: int = 7
    """Width of one action row."""
    pose: bool = True
    """Whether it reads the commanded pose; needs canonical actions."""
    features: int = 64
    """Feature maps of the convolutions."""
    memory: int = 24
    """Maps of the memory."""
    condition: int = 12
    """Maps made from action and pose."""
    layers: int = 4
    """Residual blocks."""
    tasks: int = 1
    """Tasks whose success the readout predicts."""

    def __post_init__(self) -> None:
        for name in ("features", "memory", "condition", "layers", "tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @property
    def patch(self) -> int:
        """Latent positions along a token's side: each position is a token."""
        return 1

    @property
    def dim(self) -> int:
        """Width of the features of a token: those of the last block, and the memory."""
        return self.features + self.memory

    @property
    def tokens(self) -> int:
        """Tokens of one frame."""
        return self.views * self.height * self.width


class ResidualBlock(nn.Module):
    """Two convolutions; begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + self.second(F.silu(self.first(F.silu(x))))


class ConditionMaps(nn.Module):
    """Maps of every view, made from the action that leads to a frame and its commanded pose."""

    action_mean: Tensor
    action_std: Tensor

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("action_mean", torch.zeros(config.action_dim))
        self.register_buffer("action_std", torch.ones(config.action_dim))
        width = config.action_dim + 1 + config.pose * CommandedPose.num_features
        self.grid = min(GRID, config.height), min(GRID, config.width)
        count = config.views * config.condition * self.grid[0] * self.grid[1]
        self.net = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(),
            nn.Linear(HIDDEN, count),
        )  # fmt: skip

    def forward(
        self,
        actions: Float[Tensor, "batch time action"],
        valid: Bool[Tensor, "batch time"],
        pose: Float[Tensor, "batch time features"] | None,
    ) -> Float[Tensor, "batch time view condition h w"]:
        known = valid[..., None].to(actions.dtype)
        scaled = ((actions - self.action_mean) / self.action_std).clamp(-5, 5) * known
        inputs = [scaled, known] if pose is None else [scaled, known, pose]
        config, (height, width) = self.config, self.grid
        maps = rearrange(
            self.net(torch.cat(inputs, -1)), "b t (v c h w) -> (b t) (v c) h w",
            v=config.views, h=height, w=width,
        )  # fmt: skip
        if self.grid != (config.height, config.width):
            maps = F.interpolate(maps, (config.height, config.width), mode="bilinear")
        return rearrange(maps, "(b t) (v c) h w -> b t v c h w", b=len(actions), v=config.views)


@dataclass(frozen=True)
class NextFrame:
    """What the network says of the next frame of every rollout."""

    latents: Float[Tensor, "batch view channel h w"]
    memory: Float[Tensor, "batch view memory h w"]
    features: Float[Tensor, "batch view dim h w"]
    """Input of confidence heads and of the readout."""


class RecurrentDynamics(PrecisionModule):
    """The recurrent dynamics network; see the module's docstring."""

    change_std: Tensor
    """Standard deviation of the change from frame to frame, per channel."""
    grid: Tensor
    checkpoint_blocks = False
    """Recompute every frame of a rollout in the backward pass of training."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        width = config.features
        self.pose = CommandedPose() if config.pose else None
        self.condition = ConditionMaps(config)
        inputs = config.channels + config.memory + config.condition + 2
        self.embed = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.layers))
        self.mix = nn.Linear(width, width)
        self.change = nn.Conv2d(width, config.channels, 3, padding=1)
        self.remember = nn.Conv2d(width, 2 * config.memory, 3, padding=1)
        self.readout = StateReadout(config)
        for layer in (self.mix, self.change):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.remember.bias[: config.memory] = -1  # type: ignore[index]
        self.register_buffer("change_std", torch.ones(config.channels))
        axes = (torch.linspace(-1, 1, side) for side in (config.height, config.width))
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        self.register_buffer("grid", grid, persistent=False)

    def new_memory(self, latents: Float[Tensor, "batch view channel h w"]) -> Tensor:
        """Empty memory for a batch of rollouts."""
        return latents.new_zeros(*latents.shape[:2], self.config.memory, *latents.shape[3:])

    def conditions(
        self,
        actions: Float[Tensor, "batch time action"],
        valid: Bool[Tensor, "batch time"],
        pose: Float[Tensor, "batch time features"] | None,
    ) -> Float[Tensor, "batch time view condition h w"]:
        """Condition maps of the frames that the actions lead to."""
        if (pose is None) == self.config.pose:
            raise ValueError(f"`pose` must be given if and only if the config has it, got {pose}.")
        return self.condition(actions, valid, pose)

    def step(
        self,
        latents: Float[Tensor, "batch view channel h w"],
        memory: Float[Tensor, "batch view memory h w"],
        condition: Float[Tensor, "batch view condition h w"],
        view_mask: Bool[Tensor, "batch view"] | None = None,
    ) -> NextFrame:
        """Predict the next frame of every rollout; missing views are zero."""
        b, v = latents.shape[:2]
        grid = self.grid.to(latents).expand(b * v, -1, -1, -1)
        parts = [x.flatten(0, 1).to(latents) for x in (latents, memory, condition)]
        x = self.embed(torch.cat((*parts, grid), 1))
        half = len(self.blocks) // 2
        for number, block in enumerate(self.blocks):
            if number == half:
                x = x + self._overall(x, v, view_mask)
            x = block(x)
        x = F.silu(x)
        gate, new = self.remember(x).chunk(2, 1)
        old = parts[1]
        kept = old + gate.sigmoid() * (new.tanh() - old)
        change = self.change(x).to(latents) * self.change_std[:, None, None]
        following = latents + rearrange(change, "(b v) ... -> b v ...", v=v)
        if view_mask is not None:
            following = only_valid(following[:, None], view_mask[:, None])[:, 0]
        features = rearrange(torch.cat((x, kept), 1), "(b v) ... -> b v ...", v=v)
        return NextFrame(following, rearrange(kept, "(b v) ... -> b v ...", v=v), features)

    def _overall(
        self, x: Float[Tensor, "n c h w"], views: int, view_mask: Tensor | None
    ) -> Float[Tensor, "n c 1 1"]:
        """What all positions of all valid views add to each of them."""
        per_view = rearrange(x.mean((2, 3)), "(b v) c -> b v c", v=views)
        if view_mask is None:
            mean = per_view.mean(1)
        else:
            weight = view_mask[..., None].to(per_view)
            mean = (weight * per_view).sum(1) / weight.sum(1)
        return self.mix(mean).repeat_interleave(views, 0)[..., None, None]

    def read_context(self, context: FrameInputs) -> Tensor:
        """Memory after real frames; the last of them has not been seen by it yet."""
        latents, memory = context.noisy, self.new_memory(context.noisy[:, 0])
        maps = self.conditions(context.actions, context.action_valid, context.pose)
        for row in range(latents.shape[1] - 1):
            seen = None if context.view_valid is None else context.view_valid[:, row + 1]
            memory = self.step(latents[:, row], memory, maps[:, row + 1], seen).memory
        return memory

    def unroll(
        self,
        latents: Float[Tensor, "batch time view channel h w"],
        conditions: Float[Tensor, "batch time view condition h w"],
        real: Bool[Tensor, "batch time"],
        view_mask: Bool[Tensor, "batch time view"] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict frames 1 to time - 1 of a clip, for training.

        A prediction starts from the real frame before it where `real` is true (the first frame must
        be), else from the network's own prediction.

        Returns:
            Predicted latents and features, each [batch, time - 1, view, ...].
        """

        def run(*values: Tensor | None) -> NextFrame:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                return checkpoint(self.step, *values, use_reentrant=False)
            return self.step(*values)  # type: ignore[arg-type]

        memory, current = self.new_memory(latents[:, 0]), latents[:, 0]
        steps = []
        for row in range(1, latents.shape[1]):
            seen = None if view_mask is None else view_mask[:, row]
            step = run(current, memory, conditions[:, row], seen)
            memory, current = step.memory, step.latents
            current = torch.where(real[:, row, None, None, None, None], latents[:, row], current)
            steps.append(step)
        return torch.stack([s.latents for s in steps], 1), torch.stack(
            [s.features for s in steps], 1
        )

    def readout_of(
        self,
        latents: Float[Tensor, "batch time view channel h w"],
        features: Float[Tensor, "batch time tokens dim"],
    ) -> tuple[Float[Tensor, "batch time 3"], Float[Tensor, "batch time tasks"]]:
        """Object position (m) and success logits in imagined frames, from their token features."""
        config = self.config
        maps = rearrange(features, "b t (v h w) d -> b t v d h w", v=config.views, h=config.height)
        return self.readout(latents, maps)


class StateReadout(nn.Module):
    """Object position and success of every task, read from the features of a predicted frame.

    An auxiliary output: it makes the network keep what a task depends on. Data without labels train
    without it.
    """

    object_mean: Tensor
    object_std: Tensor

    def __init__(self, config: RecurrentConfig, width: int = 96) -> None:
        super().__init__()
        self.register_buffer("object_mean", torch.zeros(3))
        self.register_buffer("object_std", torch.ones(3))
        self.grid = min(GRID, config.height), min(GRID, config.width)
        count = config.views * (config.memory + config.channels) * self.grid[0] * self.grid[1]
        self.memory = config.memory
        self.net = nn.Sequential(
            nn.Linear(count, width), nn.SiLU(), nn.Linear(width, 3 + config.tasks)
        )

    @torch.no_grad()
    def fit(self, positions: Float[Tensor, "n 3"]) -> None:
        """Fit the scales of object positions; NaN rows are ignored."""
        known = positions[positions.isfinite().all(1)]
        if len(known) > 1:
            self.object_mean.copy_(known.mean(0))
            self.object_std.copy_(known.std(0).clamp_min(1e-3))

    def forward(
        self,
        latents: Float[Tensor, "*batch view channel h w"],
        features: Float[Tensor, "*batch view dim h w"],
    ) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch tasks"]]:
        """Object position (m, in the frame of the data) and success logits."""
        memory = features[..., -self.memory :, :, :]
        x = torch.cat((latents.to(memory), memory), -3)
        pooled = F.adaptive_avg_pool2d(x.flatten(0, -4), self.grid)
        out = self.net(pooled.reshape(*x.shape[:-4], -1))
        return self.object_mean + self.object_std * out[..., :3], out[..., 3:]
