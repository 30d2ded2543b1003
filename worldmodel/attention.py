"""The blocks of the dynamics network: attention with rotary positions, modulated by a condition."""

from __future__ import annotations

import torch
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
    angles = (positions[:, :, None] * frequency).flatten(1)
    return F.pad(angles, (0, head_dim // 2 - angles.shape[1]))


Rotary = tuple[Tensor, Tensor]
"""Cosines and signed sines of rotation angles, [positions, 1, 1, head_dim], for every layer."""


def rotary_table(cos: Float[Tensor, "tokens half"], sin: Float[Tensor, "tokens half"]) -> Rotary:
    """What `rotate` reads, from the cosine and the sine of every pair's angle."""
    both = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return both[0][:, None, None], both[1][:, None, None]


def rotate(x: Float[Tensor, "rows tokens two heads dim"], table: Rotary) -> Tensor:
    """Rotate pair i of the last axis, entries i and i + dim / 2, by its angle in `table`."""
    cos, sin = (part.to(x.dtype) for part in table)
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((b, a), dim=-1), sin)


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
"""Shift, gain (1 + scale) and gate of attention, then of the perceptron, [batch, time, 1, dim]."""


def modulate(x: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
    """Shift and scale of adaptive layer norm (Peebles & Xie 2023, arXiv:2212.09748)."""
    return torch.addcmul(shift, x, gain)


class Gelu(nn.Module):
    """Gaussian error linear unit in tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x Φ(x), nearly; may overwrite `x` where no gradient is asked for."""
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return F.gelu(x, approximate="tanh")
        # PyTorch's CPU kernel takes twice as long as this identity: (1 + tanh u) / 2 = sigmoid(2u).
        inner = torch.addcmul(x, x * x, x, value=0.044715)
        return x.mul_(inner.mul_(2 * (2 / torch.pi) ** 0.5).sigmoid_())


class Perceptron(nn.Sequential):
    """Two linear maps with a `Gelu` between."""

    rows = 128
    """Tokens at a time on a CPU: what lies between the maps then stays in its cache."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), Gelu(), nn.Linear(hidden, dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Same shape as `x`."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or x[..., 0].numel() <= self.rows:
            return super().forward(x)
        parts = [
            super(Perceptron, self).forward(part) for part in x.flatten(0, -2).split(self.rows)
        ]
        return torch.cat(parts).view_as(x)


def lay_out_for_inference(network: nn.Module) -> None:
    """Store the weights of linear maps as few tokens at a time are fastest multiplied on a CPU.

    Shapes, names and values stay; only the order in memory changes.
    """
    with torch.inference_mode(False):  # weights made in that mode could be trained no more
        for module in network.modules():
            if isinstance(module, nn.Linear) and not module.weight.t().is_contiguous():
                module.weight.data = module.weight.data.t().contiguous().t()


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
        # Views of one tensor, in torch's own words: einops would cost as much as the rotation.
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k = rotate(qkv[:, :, :2], table).permute(2, 0, 3, 1, 4)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention output [rows, queries, dim]; `mask` is true where a query may look."""
        mixed = softmax_attention(q.to(v.dtype), k.to(v.dtype), v, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each shifted, scaled and gated (adaLN of six)."""

    def __init__(
        self, dim: int, heads: int, condition_dim: int, mlp_ratio: float, *, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, heads, bias=qkv_bias)
        self.mlp = Perceptron(dim, int(dim * mlp_ratio))
        self.modulation = nn.Linear(condition_dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            gates = self.modulation.bias.view(6, dim)[2::3]
            gates.fill_(1.0)  # open: a plain pre-norm block at the start

    def modulations(self, condition: Float[Tensor, "batch time condition"]) -> Modulation:
        """What the block's six modulations are under `condition`."""
        parts = self.modulation(condition)[:, :, None].chunk(6, dim=-1)
        return tuple(1 + part if index % 3 == 1 else part for index, part in enumerate(parts))

    def feed_forward(self, x: Tensor, shift: Tensor, gain: Tensor, gate: Tensor) -> Tensor:
        """`x` plus the gated perceptron."""
        return torch.addcmul(x, gate, self.mlp(modulate(self.norm(x), shift, gain)))


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
        shift, gain, gate, *rest = modulation
        rows = modulate(self.norm(x), shift, gain).flatten(0, 1)
        mixed = self.attention.attend(*self.attention.project(rows, table), mask)
        x = torch.addcmul(x, gate, mixed.view_as(x))
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
        shift, gain, gate, *rest = modulation
        b = len(x)
        rows = modulate(self.norm(x), shift, gain).transpose(1, 2).flatten(0, 1)
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
        x = torch.addcmul(x, gate, mixed.unflatten(0, (b, -1)).transpose(1, 2))
        return self.feed_forward(x, *rest)

    def remember(
        self,
        x: Float[Tensor, "batch time tokens dim"],
        modulation: Modulation,
        table: Rotary,
        cache: LayerCache,
    ) -> None:
        """Write the frames into `cache`, and nothing else."""
        shift, gain, *_ = modulation
        rows = modulate(self.norm(x), shift, gain).transpose(1, 2).flatten(0, 1)
        _, k, v = self.attention.project(rows, table)
        cache.write(k, v)
