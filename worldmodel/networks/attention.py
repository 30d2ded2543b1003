"""The blocks of the dynamics network: attention with rotary positions, modulated by a condition."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.networks.cache import LayerCache


def rotary_angles(
    positions: Float[Tensor, "tokens axes"], head_dim: int, base: float = 100.0
) -> Float[Tensor, "tokens half"]:
    """Rotation angles of Su et al. 2021 (arXiv:2104.09864), the head split evenly over the axes.

    Left-over pairs of a head are not rotated.
    """
    axes = positions.shape[1]
    pairs = head_dim // 2 // axes
    frequency = base ** (-torch.arange(pairs, device=positions.device) / max(pairs, 1))
    angles = (positions[:, :, None] * frequency).flatten(1)
    return F.pad(angles, (0, head_dim // 2 - angles.shape[1]))


Rotary = Tensor | tuple[Tensor, Tensor]
"""Rotations of positions, for every layer: a complex [positions, 1, 1, head_dim / 2] where a head's
pairs are neighbours, cosines and signed sines [positions, 1, 1, head_dim] where they are halves."""


def rotary_table(cos: Float[Tensor, "tokens half"], sin: Float[Tensor, "tokens half"]) -> Rotary:
    """What `rotate` reads for pairs in halves, from cosine and sine of every pair's angle."""
    both = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return both[0][:, None, None], both[1][:, None, None]


def rotate(x: Float[Tensor, "rows tokens two heads dim"], table: Rotary) -> Tensor:
    """Rotate pair i of the last axis: entries 2i and 2i + 1, or i and i + dim / 2."""
    if isinstance(table, Tensor):
        pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)
    cos, sin = table
    if x.dtype != cos.dtype:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((b, a), dim=-1), sin)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention over the second-last axis.

    `mask` is true where a query may look; it broadcasts against [rows, heads, queries, keys].
    """
    if not q.requires_grad or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # On a CPU, PyTorch's fused backward pass is several times slower than plain products.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


Modulation = tuple[Tensor, ...]
"""Shift, gain (1 + scale) and gate of attention, then of the perceptron, [batch, time, 1, dim]."""


def modulated_norm(
    x: Float[Tensor, "batch time tokens dim"], shift: Tensor, gain: Tensor
) -> Float[Tensor, "batch time tokens dim"]:
    """Adaptive layer norm (Peebles & Xie 2023, arXiv:2212.09748)."""
    one_frame = shift.numel() == shift.shape[-1]
    if one_frame and x.dtype == gain.dtype:  # then shift and gain are the norm's own weights
        return torch.layer_norm(x, x.shape[-1:], gain.flatten(), shift.flatten(), 1e-6)
    return torch.addcmul(shift, torch.layer_norm(x, x.shape[-1:], eps=1e-6), gain)


def gelu_in_place(x: Tensor) -> Tensor:
    """Gaussian error linear unit in tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    PyTorch's CPU kernel takes twice as long as this identity: (1 + tanh u) / 2 = sigmoid(2u).
    """
    inner = torch.addcmul(x, x * x, x, value=0.044715)
    return x.mul_(inner.mul_(2 * (2 / torch.pi) ** 0.5).sigmoid_())


def lay_out_for_inference(network: nn.Module) -> None:
    """Store the weights of linear maps as few tokens at a time are fastest multiplied on a CPU.

    Shapes, names and values stay; only the order in memory changes.
    """
    with torch.inference_mode(False):  # weights made in that mode could be trained no more
        for module in network.modules():
            if isinstance(module, nn.Linear) and not module.weight.t().is_contiguous():
                module.weight.data = module.weight.data.t().contiguous().t()


class Weights(NamedTuple):
    """What a block computes with, apart from its modulation.

    The blocks are functions of it: a rollout reads it once from the modules, instead of at every
    one of its many small passes.
    """

    heads: int
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


def project(
    x: Float[Tensor, "rows tokens dim"], w: Weights, table: Rotary
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, rotated keys and values, each [rows, heads, tokens, head_dim]."""
    # Views of one tensor, in torch's own words: einops would cost as much as the rotation.
    qkv = F.linear(x, w.qkv, w.qkv_bias).view(*x.shape[:2], 3, w.heads, -1)
    q, k = rotate(qkv[:, :, :2], table).permute(2, 0, 3, 1, 4)
    return q, k, qkv[:, :, 2].transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, w: Weights, mask: Tensor | None) -> Tensor:
    """Attention output [rows, queries, dim]; `mask` is true where a query may look."""
    mixed = softmax_attention(q, k, v, mask)
    return F.linear(mixed.transpose(1, 2).flatten(2), w.out, w.out_bias)


