"""Confidence in the pictures of imagined episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.picture_evidence import imagined_pictures, picture_evidence
from worldmodel.model import WorldModel
from worldmodel.networks.pixel_confidence import DELTAS, patch_grid
from worldmodel.rollouts.open_loop import CONTEXT, EpisodeRollouts


def segments_of(horizon: Int[np.ndarray, " time"]) -> Iterator[slice]:
    """Frames of each segment of an imagined episode.

    >>> list(segments_of(np.array([0, 0, 1, 2, 1])))
    [slice(2, 4, None), slice(4, 5, None)]
    """
    starts = np.flatnonzero(horizon == 1).tolist()
    for start, stop in zip(starts, [*starts[1:], len(horizon)], strict=True):
        yield slice(start, stop)


@torch.inference_mode()
def picture_confidence(
    model: WorldModel,
    episode: Episode,
    rollouts: EpisodeRollouts,
    shown: UInt8[Tensor, "time view height width 3"],
    *,
    deltas: Sequence[float] = DELTAS,
) -> Float[Tensor, "time view rows columns deltas"]:
    """P(mean absolute error <= δ) of every patch of the pictures of an imagined episode.

    1 in frames that were not imagined, NaN in missing views.

    Args:
        model: Model that imagined the episode, with a trained confidence in pictures.
        episode: The recorded episode; frames after the context of a segment are not read.
        rollouts: Its rollouts.
        shown: Their pictures, composed with the last real frame.
        deltas: Errors in grey levels of 255.

    Raises:
        ValueError: The model has no confidence in pictures.
    """
    head = model.picture_confidence
    if head is None:
        raise ValueError(
            "The model has no confidence in pictures; train its stage `pictures`: `worldmodel "
            "train --stage pictures`."
        )
    rows, columns = patch_grid(*shown.shape[-3:-1])
    stated = torch.ones((*shown.shape[:2], rows, columns, len(deltas)))
    levels = torch.tensor(deltas, dtype=torch.float32)
    for segment in segments_of(rollouts.horizon):
        begin = max(0, segment.start - CONTEXT)
        part = imagined_pictures(
            episode.batch.cut(segment.stop - begin, start=begin),
            episode.frames[begin : segment.start],
            latents=rollouts.imagined[segment],
            shown=shown[segment],
        )
        device = head.mean.device
        evidence = picture_evidence(model, part).to(device)
        stated[segment] = head(evidence, levels.to(device)).cpu()
    if rollouts.view_valid is not None:
        stated[~rollouts.view_valid] = torch.nan
    return stated
