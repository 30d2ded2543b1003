"""The blocks of the dynamics network: attention with rotary positions, modulated by a condition."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.cache import LayerCache


def rotary_angles(
    positions: Float[Tensor, "tokens axes"], head_dim: int, base: float = 100.0
) -> Float[Tensor, "tokens half"]:
    """Rotation angles of Su et al. 2021 (arXiv:2104.09864), the head split evenly over the axes.

    Left-over pairs of a head are not rotated.
    """
    axes = positions.shape[1]
    pairs = head_dim // 2 // axes
    frequency = base ** (-torch.arange(pairs, device=positions.device) / max(pairs, 1))
    angles = rearrange(positions[:, :, None] * frequency, "n a p -> n (a p)")
    return F.pad(angles, (0, head_dim // 2 - angles.shape[1]))


Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of rotation angles, each [positions, head_dim / 2], for every layer."""


def rotary_table(angles: Float[Tensor, "tokens half"]) -> Rotary:
    """Cosines and sines of `angles`."""
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "*batch tokens dim"], table: Rotary) -> Tensor:
    """Rotate pair i of the last axis, entries i and i + dim / 2, by its angle in `table`."""
    cos, sin = (part.to(x.dtype) for part in table)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention over the second-last axis.

    `mask` is true where a query may look; it broadcasts against [rows, heads, queries, keys].
    """
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # On a CPU, PyTorch's fused backward pass is several times slower than plain products.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


Modulation = tuple[Tensor, ...]
"""Shift, scale, gate of attention, then of the perceptron, each [batch, time, 1, dim]."""


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale of adaptive layer norm (Peebles & Xie 2023, arXiv:2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)


class Attention(nn.Module):
    """Multi-head self-attention over the second-last axis."""

    def __init__(self, dim: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def project(
        self, x: Float[Tensor, "rows tokens dim"], table: Rotary
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys and values, each [rows, heads, tokens, head_dim]."""
        q, k, v = rearrange(self.qkv(x), "r n (three h d) -> three r h n d", three=3, h=self.heads)
        return rotate(q, table), rotate(k, table), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention output [rows, queries, dim]; `mask` is true where a query may look."""
        mixed = softmax_attention(q.to(v.dtype), k.to(v.dtype), v, mask)
        return self.out(rearrange(mixed, "r h n d -> r n (h d)"))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each shifted, scaled and gated (adaLN of six)."""

    def __init__(
        self, dim: int, heads: int, condition_dim: int, mlp_ratio: float, *, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, heads, bias=qkv_bias)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim)
        )
        self.modulation = nn.Linear(condition_dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            gates = self.modulation.bias.view(6, dim)[2::3]
            gates.fill_(1.0)  # open: a plain pre-norm block at the start

    def modulations(self, condition: Float[Tensor, "batch time condition"]) -> Modulation:
        """What the block's six modulations are under `condition`."""
        return tuple(rearrange(self.modulation(condition), "b t (six d) -> six b t 1 d", six=6))

    def feed_forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """`x` plus the gated perceptron."""
        return torch.addcmul(x, gate, self.mlp(modulate(self.norm(x), shift, scale)))


class SpatialBlock(Block):
    """Attention among all tokens of one frame, over all its views."""

    def forward(
        self,
        x: Float[Tensor, "batch time tokens dim"],
        modulation: Modulation,
        table: Rotary,
        mask: Bool[Tensor, "frames 1 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch time tokens dim"]:
        """The block's output; `mask` is false at tokens that none may look at."""
        shift, scale, gate, *rest = modulation
        b = len(x)
        rows = rearrange(modulate(self.norm(x), shift, scale), "b t n d -> (b t) n d")
        mixed = self.attention.attend(*self.attention.project(rows, table), mask)
        x = torch.addcmul(x, gate, rearrange(mixed, "(b t) n d -> b t n d", b=b))
        return self.feed_forward(x, *rest)


class TemporalBlock(Block):
    """Attention along time at one position of the frame."""

    def forward(
        self,
        x: Float[Tensor, "batch time tokens dim"],
        modulation: Modulation,
        table: Rotary,
        *,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch time tokens dim"]:
        """The block's output.

        Args:
            x: Tokens of the frames.
            modulation: Of each frame.
            table: Rotations of the frames' positions in time.
            mask: Which frame sees which, [time, time] or one for each position of the batch,
                [batch * tokens, 1, time, time]; None: all that are given.
            cache: Keys and values of the frames before these, to which it adds these. A batch of
                a multiple of its rows holds several candidates of one frame, group after group.
        """
        shift, scale, gate, *rest = modulation
        b = len(x)
        rows = rearrange(modulate(self.norm(x), shift, scale), "b t n d -> (b n) t d")
        q, k, v = self.attention.project(rows, table)
        if cache is None:
            mixed = self.attention.attend(q, k, v, mask)
        elif (count := cache.candidates(len(k))) == 1:
            mixed = self.attention.attend(q, *cache.write(k, v), mask)
        else:  # one after the other, each into the same slot of the past they share
            parts = zip(q.chunk(count), k.chunk(count), v.chunk(count), strict=True)
            mixed = torch.cat(
                [self.attention.attend(a, *cache.write(b, c), mask) for a, b, c in parts]
            )
        x = torch.addcmul(x, gate, rearrange(mixed, "(b n) t d -> b t n d", b=b))
        return self.feed_forward(x, *rest)

    def remember(
        self,
        x: Float[Tensor, "batch time tokens dim"],
        modulation: Modulation,
        table: Rotary,
        cache: LayerCache,
    ) -> None:
        """Write the frames into `cache`, and nothing else."""
        shift, scale, *_ = modulation
        rows = rearrange(modulate(self.norm(x), shift, scale), "b t n d -> (b n) t d")
        _, k, v = self.attention.project(rows, table)
        cache.write(k, v)
