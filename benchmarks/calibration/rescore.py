"""Going back over rollouts that are there: window by window, or frame by frame with their past."""

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
"""Rollouts at once, as `roll_out` has them."""

Scores = list[Float[Tensor, "_ view channel h w"]]
"""One per rollout, along its time; zeros where nothing was imagined or a view is missing."""


@dataclass(frozen=True)
class Window:
    """Stretches of one shape: where they start, what was done, what was imagined."""

    inputs: RolloutInputs
    """Its seeds are those of the judged rollouts."""
    imagined: Float[Tensor, "batch time view channel h w"]


@dataclass(frozen=True)
class ScoredFrame:
    """One imagined frame of a batch of rollouts, and the network as it was when it was imagined."""

    latent: Float[Tensor, "batch 1 view channel h w"]
    denoise: Callable[[Tensor, float], Tensor]
    """(x, level) -> estimate of the clean latent, from the past and the action of this frame."""


@torch.inference_mode()
def rescore(model: WorldModel, window: Window, score: Callable[[ScoredFrame], Tensor]) -> Tensor:
    """The score of every frame, given the imagined frames before it.

    Takes one pass per frame to remember it, besides those that `score` asks for.

    Raises:
        ValueError: the model has a published network.
    """
    dynamics = model.dynamics
    if not isinstance(dynamics, Dynamics):
        raise ValueError("`model` must have a network of our own to go back over its rollouts.")
    lay_out_for_inference(dynamics)
    inputs, imagined = window.inputs, window.imagined
    context, cache = context_frames(inputs), dynamics.new_cache()
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
    """A surprise score of every subpatch of some rollouts."""

    def __call__(
        self,
        model: WorldModel,
        episodes: Sequence[LatentBatch],
        rollouts: Sequence[EpisodeRollouts],
        *,
        seed: int,
    ) -> Scores:
        """Score rollouts of `model` on `episodes`.

        `seed` is the one `roll_out` got: what is random gets other seeds, derived from it.
        """


def pieces(rollouts: Sequence[EpisodeRollouts]) -> list[RolloutSegment]:
    """The stretches rollouts were imagined in, in the order `roll_out` numbers them."""
    found = []
    for index, rollout in enumerate(rollouts):
        begins = np.flatnonzero(rollout.horizon == 1)
        for begin, stop in zip(begins, [*begins[1:], len(rollout.horizon)], strict=True):
            found.append(RolloutSegment(index, min(CONTEXT, int(begin)), int(begin), int(stop)))
    return found


def windows(
    episodes: Sequence[LatentBatch], rollouts: Sequence[EpisodeRollouts], seed: int
) -> Iterator[tuple[list[RolloutSegment], Window]]:
    """Stretches in the batches that `roll_out` imagined them in."""
    plan = pieces(rollouts)
    seeds = {piece: seed + number for number, piece in enumerate(plan)}
    for shape in sorted({piece.shape for piece in plan}):
        same = [piece for piece in plan if piece.shape == shape]
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
                seeds=[seeds[piece] for piece in batch],
                view_valid=None if view_mask is None else view_mask[:, :context],
            )
            imagined = torch.stack([rollouts[s.episode].imagined[s.start : s.stop] for s in batch])
            yield batch, Window(inputs, imagined)


def by_window(score: Callable[[WorldModel, Window], Tensor]) -> Score:
    """A score of whole episodes from one of windows."""

    def whole(
        model: WorldModel,
        episodes: Sequence[LatentBatch],
        rollouts: Sequence[EpisodeRollouts],
        *,
        seed: int,
    ) -> Scores:
        scores = [torch.zeros_like(rollout.imagined) for rollout in rollouts]
        for batch, window in windows(episodes, rollouts, seed):
            with torch.inference_mode():
                made = score(model, window).cpu()
            for row, piece in zip(made, batch, strict=True):
                scores[piece.episode][piece.start : piece.stop] = row
        return only_imagined(scores, rollouts)

    return whole


def only_imagined(scores: Scores, rollouts: Sequence[EpisodeRollouts]) -> Scores:
    """Scores with zeros where nothing was imagined and in views that are missing."""
    kept = []
    for score, rollout in zip(scores, rollouts, strict=True):
        view_mask = torch.from_numpy(rollout.horizon > 0)[:, None]
        if rollout.view_valid is not None:
            view_mask = view_mask & rollout.view_valid
        kept.append(torch.where(view_mask[..., None, None, None], score, torch.zeros_like(score)))
    return kept
