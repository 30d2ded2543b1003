"""Pictures of imagined latents: composed with the last real frame, or decoded without it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import EpisodeRollouts
from worldmodel.rollouts.picture_kinds import COMPOSED, DECODED, check_kind


def pictures(
    model: WorldModel,
    frames: UInt8[Tensor, "time view height width 3"],
    rollouts: EpisodeRollouts,
    *,
    rows: Int[np.ndarray, " row"] | None = None,
    kind: str = COMPOSED,
) -> UInt8[Tensor, "row view height width 3"]:
    """Pictures of the frames `rows` of an imagined episode; None: of all.

    The last real frame of an imagined one is that before its segment. A frame of the context is its
    own: composed, it is the frame itself; decoded, its reconstruction by the tokenizer.

    Args:
        model: Model that imagined the episode.
        frames: Its real frames.
        rollouts: Its imagined latents, and the true ones.
        rows: Indices of frames.
        kind: One of `KINDS`.
    """
    check_kind(kind)
    chosen = np.arange(len(rollouts.horizon)) if rows is None else rows
    if kind == DECODED:
        return model.decode(rollouts.imagined[chosen]).cpu()
    last = chosen - rollouts.horizon[chosen]
    shown: dict[int, Tensor] = {}
    for frame in np.unique(last):
        own = chosen[last == frame]
        seen = None if rollouts.view_valid is None else rollouts.view_valid[frame]
        images = model.show(
            rollouts.imagined[own], frames[frame],
            last_latents=rollouts.truth[frame], seen=seen,
        )  # fmt: skip
        shown |= dict(zip(own.tolist(), images.cpu(), strict=True))
    return torch.stack([shown[row] for row in chosen.tolist()])
