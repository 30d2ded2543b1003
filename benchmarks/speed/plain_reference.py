"""Reference implementation of the published C3 and WorldGym network and rollout, without cache.

An independent implementation of the public architecture (arXiv:2512.05927, arXiv:2506.00613) with
its parameter names. Tests compare `worldmodel.networks.c3` with it;
`python -m benchmarks.speed.imagination` times it. Latents are [batch, time, height, width,
channel], as in the original.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROTARY = ("standard", "pixel", "legacy")


def sinusoids(x: Tensor) -> Tensor:
    """Sinusoidal embedding: 256 cosines and sines at frequencies from 1 down to 1e-4."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, device=x.device) / 128)
    phases = x.float()[..., None] * frequencies
    return torch.cat((phases.cos(), phases.sin()), dim=-1)


@functools.lru_cache
def rotary_factors(shape: tuple[int, ...], head_dim: int, kind: str) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each pair of entries (2i, 2i + 1), [*shape, head_dim / 2]."""
    half = head_dim // len(shape) // 2
    if kind == "pixel":
        frequency = torch.linspace(1.0, 128.0, half) * math.pi
        axes = [torch.linspace(-1, 1, n) for n in shape]
    else:
        frequency = 10_000.0 ** -(torch.arange(half) / half)
        axes = [torch.arange(n).float() for n in shape]
    phases = [grid[..., None] * frequency for grid in torch.meshgrid(*axes, indexing="ij")]
    if kind == "legacy":  # cosines, then sines of each axis; then split into even and odd entries
        table = torch.cat([torch.cat((p.cos(), p.sin()), -1) for p in phases], -1)
        return table[..., 0::2], table[..., 1::2]
    angles = torch.cat(phases, -1)
    return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate entries 2i and 2i + 1 of the last axis, as written in the publications."""
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos.repeat_interleave(2, dim=-1) + turned * sin.repeat_interleave(2, dim=-1)


class PlainAttention(nn.Module):
    """Attention over the tokens of a frame, or over time at each position."""

    def __init__(self, dim: int, heads: int, *, over_time: bool, rotary: str) -> None:
        super().__init__()
        self.heads, self.over_time, self.rotary = heads, over_time, rotary
        self.qkv_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, d = x.shape
        if self.over_time:
            rows = x.permute(0, 2, 3, 1, 4).reshape(b * h * w, t, d)
            shape: tuple[int, ...] = (t,)
        else:
            rows, shape = x.reshape(b * t, h * w, d), (h, w)
        q, k, v = (
            part.reshape(*rows.shape[:2], self.heads, -1).transpose(1, 2)
            for part in self.qkv_proj(rows).chunk(3, dim=-1)
        )
        factors = rotary_factors(shape, d // self.heads, self.rotary)
        cos, sin = (part.reshape(rows.shape[1], -1).to(x) for part in factors)
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.over_time)
        out = self.out_proj(mixed.transpose(1, 2).reshape(*rows.shape))
        if self.over_time:
            return out.reshape(b, h, w, t, d).permute(0, 3, 1, 2, 4)
        return out.reshape(b, t, h, w, d)


