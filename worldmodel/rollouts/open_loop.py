"""Open-loop rollouts through recorded episodes, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from worldmodel.episodes.clips import LatentBatch, collate_latents
from worldmodel.episodes.episode import Episode
from worldmodel.model import WorldModel
from worldmodel.networks.confidence_heads import EPSILONS as EPSILONS  # part of this module, too
from worldmodel.networks.sampler import Sampling

START = 4
"""Real frames before the first imagined one, where nothing else is said."""
CONTEXT = 6
"""Most real frames a rollout starts from."""
BATCH = 32
"""Rollouts at once."""


@dataclass(frozen=True)
class EpisodeRollouts:
    """An episode imagined in stretches, each starting from real frames again.

    Rows before the first stretch hold the real latents, full confidence and horizon 0; so do views
    that are missing, but for the horizon.
    """

    truth: Float[Tensor, "time view channel h w"]
    imagined: Float[Tensor, "time view channel h w"]
    confidence: Float[Tensor, "time view channel h w levels"]
    """P(error <= ε) for each of `EPSILONS`."""
    horizon: Int[np.ndarray, " time"]
    """Frames since the last real one the rollout has seen; 0 where the frame was not imagined."""
    view_valid: Bool[Tensor, "time view"] | None = None
    """False where the episode lacks a camera; None: it has all."""
    features: Float[Tensor, "time tokens dim"] | None = None
    """What a confidence head reads, in half precision, zeros where nothing was imagined; None: not
    kept."""

    @property
    def error(self) -> Float[Tensor, "time view channel h w"]:
        """Absolute difference to the real latents, in latent standard deviations."""
        return (self.imagined - self.truth).abs()


@dataclass(frozen=True)
class RolloutSegment:
    """Frames `start` to `stop` of episode `episode`, imagined from the `context` frames before."""

    episode: int
    context: int
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Context and horizon: stretches of one shape can share a batch."""
        return self.context, self.stop - self.start


def segments(length: int, *, episode: int, start: int, horizon: int) -> Iterator[RolloutSegment]:
    """Cut frames `start` to `length` into stretches of `horizon` frames."""
    for begin in range(start, length, horizon):
        yield RolloutSegment(episode, min(CONTEXT, begin), begin, min(begin + horizon, length))


def roll_out(
    model: WorldModel,
    episodes: Sequence[LatentBatch],
    *,
    start: int = START,
    horizon: int = 16,
    seed: int = 0,
    sampling: Sampling | None = None,
    keep_features: bool = False,
) -> list[EpisodeRollouts]:
    """Imagine recorded episodes under their own actions.

    Args:
        model: the world model.
        episodes: batches of one, whole episodes.
        start: real frames before the first imagined one; at least 1.
        horizon: frames imagined before the rollout starts from real frames again.
        seed: rollout i of the call uses seed + i.
        sampling: how frames are drawn; None: as the checkpoint says.
        keep_features: whether to keep what a confidence head reads.
    """
    results = [_not_imagined(episode) for episode in episodes]
    if keep_features:
        config = model.dynamics.config
        empty = torch.zeros((config.tokens, config.dim), dtype=torch.float16)
        results = [replace(r, features=empty.repeat(len(r.truth), 1, 1)) for r in results]
    plan = [
        piece
        for index, episode in enumerate(episodes)
        for piece in segments(episode.latents.shape[1], episode=index, start=start, horizon=horizon)
    ]
    seeds = {piece: seed + number for number, piece in enumerate(plan)}
    for shape in sorted({piece.shape for piece in plan}):
        same = [piece for piece in plan if piece.shape == shape]
        for first in range(0, len(same), BATCH):
            batch = same[first : first + BATCH]
            own = [seeds[piece] for piece in batch]
            _imagine_batch(model, episodes, batch, own, results, sampling)
    return results


def _not_imagined(episode: LatentBatch) -> EpisodeRollouts:
    truth = episode.latents[0].float()
    confidence = torch.ones((*truth.shape, len(EPSILONS)), dtype=torch.float16)
    view_mask = None if episode.view_valid is None else episode.view_valid[0]
    horizon = np.zeros(len(truth), dtype=np.int64)
    return EpisodeRollouts(truth, truth.clone(), confidence, horizon, view_mask)


def _imagine_batch(
    model: WorldModel,
    episodes: Sequence[LatentBatch],
    batch: Sequence[RolloutSegment],
    seeds: Sequence[int],
    results: Sequence[EpisodeRollouts],
    sampling: Sampling | None,
) -> None:
    """Imagine stretches of one shape and write them into `results`."""
    context, horizon = batch[0].shape
    windows = collate_latents(
        [episodes[s.episode].cut(context + horizon, start=s.start - context) for s in batch]
    )
    view_mask = windows.view_valid
    imagined = model.imagine(
        windows.latents[:, :context].float(),
        windows.actions[:, :-1],
        action_valid=windows.action_valid[:, :-1],
        seeds=seeds,
        epsilon=EPSILONS,
        view_valid=None if view_mask is None else view_mask[:, :context],
        sampling=sampling,
    )
    for row, piece in enumerate(batch):
        target, window = results[piece.episode], slice(piece.start, piece.stop)
        target.imagined[window] = imagined.latents[row].cpu()
        target.confidence[window] = imagined.confidence[row].nan_to_num(1.0).cpu().half()
        target.horizon[window] = np.arange(1, horizon + 1)
        if target.features is not None:
            target.features[window] = imagined.features[row].cpu().half()


EPISODES_AT_ONCE = 32
"""Episodes imagined at once."""


def roll_out_all(
    model: WorldModel, episodes: Sequence[Episode], *, horizon: int, start: int = START
) -> list[EpisodeRollouts]:
    """`roll_out` over any number of episodes, with a progress bar."""
    rollouts: list[EpisodeRollouts] = []
    with tqdm(total=len(episodes), desc="imagine", unit="episode") as bar:
        for first in range(0, len(episodes), EPISODES_AT_ONCE):
            batch = [episode.batch for episode in episodes[first : first + EPISODES_AT_ONCE]]
            rollouts += roll_out(model, batch, start=start, horizon=horizon, seed=first)
            bar.update(len(batch))
    return rollouts
