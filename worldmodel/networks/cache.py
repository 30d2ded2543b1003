"""Key/value cache of past frames, so that a rollout computes each frame once.

The cache is a ring buffer of `capacity` frames: the past frames of the window and the frame being
sampled. Every sampler step overwrites the slot of the frame that has just left the window;
`advance` makes the sampled frame part of the past. Nothing is copied and memory does not grow.
After the ring wraps around, slots are out of order. Attention does not depend on their order,
because the keys carry rotary position embeddings.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class LayerCache:
    """Keys and values of one layer of a `TemporalCache`."""

    def __init__(self, owner: TemporalCache) -> None:
        self.owner = owner
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def candidates(self, num_rows: int) -> int:
        """Candidates for the next frame per cached row, in a batch of `num_rows` rows."""
        return 1 if self.keys is None else num_rows // len(self.keys)

    def write(
        self, k: Float[Tensor, "rows heads time head_dim"], v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write frames at the cache's position; return all keys and values they attend to."""
        position, capacity = self.owner.position, self.owner.capacity
        if self.keys is None or self.values is None:
            shape = (*k.shape[:2], capacity, k.shape[3])
            self.keys, self.values = k.new_empty(shape), v.new_empty(shape)
        num_frames = k.shape[2]
        if num_frames == 1:
            slot = position % capacity
            self.keys.select(2, slot).copy_(k.squeeze(2))
            self.values.select(2, slot).copy_(v.squeeze(2))
            filled = min(position + 1, capacity)
            return self.keys[:, :, :filled], self.values[:, :, :filled]
        filled = position + num_frames
        if filled <= capacity:
            self.keys[:, :, position:filled], self.values[:, :, position:filled] = k, v
            return self.keys[:, :, :filled], self.values[:, :, :filled]
        assert position == 0, "only a context that starts the cache may exceed its capacity"
        kept = torch.arange(max(0, num_frames - capacity), num_frames, device=k.device)
        self.keys[:, :, kept % capacity] = k[:, :, kept]
        self.values[:, :, kept % capacity] = v[:, :, kept]
        return k, v


class TemporalCache:
    """Key/value cache of the frames in the window, one `LayerCache` per layer."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        """Create an empty cache; `capacity` includes the frame being sampled."""
        self.capacity = capacity
        self.position = 0
        """Index in time of the next frame."""
        self.layers = [LayerCache(self) for _ in range(num_layers)]

    def advance(self, num_frames: int) -> None:
        """Make the last `num_frames` written frames part of the past."""
        self.position += num_frames

    def restart(self) -> None:
        """Drop all frames but keep the buffers."""
        self.position = 0
