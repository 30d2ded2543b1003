"""Open-loop rollouts of recorded episodes."""

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
from worldmodel.episodes.imagine_clip import imagine_clip
from worldmodel.model import WorldModel
from worldmodel.networks.confidence_heads import EPSILONS as EPSILONS  # re-exported
from worldmodel.networks.sampler import Sampling

START = 4
"""Default number of real frames before the first imagined one."""
CONTEXT = 6
"""Maximum number of real context frames of a segment."""
BATCH = 32
"""Segments per batch."""


@dataclass(frozen=True)
class EpisodeRollouts:
    """An episode imagined in segments, each of which starts from real frames.

    Frames before the first segment hold the real latents, confidence 1 and horizon 0. Missing views
    hold the same latents and confidence. The confidence of imagined frames is NaN if the model has
    none.
    """

    truth: Float[Tensor, "time view channel h w"]
    imagined: Float[Tensor, "time view channel h w"]
    confidence: Float[Tensor, "time view channel h w levels"]
    """P(error <= ε) for each of `EPSILONS`."""
    horizon: Int[np.ndarray, " time"]
    """Frames since the last real frame of the context; 0 for frames that were not imagined."""
    view_valid: Bool[Tensor, "time view"] | None = None
    """False where the episode lacks a camera; None: it has all."""
    features: Float[Tensor, "time tokens dim"] | None = None
    """Input of the confidence head in half precision, 0 for frames that were not imagined; None:
    not kept."""

    @property
    def error(self) -> Float[Tensor, "time view channel h w"]:
        """Absolute error of the imagined latents, in latent standard deviations."""
        return (self.imagined - self.truth).abs()


@dataclass(frozen=True)
class RolloutSegment:
    """Frames `start` to `stop` of an episode, imagined from the `context` frames before."""

    episode: int
    context: int
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Context and horizon; segments of one shape can share a batch."""
        return self.context, self.stop - self.start


def segments(length: int, *, episode: int, start: int, horizon: int) -> Iterator[RolloutSegment]:
    """Cut frames `start` to `length` into segments of `horizon` frames."""
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
        model: The world model.
        episodes: Whole episodes, as batches of one.
        start: Real frames before the first imagined one; at least 1.
        horizon: Frames per segment.
        seed: Segment i of the call uses seed + i.
        sampling: Sampler settings; None: those of the checkpoint.
        keep_features: Whether to keep the input of the confidence head.
    """
    results = [_not_imagined(episode) for episode in episodes]
    if keep_features:
        config = model.dynamics.config
        empty = torch.zeros((config.tokens, config.dim), dtype=torch.float16)
        results = [replace(r, features=empty.repeat(len(r.truth), 1, 1)) for r in results]
    plan = [
        segment
        for index, episode in enumerate(episodes)
        for segment in segments(
            episode.latents.shape[1], episode=index, start=start, horizon=horizon
        )
    ]
    seeds = {segment: seed + number for number, segment in enumerate(plan)}
    for shape in sorted({segment.shape for segment in plan}):
        same = [segment for segment in plan if segment.shape == shape]
        for first in range(0, len(same), BATCH):
            batch = same[first : first + BATCH]
            batch_seeds = [seeds[segment] for segment in batch]
            _imagine_batch(model, episodes, batch, batch_seeds, results, sampling)
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
    """Imagine segments of one shape and write them into `results`."""
    context, horizon = batch[0].shape
    windows = collate_latents(
        [episodes[s.episode].cut(context + horizon, start=s.start - context) for s in batch]
    )
    epsilon = EPSILONS if model.has_confidence else ()
    imagined = imagine_clip(
        model, windows, context, seeds=seeds, epsilon=epsilon, sampling=sampling
    )
    for row, segment in enumerate(batch):
        target, window = results[segment.episode], slice(segment.start, segment.stop)
        target.imagined[window] = imagined.latents[row].cpu()
        stated = imagined.confidence[row].nan_to_num(1.0).cpu().half()
        target.confidence[window] = stated if model.has_confidence else torch.nan
        target.horizon[window] = np.arange(1, horizon + 1)
        if target.features is not None:
            target.features[window] = imagined.features[row].cpu().half()


EPISODES_AT_ONCE = 32
"""Episodes per call of `roll_out`."""


def roll_out_all(
    model: WorldModel,
    episodes: Sequence[Episode],
    *,
    horizon: int,
    start: int = START,
    with_states: bool = True,
) -> list[EpisodeRollouts]:
    """`roll_out` in chunks of episodes, with a progress bar.

    Without `with_states`, a model that reads the commanded pose does not get the robot's state, as
    in a live monitor.
    """
    rollouts: list[EpisodeRollouts] = []
    with tqdm(total=len(episodes), desc="imagine", unit="episode") as bar:
        for first in range(0, len(episodes), EPISODES_AT_ONCE):
            batch = [episode.batch for episode in episodes[first : first + EPISODES_AT_ONCE]]
            if not with_states:
                batch = [replace(episode, states=None) for episode in batch]
            rollouts += roll_out(model, batch, start=start, horizon=horizon, seed=first)
            bar.update(len(batch))
    return rollouts
