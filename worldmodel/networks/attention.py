"""Transformer blocks with rotary position embeddings and adaLN modulation."""

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
    """Angles of rotary position embeddings (Su et al. 2021, arXiv:2104.09864).

    The pairs of a head are split evenly over the axes; remaining pairs are not rotated.
    """
    axes = positions.shape[1]
    pairs = head_dim // 2 // axes
    frequency = base ** (-torch.arange(pairs, device=positions.device) / max(pairs, 1))
    angles = (positions[:, :, None] * frequency).flatten(1)
    return F.pad(angles, (0, head_dim // 2 - angles.shape[1]))


Rotary = Tensor | tuple[Tensor, Tensor]
"""Rotary position embeddings shared by all layers. If a pair is two neighbouring entries of a head:
complex [positions, 1, 1, head_dim / 2]. If it is entries i and i + head_dim / 2: cosines and signed
sines, each [positions, 1, 1, head_dim]."""


def rotary_table(cos: Float[Tensor, "tokens half"], sin: Float[Tensor, "tokens half"]) -> Rotary:
    """Table for `rotate` with pairs (i, i + head_dim / 2), from the cosine and sine per pair."""
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

    `mask` is true where a query attends to a key; it broadcasts against [rows, heads, queries,
    keys].
    """
    if not q.requires_grad or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # On a CPU, PyTorch's fused backward pass is several times slower than matrix products.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


Modulation = tuple[Tensor, ...]
"""adaLN modulation: shift, gain (1 + scale) and gate of the attention, then of the MLP, each
[batch, time, 1, dim]."""


def modulated_norm(
    x: Float[Tensor, "batch time tokens dim"], shift: Tensor, gain: Tensor
) -> Float[Tensor, "batch time tokens dim"]:
    """Adaptive layer norm, adaLN (Peebles & Xie 2023, arXiv:2212.09748)."""
    one_frame = shift.numel() == shift.shape[-1]
    if one_frame and x.dtype == gain.dtype:  # one fused call: shift and gain as bias and weight
        return torch.layer_norm(x, x.shape[-1:], gain.flatten(), shift.flatten(), 1e-6)
    return torch.addcmul(shift, torch.layer_norm(x, x.shape[-1:], eps=1e-6), gain)


def gelu_in_place(x: Tensor) -> Tensor:
    """GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415); overwrites `x`.

    Uses (1 + tanh u) / 2 = sigmoid(2u), twice as fast as PyTorch's CPU kernel.
    """
    inner = torch.addcmul(x, x * x, x, value=0.044715)
    return x.mul_(inner.mul_(2 * (2 / torch.pi) ** 0.5).sigmoid_())


def lay_out_for_inference(network: nn.Module) -> None:
    """Store linear weights column-major, which is faster on a CPU for few tokens at a time.

    Shapes, names and values stay; only the memory order changes.
    """
    with torch.inference_mode(False):  # weights created in inference mode cannot be trained
        for module in network.modules():
            if isinstance(module, nn.Linear) and not module.weight.t().is_contiguous():
                module.weight.data = module.weight.data.t().contiguous().t()


class Weights(NamedTuple):
    """Weights of a block, without its modulation.

    Blocks are functions of these, so a rollout reads them from the modules once and not in each of
    its many small passes.
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
    # Plain views: einops would take as long as the rotation.
    qkv = F.linear(x, w.qkv, w.qkv_bias).view(*x.shape[:2], 3, w.heads, -1)
    q, k = rotate(qkv[:, :, :2], table).permute(2, 0, 3, 1, 4)
    return q, k, qkv[:, :, 2].transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, w: Weights, mask: Tensor | None) -> Tensor:
    """Attention output [rows, queries, dim]; `mask` is true where a query attends to a key."""
    mixed = softmax_attention(q, k, v, mask)
    return F.linear(mixed.transpose(1, 2).flatten(2), w.out, w.out_bias)


ROWS = 128
"""Tokens per MLP call on a CPU: hidden activations of this many stay in the processor's cache."""


def perceptron(x: Float[Tensor, "*batch dim"], w: Weights) -> Float[Tensor, "*batch dim"]:
    """Multi-layer perceptron (MLP): two linear maps with a GELU in between."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        hidden = F.gelu(F.linear(x, w.first, w.first_bias), approximate="tanh")
        return F.linear(hidden, w.second, w.second_bias)
    few = x.numel() <= ROWS * x.shape[-1]
    parts = (x,) if few else x.flatten(0, -2).split(ROWS)  # type: ignore[no-untyped-call]
    outputs = [
        F.linear(gelu_in_place(F.linear(part, w.first, w.first_bias)), w.second, w.second_bias)
        for part in parts
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs).view_as(x)


def mix_space(
    x: Float[Tensor, "batch time tokens dim"],
    w: Weights,
    modulation: Modulation,
    table: Rotary,
    mask: Bool[Tensor, "frames 1 1 tokens"] | None = None,
) -> Float[Tensor, "batch time tokens dim"]:
    """Forward pass of a `SpatialBlock` from its weights."""
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
    """Forward pass of a `TemporalBlock` from its weights."""
    shift, gain, gate, shift_2, gain_2, gate_2 = modulation
    b = len(x)
    rows = modulated_norm(x, shift, gain).transpose(1, 2).flatten(0, 1)
    q, k, v = project(rows, w, table)
    if cache is None:
        mixed = attend(q, k, v, w, mask)
    elif (count := cache.candidates(len(k))) == 1:
        mixed = attend(q, *cache.write(k, v), w, mask)
    else:  # one candidate at a time: all share the past and the slot of the new frame
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
    """Write frames into a temporal block's key/value cache without computing its output."""
    shift, gain, *_ = modulation
    rows = modulated_norm(x, shift, gain).transpose(1, 2).flatten(0, 1)
    _, k, v = project(rows, w, table)
    cache.write(k, v)


class Block(nn.Module):
    """Attention and an MLP, each with an adaLN shift, scale and gate (six modulations)."""

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
            gates.fill_(1.0)  # open gates: a plain pre-norm block at initialization

    def weights(self) -> Weights:
        """Current weights of the block."""
        maps = (self.attention["qkv"], self.attention["out"], self.mlp[0], self.mlp[2])
        parts: list[Any] = [part for m in maps for part in (m.weight, m.bias)]
        return Weights(self.heads, *parts)

    def modulations(self, condition: Float[Tensor, "batch time condition"]) -> Modulation:
        """The block's six modulations for `condition`."""
        parts = self.modulation(condition)[:, :, None].chunk(6, dim=-1)
        return tuple(1 + part if index % 3 == 1 else part for index, part in enumerate(parts))


class SpatialBlock(Block):
    """Attention among all tokens of one frame, across its views."""

    def forward(
        self,
        x: Float[Tensor, "batch time tokens dim"],
        modulation: Modulation,
        table: Rotary,
        mask: Bool[Tensor, "frames 1 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch time tokens dim"]:
        """The block's output; `mask` is false at tokens that no token attends to."""
        return mix_space(x, self.weights(), modulation, table, mask)


class TemporalBlock(Block):
    """Attention along time, separately at each position of the frame."""

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
            modulation: adaLN modulation of each frame.
            table: Rotary position embeddings of the frames in time.
            mask: True where a frame attends to another: [time, time], or one per position of the
                batch, [batch * tokens, 1, time, time]; None: every frame attends to all.
            cache: Key/value cache of the earlier frames; these frames are added. A batch of k times
                its rows holds k candidates for the next frame, one group after the other.
        """
        return mix_time(x, self.weights(), modulation, table, mask, cache)