def per_position(condition: Tensor, x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Repeat a frame's modulation at every position, as in the original."""
    repeated = condition[:, :, None, None].repeat(1, 1, x.shape[2], x.shape[3], 1)
    return repeated.chunk(parts, dim=-1)


class PlainBlock(nn.Module):
    """Attention and MLP with adaptive layer norm (six modulations)."""

    def __init__(self, dim: int, heads: int, *, over_time: bool, rotary: str) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = PlainAttention(dim, heads, over_time=over_time, rotary=rotary)
        self.ffwd = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = per_position(self.adaLN_modulation(c), x, 6)
        x = x + self.attn(self.norm1(x) * (1 + scale) + shift) * gate
        return x + self.ffwd(self.norm2(x) * (1 + scale2) + shift2) * gate2


class PlainPair(nn.Module):
    """Spatial block followed by a temporal block."""

    def __init__(self, dim: int, heads: int, rotary: tuple[str, str]) -> None:
        super().__init__()
        self.s_block = PlainBlock(dim, heads, over_time=False, rotary=rotary[0])
        self.t_block = PlainBlock(dim, heads, over_time=True, rotary=rotary[1])

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.t_block(self.s_block(x, c), c)


class PlainFinal(nn.Module):
    """Output layer from hidden states to patches."""

    def __init__(self, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = per_position(self.adaLN_modulation(c), x, 2)
        out = self.linear(self.norm(x) * (1 + scale) + shift)
        b, t, h, w, _ = out.shape
        p = self.patch
        out = out.reshape(b, t, h, w, p, p, -1).permute(0, 1, 2, 4, 3, 5, 6)
        return out.reshape(b, t, h * p, w * p, -1)


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """Shape of the network; `confidence_layers` 0 removes C3's confidence head."""

    channels: int = 16
    patch: int = 2
    dim: int = 1024
    layers: int = 16
    heads: int = 16
    action_dim: int = 7
    confidence_layers: int = 1
    rotary: tuple[str, str] = ("standard", "standard")


class PlainDiT(nn.Module):
    """Diffusion transformer with an optional confidence head."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        dim, patch, channels = config.dim, config.patch, config.channels
        self.x_proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        self.timestep_mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.action_embedder = nn.Linear(config.action_dim, dim)
        self.blocks = nn.ModuleList(
            PlainPair(dim, config.heads, config.rotary) for _ in range(config.layers)
        )
        self.final_layer = PlainFinal(dim, patch, channels)
        self.has_confidence = config.confidence_layers > 0
        if self.has_confidence:
            self.err_thresh_mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
            self.conf_blocks = nn.ModuleList(
                PlainPair(dim, config.heads, config.rotary) for _ in range(config.confidence_layers)
            )
            self.final_layer_conf_head = PlainFinal(dim, patch, channels)

    def randomize(self, seed: int, scale: float = 0.3) -> PlainDiT:
        """Randomise every weight, including zero-initialised ones, so that each matters."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                fan_in = p[0].numel() if p.ndim > 1 else 1 / 0.3
                p.copy_(torch.randn(p.shape, generator=generator) * scale * fan_in**-0.5)
        return self.eval()

    def forward(
        self, x: Tensor, t: Tensor, actions: Tensor, epsilon: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity, and logits of P(error <= ε) if there is a head; `t` and `epsilon` per frame."""
        b, time = t.shape
        tokens = self.x_proj(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = tokens.reshape(b, time, *tokens.shape[1:])
        c = self.timestep_mlp(sinusoids(t)) + self.action_embedder(actions)
        for block in self.blocks:
            x = block(x, c)
        velocity = self.final_layer(x, c)
        if not self.has_confidence:
            return velocity, None
        assert epsilon is not None
        c = c + self.err_thresh_mlp(sinusoids(epsilon))
        for block in self.conf_blocks:
            x = block(x, c)
        return velocity, self.final_layer_conf_head(x, c)


def sigmoid_alphas(num_timesteps: int = 1000) -> Tensor:
    """Cumulative signal power of the sigmoid schedule from -3 to 3."""
    t = torch.linspace(0, num_timesteps, num_timesteps + 1, dtype=torch.float64) / num_timesteps
    start, end = torch.tensor(-3.0).sigmoid(), torch.tensor(3.0).sigmoid()
    curve = (end - (6 * t - 3).sigmoid()) / (end - start)
    curve = curve / curve[0]
    return (1 - torch.clip(1 - curve[1:] / curve[:-1], 0, 0.999).float()).cumprod(0)


@torch.no_grad()
def plain_rollout(  # noqa: PLR0913 - all settings of a rollout
    network: PlainDiT,
    context: Tensor,
    actions: Tensor,
    noise: Tensor,
    *,
    window: int,
    num_steps: int = 10,
    epsilon: float = 0.5,
    guidance: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Roll out frame by frame, recomputing everything at every step; frames and confidence.

    Args:
        network: The network.
        context: Real latents, [batch, start, h, w, channel].
        actions: Row t leads to frame t, [batch, start + frames, action].
        noise: Initial noise of each frame, [batch, frames, h, w, channel].
        window: Maximum number of frames of the network, including the sampled one.
        num_steps: DDIM steps.
        epsilon: Error threshold of the confidence.
        guidance: Weight of the velocity with actions; one minus it is the weight without.
    """
    alphas = sigmoid_alphas().to(context)
    timesteps = torch.linspace(-1, 999, num_steps + 1).long().flip(0).tolist()
    context_t = 14
    x, confidence = context, []
    for frame in range(noise.shape[1]):
        current = noise[:, frame : frame + 1]
        for t, t_next in itertools.pairwise(timesteps):
            inputs = torch.cat((alphas[context_t].sqrt() * x, current), dim=1)[:, -window:]
            levels = torch.full(inputs.shape[:2], context_t, device=x.device)
            levels[:, -1] = t
            end = x.shape[1] + 1
            threshold = torch.full(inputs.shape[:2], epsilon, device=x.device).to(x)
            rows = actions[:, end - inputs.shape[1] : end]
            velocity, logits = guided(network, inputs, levels, rows, threshold, guidance)
            v, a = velocity[:, -1:], alphas[t]
            clean = a.sqrt() * current - (1 - a).sqrt() * v
            estimated = ((1 / a).sqrt() * current - clean) / (1 / a - 1).sqrt()
            a_next = alphas[t_next] if t_next >= 0 else torch.ones_like(a)
            current = a_next.sqrt() * clean + (1 - a_next).sqrt() * estimated
        if logits is not None:
            confidence.append(logits[:, -1:].sigmoid())
        x = torch.cat((x, current), dim=1)
    return x[:, context.shape[1] :], torch.cat(confidence, 1) if confidence else None


def guided(
    network: PlainDiT,
    inputs: Tensor,
    levels: Tensor,
    actions: Tensor,
    epsilon: Tensor,
    guidance: float,
) -> tuple[Tensor, Tensor | None]:
    """Velocity under guidance: without actions, every row is zeros and a final one."""
    velocity, logits = network(inputs, levels, actions, epsilon)
    if guidance == 1:
        return velocity, logits
    null = torch.cat((torch.zeros_like(actions[..., 1:]), torch.ones_like(actions[..., :1])), -1)
    without, _ = network(inputs, levels, null, epsilon)
    return (1 - guidance) * without + guidance * velocity, logits


@torch.no_grad()
def plain_flow_rollout(
    network: PlainDiT,
    context: Tensor,
    actions: Tensor,
    noise: Tensor,
    *,
    window: int,
    num_steps: int = 10,
    guidance: float = 1.0,
) -> Tensor:
    """Frames of a network trained by flow matching; the arguments of `plain_rollout`."""
    times = torch.linspace(1, 0, num_steps + 1).tolist()
    x = context
    for frame in range(noise.shape[1]):
        current = noise[:, frame : frame + 1]
        for t, t_next in itertools.pairwise(times):
            inputs = torch.cat((x, current), dim=1)[:, -window:]
            levels = torch.full(inputs.shape[:2], 0.01, device=x.device)
            levels[:, -1] = t
            end = x.shape[1] + 1
            rows = actions[:, end - inputs.shape[1] : end]
            velocity, _ = guided(network, inputs, 1000 * levels, rows, levels, guidance)
            current = current - (t - t_next) * velocity[:, -1:]
        x = torch.cat((x, current), dim=1)
    return x[:, context.shape[1] :]
