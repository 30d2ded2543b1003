"""Keys and values of past frames, so that a rollout computes each frame once.

A cache is a ring of `capacity` frames: the last frames and the one being sampled. The frame being
sampled writes into the slot of the frame that has just left the window, as often as the sampler
asks for it; `advance` makes it part of the past. Nothing is copied and memory never grows. Slots
are out of order once the ring has turned; attention does not care, since positions are rotated
into the keys.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class LayerCache:
    """One layer's share of a `TemporalCache`."""

    def __init__(self, owner: TemporalCache) -> None:
        self.owner = owner
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def candidates(self, num_rows: int) -> int:
        """How many candidates of the next frame share each past, of `num_rows` rows in all."""
        return 1 if self.keys is None else num_rows // len(self.keys)

    def write(
        self, k: Float[Tensor, "rows heads time head_dim"], v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put in the frames at the cache's position; all keys and values these frames may see."""
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
        assert position == 0, "several frames at once do not turn the ring"
        kept = torch.arange(max(0, num_frames - capacity), num_frames, device=k.device)
        self.keys[:, :, kept % capacity] = k[:, :, kept]
        self.values[:, :, kept % capacity] = v[:, :, kept]
        return k, v


class TemporalCache:
    """Keys and values of the frames still in the window, per layer."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        """An empty cache; `capacity` counts the frame being sampled."""
        self.capacity = capacity
        self.position = 0
        """Position in time of the next frame."""
        self.layers = [LayerCache(self) for _ in range(num_layers)]

    def advance(self, num_frames: int) -> None:
        """Make the frames written last part of the past."""
        self.position += num_frames

    def restart(self) -> None:
        """Forget every frame; the buffers stay."""
        self.position = 0
