"""The network of C3 and WorldGym, built from our blocks to run their published checkpoints.

C3: Mei et al. 2025 (arXiv:2512.05927); WorldGym: Quevedo et al. 2025 (arXiv:2506.00613). It is a
causal space-time diffusion transformer that predicts a velocity (see `c3_objectives`). It differs
from `Dynamics` in three ways: it does not read the previous frame, its context is at a low noise
level (but without noise), and its window is truncated, not slid. C3 adds a confidence head: more
blocks on detached features, conditioned on the error level ε.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.networks.attention import (
    Modulation,
    Rotary,
    SpatialBlock,
    TemporalBlock,
    Weights,
    mix_space,
    mix_time,
    modulated_norm,
    rotary_angles,
    write_time,
)
from worldmodel.networks.c3_objectives import OBJECTIVES, Objective
from worldmodel.networks.cache import TemporalCache
from worldmodel.networks.sampler import Sampling
from worldmodel.precision import PrecisionModule

ROTARY = ("standard", "pixel", "legacy")
PUBLISHED = Sampling(num_steps=10, method="ddim")
"""Sampler of the publications."""


@dataclass(frozen=True, kw_only=True)
class C3Config:
    """Shape of a C3 or WorldGym network.

    A state dict determines the fields from `channels` to `confidence_layers`.
    """

    channels: int = 16
    """Latent channels."""
    action_dim: int = 7
    """Width of one action row."""
    patch: int = 2
    """Latent positions along a token's side."""
    dim: int = 1024
    """Width of a token."""
    layers: int = 16
    """Pairs of a spatial and a temporal block."""
    confidence_layers: int = 0
    """Pairs of blocks in C3's confidence head; 0: no confidence head (WorldGym)."""
    heads: int = 16
    """Attention heads."""
    window: int = 10
    """Maximum number of frames in the window, including the frame being sampled."""
    spatial_rotary: str = "standard"
    """Rotary position embedding within a frame: "standard" (Su et al. 2021), "pixel" (frequencies
    up to 128 over coordinates from -1 to 1) or "legacy" (WorldGym's first release, which pairs the
    cosine of one frequency with the sine of the next)."""
    temporal_rotary: str = "standard"
    """Rotary position embedding in time, with the same choices."""
    objective: str = "ddpm"
    """Training objective: "ddpm" (v-prediction, sigmoid schedule) or "flow_matching"."""
    height: int = 32
    """Latent height in positions."""
    width: int = 32
    """Latent width in positions."""

    def __post_init__(self) -> None:
        if self.dim % (4 * self.heads):
            raise ValueError(
                f"`heads` must divide a quarter of the width {self.dim}, got {self.heads}."
            )
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"`patch` {self.patch} must divide the latent size {self.height}x{self.width}."
            )
        if self.window < 2:
            raise ValueError(f"`window` must be at least 2, got {self.window}.")
        for name in ("spatial_rotary", "temporal_rotary"):
            if getattr(self, name) not in ROTARY:
                raise ValueError(f"`{name}` must be one of {ROTARY}, got {getattr(self, name)!r}.")
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"`objective` must be one of {tuple(OBJECTIVES)}, got {self.objective!r}."
            )

    @property
    def views(self) -> int:
        """Number of cameras, always one."""
        return 1

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def tokens(self) -> int:
        """Tokens of one frame."""
        return (self.height // self.patch) * (self.width // self.patch)


def sinusoids(x: Tensor) -> Float[Tensor, "*shape 256"]:
    """Sinusoidal embedding of a number: 128 cosines and sines, frequencies from 1 to about 1e-4."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(128, device=x.device) / 128)
    phase = x.float()[..., None] * frequency
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


def positions_table(kind: str, sides: tuple[int, ...], head_dim: int) -> Tensor:
    """Rotary position embeddings of a grid in row-major order, [positions, 1, 1, head_dim / 2].

    "legacy" is not a rotation: it concatenates the cosines and the sines of each axis and takes the
    even entries as cosines and the odd entries as sines.
    """
    if kind == "pixel":
        axes = [torch.linspace(-1, 1, side) for side in sides]
    else:
        axes = [torch.arange(side, dtype=torch.float32) for side in sides]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(sides))
    if kind == "standard":
        return unit_complex(rotary_angles(grid, head_dim, base=10_000.0))
    pairs = head_dim // len(sides) // 2
    if kind == "pixel":
        frequency = torch.linspace(1, 128, pairs) * math.pi
        return unit_complex((grid[..., None] * frequency).flatten(1))
    angles = rearrange(rotary_angles(grid, head_dim, base=10_000.0), "n (a p) -> n a p", p=pairs)
    entries = torch.cat((angles.cos(), angles.sin()), dim=-1).flatten(1)
    return torch.complex(entries[:, 0::2], entries[:, 1::2])[:, None, None]


def unit_complex(angles: Float[Tensor, "positions pairs"]) -> Tensor:
    """Unit complex numbers with the given angles."""
    return torch.polar(torch.ones_like(angles), angles)[:, None, None]


class Stack(nn.Module):
    """Pairs of a spatial and a temporal block, and an output layer with one value per subpatch."""

    is_gain: Tensor
    """1 for modulations that are gains (1 + scale), else 0."""

    def __init__(self, config: C3Config, layers: int) -> None:
        super().__init__()
        self.config = config
        shape = (config.dim, config.heads, config.dim, 4.0)
        self.spatial = nn.ModuleList(SpatialBlock(*shape, qkv_bias=False) for _ in range(layers))
        self.temporal = nn.ModuleList(TemporalBlock(*shape, qkv_bias=False) for _ in range(layers))
        self.modulation = nn.Linear(config.dim, 2 * config.dim)
        self.out = nn.Linear(config.dim, config.channels * config.patch**2)
        is_gain = torch.arange(12 * layers + 2) % 6 % 3 == 1
        self.register_buffer("is_gain", is_gain.float(), persistent=False)

    def weights(self) -> list[tuple[Weights, Weights]]:
        """Weights of the spatial and the temporal block of each layer."""
        pairs = zip(self.spatial, self.temporal, strict=True)
        return [(spatial.weights(), temporal.weights()) for spatial, temporal in pairs]  # type: ignore[operator]

    def modulations(
        self, condition: Float[Tensor, "batch time dim"]
    ) -> Float[Tensor, "batch time parts dim"]:
        """Modulations (adaLN) of all blocks and the output layer; see `split`."""
        active, dim = F.silu(condition), self.config.dim
        pairs = zip(self.spatial, self.temporal, strict=True)
        maps = [*(block.modulation for pair in pairs for block in pair), self.modulation]
        parts = [m(active).view(*active.shape[:2], -1, dim) for m in maps]  # type: ignore[operator]
        return torch.cat(parts, dim=2) + self.is_gain[:, None]

    def read_out(
        self, x: Float[Tensor, "batch time tokens dim"], modulation: Modulation
    ) -> Float[Tensor, "batch time 1 channel height width"]:
        """One value per subpatch from the hidden states."""
        p = self.config.patch
        return rearrange(
            self.out(modulated_norm(x, *modulation)),
            "b t (h w) (c p q) -> b t 1 c (h p) (w q)",
            h=self.config.height // p, p=p, q=p,
        )  # fmt: skip


class C3Network(PrecisionModule):
    """The C3 and WorldGym network; see the module's docstring.

    Latents have our axes. To convert from and to the publications' [batch, time, height, width,
    channel]::

        ours = theirs.permute(0, 1, 4, 2, 3)[:, :, None]
        theirs = ours[:, :, 0].permute(0, 1, 3, 4, 2)
    """

    pose: None = None
    """It reads no commanded pose."""

    def __init__(self, config: C3Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.channels * config.patch**2, config.dim)
        self.level = self._number_embedding()
        self.action = nn.Linear(config.action_dim, config.dim)
        self.stack = Stack(config, config.layers)
        self.has_confidence = config.confidence_layers > 0
        if self.has_confidence:
            self.threshold = self._number_embedding()
            self.confidence = Stack(config, config.confidence_layers)

    def _number_embedding(self) -> nn.Sequential:
        dim = self.config.dim
        return nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embed.weight.dtype

    @property
    def objective(self) -> Objective:
        """What the velocity means, and the noise levels of the sampler."""
        return OBJECTIVES[self.config.objective]

    @property
    def places(self) -> Tensor:
        """Rotary position embeddings within a frame."""
        config = self.config
        sides = (config.height // config.patch, config.width // config.patch)
        table = positions_table(config.spatial_rotary, sides, config.head_dim)
        return table.to(self.embed.weight.device)

    def times(self, first: int, num_frames: int, window: int) -> Tensor:
        """Rotary position embeddings in time of `num_frames` frames, starting at index `first`.

        Only "pixel" depends on `window`, the number of frames in the window.
        """
        config, device = self.config, self.embed.weight.device
        if config.temporal_rotary == "standard":  # relative: only differences of positions matter
            positions = torch.arange(first, first + num_frames, dtype=torch.float32, device=device)
            return unit_complex(rotary_angles(positions[:, None], config.head_dim, base=10_000.0))
        table = positions_table(config.temporal_rotary, (window,), config.head_dim)
        return table[first : first + num_frames].to(device)

    def tokens(
        self, latents: Float[Tensor, "batch time 1 channel height width"]
    ) -> Float[Tensor, "batch time tokens dim"]:
        """Tokens of noisy frames."""
        expected = (self.config.channels, self.config.height, self.config.width)
        if latents.shape[3:] != expected:
            raise ValueError(
                f"`latents` must be of {expected} (channels, height, width), got "
                f"{tuple(latents.shape[3:])}; pass `height` and `width` to `load_c3`."
            )
        p = self.config.patch
        return self.embed(
            rearrange(latents.to(self.dtype), "b t 1 c (h p) (w q) -> b t (h w) (c p q)", p=p, q=p)
        )

    def condition(
        self, level: Float[Tensor, "batch time"], actions: Float[Tensor, "batch time action"]
    ) -> Float[Tensor, "batch time dim"]:
        """Embedding of timestep and action."""
        return self.level(sinusoids(level).to(self.dtype)) + self.action(actions.to(self.dtype))

    def forward(
        self,
        noisy: Float[Tensor, "batch time 1 channel height width"],
        level: Float[Tensor, "batch time"],
        actions: Float[Tensor, "batch time action"],
        epsilon: Float[Tensor, "batch time"] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity and confidence of all frames at once.

        Args:
            noisy: Noisy frames; context frames as `objective.as_context` makes them.
            level: Timesteps, 0 to 1000.
            actions: The action that led to each frame; zeros for the first.
            epsilon: Error level of each frame; None: no confidence.

        Returns:
            Velocity and P(error <= ε), each of the shape of `noisy`. C3's confidence is about the
            error of the velocity. It is None without `epsilon` or a confidence head.
        """
        time = noisy.shape[1]
        condition = self.condition(level, actions)
        mask = causal_mask(time, noisy.device)
        tables = self.places, self.times(0, time, time)
        modulations = split(self.stack.modulations(condition))
        x = self.tokens(noisy)
        hidden = run_stack(x, self.stack.weights(), modulations, tables, mask=mask)
        velocity = self.stack.read_out(hidden, modulations[-1]).to(noisy.dtype)
        if epsilon is None or not self.has_confidence:
            return velocity, None
        condition = self.with_threshold(condition, epsilon)
        modulations = split(self.confidence.modulations(condition))
        x = run_stack(hidden, self.confidence.weights(), modulations, tables, mask=mask)
        return velocity, self.confidence.read_out(x, modulations[-1]).float().sigmoid()

    def with_threshold(
        self, condition: Float[Tensor, "batch time dim"], epsilon: Float[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time dim"]:
        """Condition of the confidence head: `condition` plus the embedding of ε."""
        return condition + self.threshold(sinusoids(epsilon).to(self.dtype))


def split(modulations: Float[Tensor, "batch time parts dim"]) -> list[Modulation]:
    """Six modulations per block in order, then shift and gain of the output layer."""
    parts = modulations[:, :, :, None].unbind(2)
    return [parts[start : start + 6] for start in range(0, len(parts), 6)]


def run_stack(
    x: Float[Tensor, "batch time tokens dim"],
    weights: list[tuple[Weights, Weights]],
    modulations: list[Modulation],
    tables: tuple[Rotary, Rotary],
    *,
    mask: Tensor | None = None,
    cache: TemporalCache | None = None,
    only_write: bool = False,
) -> Float[Tensor, "batch time tokens dim"]:
    """Last hidden state of a stack of blocks; also writes the frames into `cache`.

    Args:
        x: Tokens.
        weights: Weights of each layer's blocks.
        modulations: adaLN modulations of every block in order.
        tables: Rotary position embeddings within a frame and in time.
        mask: True where a frame attends to another, [time, time].
        cache: Key/value cache of the earlier frames.
        only_write: Skip the part of the last temporal block that the cache does not need.
    """
    places, times = tables
    for layer, (spatial, temporal) in enumerate(weights):
        x = mix_space(x, spatial, modulations[2 * layer], places)
        past = None if cache is None else cache.layers[layer]
        modulation = modulations[2 * layer + 1]
        if only_write and past is not None and layer == len(weights) - 1:
            write_time(x, temporal, modulation, times, past)
        else:
            x = mix_time(x, temporal, modulation, times, mask, past)
    return x


def null_actions(actions: Float[Tensor, "*batch action"]) -> Tensor:
    """WorldGym's stand-in for "no action": zeros and a final one, as all zeros mean "stay".

    >>> null_actions(torch.tensor([[0.5, 0.2, 0.0]]))
    tensor([[0., 0., 1.]])
    """
    null = torch.zeros_like(actions)
    null[..., -1] = 1
    return null


def causal_mask(time: int, device: torch.device) -> Tensor:
    """Causal attention mask: a frame attends to itself and to earlier frames."""
    return torch.ones(time, time, dtype=torch.bool, device=device).tril()
