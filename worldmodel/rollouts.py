"""Open-loop rollouts through recorded episodes, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmodel.latent_clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.monitors.reliability import Reliability

EPSILONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Error levels, in latent standard deviations, that confidence is stated and checked for."""
START = 4
"""Real frames before the first imagined one, where nothing else is said."""
CONTEXT = 6
"""Most real frames a rollout starts from."""


@runtime_checkable
class Forecasts(Protocol):
    """What was stated of every frame of an episode, and what came of it."""

    @property
    def confidence(self) -> Float[Tensor, "time view channel h w levels"]: ...

    @property
    def error(self) -> Float[Tensor, "time view channel h w"]: ...

    @property
    def horizon(self) -> Int[np.ndarray, " time"]: ...


@dataclass(frozen=True)
class EpisodeRollouts:
    """An episode imagined in stretches, each starting from real frames again.

    Rows before the first stretch hold the real latents, full confidence and horizon 0.
    """

    truth: Float[Tensor, "time view channel h w"]
    imagined: Float[Tensor, "time view channel h w"]
    confidence: Float[Tensor, "time view channel h w levels"]
    """P(error <= ε) for each of `EPSILONS`."""
    horizon: Int[np.ndarray, " time"]
    """Frames since the last real one the rollout has seen; 0 where the frame was not imagined."""

    @property
    def error(self) -> Float[Tensor, "time view channel h w"]:
        """Absolute difference to the real latents, in latent standard deviations."""
        return (self.imagined - self.truth).abs()


@dataclass(frozen=True)
class Stretch:
    """Frames `start` to `stop` of episode `episode`, imagined from the `context` frames before."""

    episode: int
    context: int
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Context and horizon: stretches of one shape can share a batch."""
        return self.context, self.stop - self.start


def stretches(length: int, *, episode: int, start: int, horizon: int) -> Iterator[Stretch]:
    """Cut frames `start` to `length` into stretches of `horizon` frames."""
    for begin in range(start, length, horizon):
        yield Stretch(episode, min(CONTEXT, begin), begin, min(begin + horizon, length))


def roll_out(
    model: WorldModel,
    episodes: Sequence[LatentBatch],
    *,
    start: int = START,
    horizon: int = 16,
    seed: int = 0,
    batch_size: int = 32,
) -> list[EpisodeRollouts]:
    """Imagine recorded episodes under their own actions.

    Args:
        model: the world model.
        episodes: batches of one, whole episodes.
        start: real frames before the first imagined one; at least 1.
        horizon: frames imagined before the rollout starts from real frames again.
        seed: rollout i of the call uses seed + i.
        batch_size: rollouts at once.
    """
    results = [_not_imagined(episode) for episode in episodes]
    plan = [
        piece
        for index, episode in enumerate(episodes)
        for piece in stretches(
            episode.latents.shape[1], episode=index, start=start, horizon=horizon
        )
    ]
    seeds = {piece: seed + number for number, piece in enumerate(plan)}
    for shape in sorted({piece.shape for piece in plan}):
        same = [piece for piece in plan if piece.shape == shape]
        for first in range(0, len(same), batch_size):
            batch = same[first : first + batch_size]
            _imagine_batch(model, episodes, batch, [seeds[piece] for piece in batch], results)
    return results


def _not_imagined(episode: LatentBatch) -> EpisodeRollouts:
    truth = episode.latents[0].float()
    confidence = torch.ones((*truth.shape, len(EPSILONS)), dtype=torch.float16)
    return EpisodeRollouts(truth, truth.clone(), confidence, np.zeros(len(truth), dtype=np.int64))


def _imagine_batch(
    model: WorldModel,
    episodes: Sequence[LatentBatch],
    batch: Sequence[Stretch],
    seeds: Sequence[int],
    results: Sequence[EpisodeRollouts],
) -> None:
    """Imagine stretches of one shape and write them into `results`."""

    def gather(values: str, begin: int, end: int) -> Tensor:
        rows = [
            getattr(episodes[s.episode], values)[0, s.start + begin : s.start + end] for s in batch
        ]
        return torch.stack(rows)

    context, horizon = batch[0].shape
    imagined = model.imagine(
        gather("latents", -context, 0).float(),
        gather("actions", -context, horizon - 1),
        action_valid=gather("action_valid", -context, horizon - 1),
        seeds=seeds,
        epsilon=EPSILONS,
    )
    for row, piece in enumerate(batch):
        target, window = results[piece.episode], slice(piece.start, piece.stop)
        target.imagined[window] = imagined.latents[row].cpu()
        target.confidence[window] = imagined.confidence[row].cpu().half()
        target.horizon[window] = np.arange(1, horizon + 1)


def count_reliability(
    rollouts: Sequence[Forecasts],
    *,
    names: Sequence[str],
    horizons: Sequence[int],
    num_bins: int = 15,
) -> Reliability:
    """Stated confidence against what came true, at some horizons of every rollout."""
    reliability = Reliability(epsilons=EPSILONS, horizons=horizons, num_bins=num_bins)
    levels = np.array(EPSILONS)
    for name, rollout in zip(names, rollouts, strict=True):
        for t in np.flatnonzero(np.isin(rollout.horizon, horizons)):
            confidence = rollout.confidence[t].float().numpy().reshape(-1, len(levels)).T
            correct = rollout.error[t].numpy().reshape(1, -1) <= levels[:, None]
            horizon = int(rollout.horizon[t])
            reliability.update(confidence, correct, episode=name, horizon=horizon)
    return reliability


def psnr_db(a: Float[Tensor, "*any"], b: Float[Tensor, "*any"]) -> float:
    """Peak signal-to-noise ratio of uint8 images, in decibels, from the pooled squared error."""
    mean_square = (a.float() - b.float()).square().mean()
    return float(10 * torch.log10(255.0**2 / mean_square.clamp_min(1e-8)))
