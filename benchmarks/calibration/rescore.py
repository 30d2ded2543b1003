"""Rescore finished rollouts: segment by segment, or frame by frame given the past."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.episodes.clips import LatentBatch, collate_latents
from worldmodel.imagination import context_frames
from worldmodel.model import WorldModel
from worldmodel.networks.attention import lay_out_for_inference
from worldmodel.networks.dynamics import Dynamics, FrameInputs
from worldmodel.networks.rollout import RolloutInputs
from worldmodel.rollouts.open_loop import CONTEXT, EpisodeRollouts, RolloutSegment

BATCH = 32
"""Rollouts per batch, as in `roll_out`."""

Scores = list[Float[Tensor, "_ view channel h w"]]
"""One tensor per rollout, along its time; zeros at real frames and missing views."""


@dataclass(frozen=True)
class SegmentBatch:
    """Batch of rollout segments of one shape: context, actions and imagined frames."""

    inputs: RolloutInputs
    """Inputs with the seeds of the original rollouts."""
    imagined: Float[Tensor, "batch time view channel h w"]


@dataclass(frozen=True)
class ScoredFrame:
    """Imagined frame of a batch of rollouts, and a denoiser given its past."""

    latent: Float[Tensor, "batch 1 view channel h w"]
    denoise: Callable[[Tensor, float], Tensor]
    """(x, level) -> estimate of the clean latent, given the past and this frame's action."""


@torch.inference_mode()
def rescore(
    model: WorldModel, segments: SegmentBatch, score: Callable[[ScoredFrame], Tensor]
) -> Tensor:
    """Score every frame given the imagined frames before it.

    Besides the passes of `score`, each frame takes one pass to fill the key/value cache.

    Raises:
        ValueError: the model has a published network, not a `Dynamics`.
    """
    dynamics = model.dynamics
    if not isinstance(dynamics, Dynamics):
        raise ValueError(f"`model` must have a `Dynamics` network, got {type(dynamics).__name__}.")
    lay_out_for_inference(dynamics)
    inputs, imagined = segments.inputs, segments.imagined
    context, cache = context_frames(dynamics, inputs), dynamics.new_cache()
    dynamics.step(context, cache, keep=True)
    scores, start = [], inputs.context.shape[1]
    previous = context.noisy[:, -1:]
    for index in range(imagined.shape[1]):
        rows, latent = slice(start - 1 + index, start + index), imagined[:, index : index + 1]

        def estimate(
            noisy: Tensor,
            level: float,
            keep: bool = False,
            previous: Tensor = previous,
            rows: slice = rows,
        ) -> Tensor:
            frame = FrameInputs(
                noisy=noisy,
                previous=previous,
                level=noisy.new_full((len(noisy), 1), level),
                actions=inputs.actions[:, rows],
                action_valid=inputs.action_valid[:, rows],
                view_valid=inputs.imagined_views,
            )
            return dynamics.step(frame, cache, keep=keep).clean

        scores.append(score(ScoredFrame(latent, estimate))[:, 0])
        estimate(latent, 0.0, keep=True)
        previous = latent
    return torch.stack(scores, dim=1)


@runtime_checkable
class Score(Protocol):
    """Anomaly score of every subpatch of rollouts."""

    def __call__(
        self,
        model: WorldModel,
        episodes: Sequence[LatentBatch],
        rollouts: Sequence[EpisodeRollouts],
        *,
        seed: int,
    ) -> Scores:
        """Score rollouts of `model` on `episodes`.

        `seed` must be the seed of `roll_out`; random scores derive other seeds from it.
        """


def rollout_segments(rollouts: Sequence[EpisodeRollouts]) -> list[RolloutSegment]:
    """Segments of rollouts, in the order of `roll_out`."""
    segments = []
    for index, rollout in enumerate(rollouts):
        begins = np.flatnonzero(rollout.horizon == 1)
        for begin, stop in zip(begins, [*begins[1:], len(rollout.horizon)], strict=True):
            segments.append(RolloutSegment(index, min(CONTEXT, int(begin)), int(begin), int(stop)))
    return segments


def segment_batches(
    episodes: Sequence[LatentBatch], rollouts: Sequence[EpisodeRollouts], seed: int
) -> Iterator[tuple[list[RolloutSegment], SegmentBatch]]:
    """Segments in the batches of `roll_out`."""
    plan = rollout_segments(rollouts)
    seeds = {segment: seed + number for number, segment in enumerate(plan)}
    for shape in sorted({segment.shape for segment in plan}):
        same = [segment for segment in plan if segment.shape == shape]
        for first in range(0, len(same), BATCH):
            batch = same[first : first + BATCH]
            context, length = shape
            clips = collate_latents(
                [episodes[s.episode].cut(context + length, start=s.start - context) for s in batch]
            )
            view_mask = clips.view_valid
            inputs = RolloutInputs(
                context=clips.latents[:, :context].float(),
                actions=clips.actions[:, :-1],
                action_valid=clips.action_valid[:, :-1],
                seeds=[seeds[segment] for segment in batch],
                view_valid=None if view_mask is None else view_mask[:, :context],
            )
            imagined = torch.stack([rollouts[s.episode].imagined[s.start : s.stop] for s in batch])
            yield batch, SegmentBatch(inputs, imagined)


def by_segment(score: Callable[[WorldModel, SegmentBatch], Tensor]) -> Score:
    """Turn a score of segment batches into a score of whole episodes."""

    def score_episodes(
        model: WorldModel,
        episodes: Sequence[LatentBatch],
        rollouts: Sequence[EpisodeRollouts],
        *,
        seed: int,
    ) -> Scores:
        scores = [torch.zeros_like(rollout.imagined) for rollout in rollouts]
        for plan, segments in segment_batches(episodes, rollouts, seed):
            with torch.inference_mode():
                batch_scores = score(model, segments).cpu()
            for row, segment in zip(batch_scores, plan, strict=True):
                scores[segment.episode][segment.start : segment.stop] = row
        return only_imagined(scores, rollouts)

    return score_episodes


def only_imagined(scores: Scores, rollouts: Sequence[EpisodeRollouts]) -> Scores:
    """Set scores of real frames and missing views to zero."""
    masked = []
    for score, rollout in zip(scores, rollouts, strict=True):
        view_mask = torch.from_numpy(rollout.horizon > 0)[:, None]
        if rollout.view_valid is not None:
            view_mask = view_mask & rollout.view_valid
        masked.append(torch.where(view_mask[..., None, None, None], score, torch.zeros_like(score)))
    return masked
