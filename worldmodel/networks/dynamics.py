"""Dynamics network: a causal space-time diffusion transformer over latent frames.

It is conditioned on noise level and action. Every layer attends within a frame (all views
together), then along time at each position. Temporal attention covers the frame itself and
`context` past frames. Because this window slides with the frame, keys and values of a past frame do
not depend on later frames or on the length of the rollout: the key/value cache is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worldmodel.networks.attention import (
    Modulation,
    SpatialBlock,
    TemporalBlock,
    modulated_norm,
    rotary_angles,
    rotary_table,
)
from worldmodel.networks.cache import TemporalCache
from worldmodel.networks.commanded_pose import CommandedPose
from worldmodel.networks.noise_schedule import posterior_under_persistence
from worldmodel.precision import PrecisionModule


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """Configuration of the latent dynamics network."""

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
    patch: int = 1
    """Latent positions along a token's side."""
    dim: int = 160
    """Width of a token."""
    condition_dim: int = 96
    """Width of the embedding of noise level and action."""
    layers: int = 4
    """Pairs of a spatial and a temporal block."""
    heads: int = 4
    """Attention heads."""
    mlp_ratio: float = 2.0
    """Hidden width of a block's MLP, as a multiple of `dim`."""
    context: int = 5
    """Past frames that a frame attends to in each temporal block."""
    pose: bool = False
    """Whether it reads the commanded pose; needs canonical actions."""

    def __post_init__(self) -> None:
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"`dim` must be an even multiple of `heads`, got {self.dim} and {self.heads}."
            )
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"`patch` {self.patch} must divide the latent size {self.height}x{self.width}."
            )
        if self.context < 1:
            raise ValueError(f"`context` must be at least 1, got {self.context}.")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def tokens(self) -> int:
        """Tokens of one frame."""
        return self.views * (self.height // self.patch) * (self.width // self.patch)


def window_mask(positions: Tensor, context: int) -> Bool[Tensor, "frames frames"]:
    """Attention mask of a sliding window: a frame and the `context` frames before it.

    >>> window_mask(torch.arange(3), 1).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    age = positions[:, None] - positions[None, :]
    return (age >= 0) & (age <= context)


def two_stream_mask(positions: Tensor, context: int) -> Bool[Tensor, "both both"]:
    """Attention mask for a clean stream of frames followed by a noisy stream.

    A clean frame attends to the clean frames of its window. A noisy frame attends to itself and to
    the earlier clean frames, as in sampling with a cache, so one pass trains every frame of a clip.

    >>> two_stream_mask(torch.arange(2), 1).int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [1, 0, 0, 1]], dtype=torch.int32)
    """
    within = window_mask(positions, context)
    itself = torch.eye(len(positions), dtype=torch.bool, device=positions.device)
    clean = torch.cat((within, torch.zeros_like(within)), dim=1)
    noisy = torch.cat((within & ~itself, itself), dim=1)
    return torch.cat((clean, noisy))


def only_valid(
    latents: Float[Tensor, "batch time view channel h w"],
    view_mask: Bool[Tensor, "batch time view"],
) -> Float[Tensor, "batch time view channel h w"]:
    """Latents with missing views set to zero (also where they are NaN).

    >>> only_valid(torch.full((1, 1, 1, 1, 1, 1), torch.nan), torch.tensor([[[False]]])).item()
    0.0
    """
    return torch.where(view_mask[..., None, None, None], latents, torch.zeros_like(latents))


class PoseTokens(nn.Module):
    """What the commanded pose adds to every token of a frame; nothing before training."""

    def __init__(self, tokens: int, dim: int, *, hidden: int = 192, rank: int = 16) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(CommandedPose.num_features, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, tokens * rank),
        )  # fmt: skip
        self.rank = rank
        self.out = nn.Linear(rank, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, pose: Float[Tensor, "batch time features"]
    ) -> Float[Tensor, "batch time tokens dim"]:
        return self.out(self.net(pose).unflatten(-1, (-1, self.rank)))


class Conditioner(nn.Module):
    """Embedding of a frame's noise level and of the action that led to it."""

    action_mean: Tensor
    action_std: Tensor
    frequencies: Tensor

    def __init__(self, action_dim: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("action_mean", torch.zeros(action_dim))
        self.register_buffer("action_std", torch.ones(action_dim))
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(0.0, 5.0, 16)), persistent=False
        )
        self.level = nn.Linear(32, dim)
        self.action = nn.Linear(action_dim + 1, dim)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(
        self,
        level: Float[Tensor, "batch time"],
        actions: Float[Tensor, "batch time action"],
        valid: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time condition"]:
        phase = level[..., None] * self.frequencies
        waves = torch.cat((phase.sin(), phase.cos()), dim=-1)
        scaled = ((actions - self.action_mean) / self.action_std).clamp(-5, 5)
        known = valid[..., None].to(scaled.dtype)
        return self.mix(self.level(waves) + self.action(torch.cat((scaled * known, known), dim=-1)))


@dataclass(frozen=True)
class FrameInputs:
    """Inputs of the network for each frame, batched."""

    noisy: Float[Tensor, "batch time view channel h w"]
    """Noisy latent x_s; the clean latent where `level` is 0."""
    previous: Float[Tensor, "batch time view channel h w"]
    """Clean previous frame; zeros before the first frame and in missing views."""
    level: Float[Tensor, "batch time"]
    """Noise level in [0, 1]."""
    actions: Float[Tensor, "batch time action"]
    """The action that led to the frame (row t - 1 of a trajectory leads to frame t)."""
    action_valid: Bool[Tensor, "batch time"]
    """False where the action is unknown: for the first frame, or missing in the source."""
    view_valid: Bool[Tensor, "batch time view"] | None = None
    """View mask, false for missing views, whose latents are ignored; None: all true."""
    pose: Float[Tensor, "batch time features"] | None = None
    """Features of the commanded pose (`CommandedPose.features`), for networks that read it."""

    def without_missing(self) -> FrameInputs:
        """Set missing views to zero, so that their NaN cannot reach a gradient."""
        if self.view_valid is None:
            return self
        noisy, previous = (only_valid(x, self.view_valid) for x in (self.noisy, self.previous))
        return replace(self, noisy=noisy, previous=previous)


@dataclass(frozen=True)
class Estimate:
    """Outputs of the network for each frame; values of missing views are meaningless."""

    correction: Float[Tensor, "batch time view channel h w"]
    """(z - mean) / std of the persistence posterior: the target of the loss."""
    clean: Float[Tensor, "batch time view channel h w"]
    """Estimated latent z."""
    features: Float[Tensor, "batch time tokens dim"]
    """Last hidden state; the (detached) input of confidence heads."""


def apply(block: nn.Module, *values: Any, **options: Any) -> Tensor:
    """Output of a block."""
    return block(*values, **options)


def checkpointed(block: nn.Module, *values: Any, **options: Any) -> Tensor:
    """Output of a block with activation checkpointing (Chen et al. 2016, arXiv:1604.06174)."""
    return checkpoint(block, *values, use_reentrant=False, preserve_rng_state=False, **options)


class Dynamics(PrecisionModule):
    """The dynamics network; see the module's docstring."""

    change_std: Tensor
    """Standard deviation of the change from frame to frame, per channel."""
    spatial_cos: Tensor
    spatial_sin: Tensor
    checkpoint_blocks = False
    """Use activation checkpointing in training: recompute blocks in the backward pass."""

    def __init__(self, config: DynamicsConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels * config.patch**2
        self.embed = nn.Linear(2 * width, config.dim)
        self.view = nn.Parameter(torch.zeros(config.views, 1, 1, config.dim))
        if config.views > 1:
            nn.init.normal_(self.view, std=0.02)
            self.missing = nn.Parameter(0.02 * torch.randn(config.dim))
        self.condition = Conditioner(config.action_dim, config.condition_dim)
        self.pose = CommandedPose() if config.pose else None
        self.pose_tokens = PoseTokens(config.tokens, config.dim) if config.pose else None
        shape = (config.dim, config.heads, config.condition_dim, config.mlp_ratio)
        self.spatial = nn.ModuleList(SpatialBlock(*shape) for _ in range(config.layers))
        self.temporal = nn.ModuleList(TemporalBlock(*shape) for _ in range(config.layers))
        self.final_modulation = nn.Linear(config.condition_dim, 2 * config.dim)
        self.final = nn.Linear(config.dim, width)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)
        self.register_buffer("change_std", torch.ones(config.channels))
        angles = self._spatial_angles()
        cos, sin = rotary_table(angles.cos(), angles.sin())
        self.register_buffer("spatial_cos", cos, persistent=False)
        self.register_buffer("spatial_sin", sin, persistent=False)

    def _spatial_angles(self) -> Tensor:
        config = self.config
        rows = torch.arange(config.height // config.patch, dtype=torch.float32)
        columns = torch.arange(config.width // config.patch, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        return rotary_angles(grid.reshape(-1, 2).repeat(config.views, 1), config.head_dim)

    def tokens(self, inputs: FrameInputs) -> Float[Tensor, "batch time tokens dim"]:
        """Tokens of each frame, from its noisy latent and the previous frame."""
        config, view_mask = self.config, inputs.view_valid
        pair = torch.cat((inputs.noisy, inputs.previous), dim=3)
        tokens = self.embed(
            rearrange(
                pair, "b t v c (h p) (w q) -> b t v h w (c p q)", p=config.patch, q=config.patch
            )
        )
        if view_mask is not None and config.views > 1:
            tokens = torch.where(view_mask[..., None, None, None], tokens, self.missing.to(tokens))
        tokens = rearrange(tokens + self.view, "b t v h w d -> b t (v h w) d")
        if self.pose_tokens is None:
            return tokens
        if inputs.pose is None:
            raise ValueError("`pose` of the inputs must be given: the network reads it, got None.")
        return tokens + self.pose_tokens(inputs.pose)

    def visible(
        self, view_mask: Bool[Tensor, "batch time view"]
    ) -> Bool[Tensor, "frames 1 1 tokens"]:
        """Spatial attention mask: false at tokens of missing views."""
        per_view = self.config.tokens // self.config.views
        return repeat(view_mask, "b t v -> (b t) 1 1 (v n)", n=per_view)

    def modulations(self, condition: Float[Tensor, "batch time condition"]) -> list[Modulation]:
        """Modulations (adaLN) of all blocks: spatial, then temporal, layer by layer."""
        blocks = (block for pair in self.pairs() for block in pair)
        return [block.modulations(condition) for block in blocks]

    def pairs(self) -> Iterator[tuple[SpatialBlock, TemporalBlock]]:
        """Spatial and temporal block of each layer."""
        return zip(self.spatial, self.temporal, strict=True)  # type: ignore[arg-type]

    def hidden(
        self,
        inputs: FrameInputs,
        *,
        mask: Tensor | None,
        positions: Tensor,
        cache: TemporalCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Last hidden state and condition of the frames; also writes them into `cache`."""
        condition = self.condition(inputs.level, inputs.actions, inputs.action_valid)
        x = self.tokens(inputs)
        angles = rotary_angles(positions[:, None].to(torch.float32), self.config.head_dim)
        times, places = (
            rotary_table(angles.cos(), angles.sin()),
            (self.spatial_cos, self.spatial_sin),
        )
        modulation = iter(self.modulations(condition))
        visible = None if inputs.view_valid is None else self.visible(inputs.view_valid)
        run = checkpointed if self.checkpoint_blocks and torch.is_grad_enabled() else apply
        for layer, (spatial, temporal) in enumerate(self.pairs()):
            x = run(spatial, x, next(modulation), places, visible)
            earlier = None if cache is None else cache.layers[layer]
            x = run(temporal, x, next(modulation), times, mask=mask, cache=earlier)
        return x, condition

    def read_out(self, x: Tensor, condition: Tensor, inputs: FrameInputs) -> Estimate:
        """Estimated latents from the hidden states."""
        config = self.config
        shift, scale = self.final_modulation(condition)[:, :, None].chunk(2, dim=-1)
        out = self.final(modulated_norm(x, shift, 1 + scale)).to(inputs.noisy.dtype)
        correction = rearrange(
            out, "b t (v h w) (c p q) -> b t v c (h p) (w q)",
            v=config.views, h=config.height // config.patch, p=config.patch, q=config.patch,
        )  # fmt: skip
        scale_z = self.change_std[:, None, None]
        mean, std = posterior_under_persistence(
            inputs.noisy, inputs.previous, inputs.level, scale_z
        )
        return Estimate(correction=correction, clean=mean + std * correction, features=x)

    def forward(self, inputs: FrameInputs, *, mask: Tensor, positions: Tensor) -> Estimate:
        """Estimate all frames at once; `mask` [time, time] is true where a frame attends."""
        inputs = inputs.without_missing()
        x, condition = self.hidden(inputs, mask=mask, positions=positions)
        return self.read_out(x, condition, inputs)

    def new_cache(self) -> TemporalCache:
        """Empty key/value cache for the network's window."""
        return TemporalCache(self.config.layers, self.config.context + 1)

    def step(self, inputs: FrameInputs, cache: TemporalCache, *, keep: bool) -> Estimate:
        """Estimate the frames that follow those in `cache`; with `keep`, append them to it.

        Several frames in one call are allowed only for an empty cache; each attends to the earlier
        ones. A batch of k times the cache's holds k candidates for the next frame, one group after
        the other; use `keep=False` for them.
        """
        inputs = inputs.without_missing()
        num_frames = inputs.noisy.shape[1]
        positions = cache.position + torch.arange(num_frames, device=inputs.noisy.device)
        mask = window_mask(positions, self.config.context) if num_frames > 1 else None
        x, condition = self.hidden(inputs, mask=mask, positions=positions, cache=cache)
        if keep:
            cache.advance(num_frames)
        return self.read_out(x, condition, inputs)
