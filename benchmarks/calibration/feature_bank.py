"""Imagined frames, with what a head could read of them and what came true, kept to learn from.

The dynamics do not change while a head is trained: imagining once and reading often is cheaper than
imagining in every step, and heads that are to be compared learn from the very same frames.
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
from worldmodel.networks.noise_schedule import add_noise, training_levels
from worldmodel.rollouts.open_loop import CONTEXT
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.randomness import step_randomness
from worldmodel.training.stages import own_dynamics

EVENTS = ("velocity", "one_step", "rollout")
"""Events a head can be trained on, from C3's to the deployed one."""
LOWEST_LEVEL = 0.05
"""Least noise level of the velocity event: its error grows without bound towards level 0."""


@dataclass(frozen=True)
class FeatureBank:
    """Frames with the features a head reads and the error it is to state."""

    features: Float[Tensor, "frame tokens dim"]
    """In half precision."""
    horizon: Float[Tensor, " frame"]
    """Frames since the last real one."""
    error: Float[Tensor, "frame tokens channel"]
    """Absolute, in latent standard deviations (of the velocity, for that event)."""

    def __len__(self) -> int:
        return len(self.horizon)

    def joined(self, other: FeatureBank) -> FeatureBank:
        """The frames of both."""
        pairs = ((vars(self)[name], vars(other)[name]) for name in vars(self))
        return FeatureBank(*(torch.cat(pair) for pair in pairs))

    def of_horizon(self, longest: int) -> FeatureBank:
        """The frames at most so far ahead."""
        keep = self.horizon <= longest
        return FeatureBank(self.features[keep], self.horizon[keep], self.error[keep])


def draw_stretch(length: int, horizon: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """First real frame, number of real frames and end of a rollout somewhere in an episode.

    >>> draw_stretch(2, 16, np.random.default_rng(0))
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

    Every rollout starts somewhere in its episode, from 1 to `CONTEXT` real frames, and ends
    `horizon` frames later or with the episode.
    """
    parts = []
    for _ in range(passes):
        order = rng.permutation(len(episodes))
        for first in range(0, len(order), batch_size):
            chosen = [episodes[i] for i in order[first : first + batch_size]]
            length = min(episode.latents.shape[1] for episode in chosen)
            parts.append(_rolled(model, chosen, draw_stretch(length, horizon, rng), rng))
    return FeatureBank(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _rolled(
    model: WorldModel,
    episodes: Sequence[LatentBatch],
    stretch: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    begin, context, end = stretch
    window = collate_latents([e.cut(end - begin, start=begin) for e in episodes])
    imagined = model.imagine(
        window.latents[:, :context].float(),
        window.actions[:, :-1],
        action_valid=window.action_valid[:, :-1],
        seeds=rng.integers(2**31, size=len(window)).tolist(),
        epsilon=(),
    )
    error = (imagined.latents - window.latents[:, context:].float()).abs()
    ahead = torch.arange(1.0, end - begin - context + 1).repeat(len(window))
    return (
        rearrange(imagined.features, "b t n d -> (b t) n d").half(),
        ahead,
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
    """C3's event (arXiv:2512.05927): the error of the velocity of a real frame at a random level.

    With x_s = (1 - s) z + s n the velocity is n - z, so that its error is that of z over s.
    """
    objective = DynamicsObjective(own_dynamics(model), own_context=0.0, passes=1)
    features, errors = [], []
    for number in range(passes):
        for first in range(0, len(episodes), batch_size):
            batch = collate_latents(list(episodes[first : first + batch_size]))
            latents, draws = (
                batch.latents.float(),
                step_randomness(seed, number * len(episodes) + first),
            )
            shape = (len(batch), latents.shape[1])
            level = training_levels(shape, pure_noise=0.0, generator=draws.generator)
            level = level.clamp_min(LOWEST_LEVEL)
            noisy = add_noise(latents, draws.normal_like(latents), level)
            estimate = objective.estimate(batch, latents, noisy, level)
            error = (estimate.clean - latents).abs() / level[:, :, None, None, None, None]
            tokens = to_tokens(error, model.dynamics)
            features.append(rearrange(estimate.features[:, 1:], "b t n d -> (b t) n d").half())
            errors.append(rearrange(tokens[:, 1:], "b t n c -> (b t) n c"))
    error = torch.cat(errors)
    return FeatureBank(torch.cat(features), torch.ones(len(error)), error)