ROWS = 128
"""Tokens a perceptron takes at a time on a CPU: what lies between its maps stays in the cache."""


def perceptron(x: Float[Tensor, "*batch dim"], w: Weights) -> Float[Tensor, "*batch dim"]:
    """Two linear maps with a GELU between."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        hidden = F.gelu(F.linear(x, w.first, w.first_bias), approximate="tanh")
        return F.linear(hidden, w.second, w.second_bias)
    few = x.numel() <= ROWS * x.shape[-1]
    parts = (x,) if few else x.flatten(0, -2).split(ROWS)  # type: ignore[no-untyped-call]
    made = [
        F.linear(gelu_in_place(F.linear(part, w.first, w.first_bias)), w.second, w.second_bias)
        for part in parts
    ]
    return made[0] if len(made) == 1 else torch.cat(made).view_as(x)


def mix_space(
    x: Float[Tensor, "batch time tokens dim"],
    w: Weights,
    modulation: Modulation,
    table: Rotary,
    mask: Bool[Tensor, "frames 1 1 tokens"] | None = None,
) -> Float[Tensor, "batch time tokens dim"]:
    """What a spatial block computes; see `SpatialBlock`."""
    shift, gain, gate, shift_2, gain_2, gate_2 = modulation
    rows = modulated_norm(x, shift, gain).flatten(0, 1)
    mixed = attend(*project(rows, w, table), w, mask)
    x = torch.addcmul(x, gate, mixed.view_as(x))
    return torch.addcmul(x, gate_2, perceptron(modulated_norm(x, shift_2, gain_2), w))


def mix_time(
    x: Float[Tensor, "batch time tokens dim"],
    w: Weights,
    modulation: Modulation,
    table: Rotary,
    mask: Tensor | None = None,
    cache: LayerCache | None = None,
) -> Float[Tensor, "batch time tokens dim"]:
    """What a temporal block computes; see `TemporalBlock`."""
    shift, gain, gate, shift_2, gain_2, gate_2 = modulation
    b = len(x)
    rows = modulated_norm(x, shift, gain).transpose(1, 2).flatten(0, 1)
    q, k, v = project(rows, w, table)
    if cache is None:
        mixed = attend(q, k, v, w, mask)
    elif (count := cache.candidates(len(k))) == 1:
        mixed = attend(q, *cache.write(k, v), w, mask)
    else:  # one after the other, each into the same slot of the past they share
        parts = zip(q.chunk(count), k.chunk(count), v.chunk(count), strict=True)
        mixed = torch.cat([attend(a, *cache.write(b, c), w, mask) for a, b, c in parts])
    x = torch.addcmul(x, gate, mixed.view(b, -1, *mixed.shape[1:]).transpose(1, 2))
    return torch.addcmul(x, gate_2, perceptron(modulated_norm(x, shift_2, gain_2), w))


def write_time(
    x: Float[Tensor, "batch time tokens dim"],
    w: Weights,
    modulation: Modulation,
    table: Rotary,
    cache: LayerCache,
) -> None:
    """Write frames into a temporal block's cache, and nothing else."""
    shift, gain, *_ = modulation
    rows = modulated_norm(x, shift, gain).transpose(1, 2).flatten(0, 1)
    _, k, v = project(rows, w, table)
    cache.write(k, v)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each shifted, scaled and gated (adaLN of six)."""

    def __init__(
        self, dim: int, heads: int, condition_dim: int, mlp_ratio: float, *, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict(
            {"qkv": nn.Linear(dim, 3 * dim, bias=qkv_bias), "out": nn.Linear(dim, dim)}
        )
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

    def weights(self) -> Weights:
        """What the block computes with, as it is now."""
        maps = (self.attention["qkv"], self.attention["out"], self.mlp[0], self.mlp[2])
        parts: list[Any] = [part for m in maps for part in (m.weight, m.bias)]
        return Weights(self.heads, *parts)

    def modulations(self, condition: Float[Tensor, "batch time condition"]) -> Modulation:
        """What the block's six modulations are under `condition`."""
        parts = self.modulation(condition)[:, :, None].chunk(6, dim=-1)
        return tuple(1 + part if index % 3 == 1 else part for index, part in enumerate(parts))


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
        return mix_space(x, self.weights(), modulation, table, mask)


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
        return mix_time(x, self.weights(), modulation, table, mask, cache)
