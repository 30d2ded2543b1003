"""Cached features and errors of imagined frames, as training data for confidence heads.

The dynamics are frozen while heads are trained. Rolling out once is cheaper than in every step, and
all compared heads train on the same frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from worldmodel.episodes.clips import LatentBatch, collate_latents
from worldmodel.imagination import to_tokens
from worldmodel.model import WorldModel
from worldmodel.networks.dynamics import Dynamics
from worldmodel.networks.noise_schedule import add_noise, training_levels
from worldmodel.rollouts.open_loop import CONTEXT
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.randomness import step_randomness
from worldmodel.training.stages import own_dynamics

EVENTS = ("velocity", "one_step", "rollout")
"""Training events of a head, from C3's to the deployed one."""
LOWEST_LEVEL = 0.05
"""Lowest noise level of the velocity event; its error diverges towards level 0."""


@dataclass(frozen=True)
class FeatureBank:
    """Frames with the inputs of a head and the errors it predicts."""

    features: Float[Tensor, "frame tokens dim"]
    """In half precision."""
    horizon: Float[Tensor, " frame"]
    """Frames since the last real frame."""
    error: Float[Tensor, "frame tokens channel"]
    """Absolute, in latent standard deviations (of the velocity, for that event)."""

    def __len__(self) -> int:
        return len(self.horizon)

    def joined(self, other: FeatureBank) -> FeatureBank:
        """Concatenate two banks."""
        pairs = ((vars(self)[name], vars(other)[name]) for name in vars(self))
        return FeatureBank(*(torch.cat(pair) for pair in pairs))

    def of_horizon(self, longest: int) -> FeatureBank:
        """Frames with a horizon of at most `longest`."""
        keep = self.horizon <= longest
        return FeatureBank(self.features[keep], self.horizon[keep], self.error[keep])


def sample_segment(length: int, horizon: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Sample a rollout segment of an episode: first frame, number of real frames, end.

    >>> sample_segment(2, 16, np.random.default_rng(0))
    (0, 1, 2)
    """
    begin = int(rng.integers(length - 1))
    context = int(rng.integers(1, min(CONTEXT, length - 1 - begin) + 1))
    return begin, context, min(length, begin + context + horizon)


@torch.inference_mode()
def rollout_bank(
    model: WorldModel,
    episodes: Sequence[LatentBatch],
    *,
    passes: int,
    horizon: int,
    rng: np.random.Generator,
    batch_size: int = 16,
) -> FeatureBank:
    """Errors of final latents from the model's own sampler, `passes` rollouts per episode.

    Every rollout starts at a random frame with 1 to `CONTEXT` real frames, and ends `horizon`
    frames later or with the episode.
    """
    parts = []
    for _ in range(passes):
        order = rng.permutation(len(episodes))
        for first in range(0, len(order), batch_size):
            chosen = [episodes[i] for i in order[first : first + batch_size]]
            length = min(episode.latents.shape[1] for episode in chosen)
            parts.append(_rolled(model, chosen, sample_segment(length, horizon, rng), rng))
    return FeatureBank(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _rolled(
    model: WorldModel,
    episodes: Sequence[LatentBatch],
    segment: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    begin, context, end = segment
    clips = collate_latents([e.cut(end - begin, start=begin) for e in episodes])
    imagined = model.imagine(
        clips.latents[:, :context].float(),
        clips.actions[:, :-1],
        action_valid=clips.action_valid[:, :-1],
        seeds=rng.integers(2**31, size=len(clips)).tolist(),
        epsilon=(),
    )
    error = (imagined.latents - clips.latents[:, context:].float()).abs()
    horizon = torch.arange(1.0, end - begin - context + 1).repeat(len(clips))
    return (
        rearrange(imagined.features, "b t n d -> (b t) n d").half(),
        horizon,
        rearrange(to_tokens(error, model.dynamics), "b t n c -> (b t) n c"),
    )


@torch.inference_mode()
def velocity_bank(
    model: WorldModel,
    episodes: Sequence[LatentBatch],
    *,
    passes: int,
    seed: int,
    batch_size: int = 16,
) -> FeatureBank:
    """C3's event (arXiv:2512.05927): velocity error of a real frame at a random noise level.

    With x_s = (1 - s) z + s n the velocity is n - z; its error is the error of z divided by s.
    """
    dynamics = own_dynamics(model)
    assert isinstance(dynamics, Dynamics), "C3's event needs a network that denoises"
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    features, errors = [], []
    for number in range(passes):
        for first in range(0, len(episodes), batch_size):
            batch = collate_latents(list(episodes[first : first + batch_size]))
            latents = batch.latents.float()
            randomness = step_randomness(seed, number * len(episodes) + first)
            shape = (len(batch), latents.shape[1])
            level = training_levels(shape, pure_noise=0.0, generator=randomness.generator)
            level = level.clamp_min(LOWEST_LEVEL)
            noisy = add_noise(latents, randomness.normal_like(latents), level)
            estimate = objective.estimate(batch, latents, noisy, level)
            error = (estimate.clean - latents).abs() / level[:, :, None, None, None, None]
            tokens = to_tokens(error, model.dynamics)
            features.append(rearrange(estimate.features[:, 1:], "b t n d -> (b t) n d").half())
            errors.append(rearrange(tokens[:, 1:], "b t n c -> (b t) n c"))
    error = torch.cat(errors)
    return FeatureBank(torch.cat(features), torch.ones(len(error)), error)
