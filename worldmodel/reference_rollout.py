"""Rolling a published network forward with a cache.

Frames of the past stand at a fixed noise level, temporal attention is causal and spatial attention
stays in its frame. So keys and values of the past do not depend on the frame being sampled, and as
long as the window only grows, caching them is exact. When the window slides, frames that stay had
attended to the frame that leaves: "exact" computes them anew, once per frame instead of once per
step; "stale" keeps them as they were, an approximation of constant cost.
"""

from __future__ import annotations

import itertools

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from worldmodel.attention import Modulation
from worldmodel.cache import TemporalCache
from worldmodel.reference import CONTEXT_LEVEL, Reference, causal_mask
from worldmodel.rollout_io import ImaginedFrame
from worldmodel.sampler import Draw, Sampling, sample
from worldmodel.schedule import SigmoidDiffusion
from worldmodel.transformer import FrameInputs

SCHEDULE = SigmoidDiffusion()


class ReferenceRollout:
    """A batch of rollouts of a published network."""

    def __init__(
        self,
        network: Reference,
        context: FrameInputs,
        sampling: Sampling,
        draw: Draw,
        epsilon: Float[Tensor, " levels"],
    ) -> None:
        if sampling.method == "heun":
            raise ValueError('`method` must be "ddim" for a published network, got "heun".')
        if sampling.guidance != 1:
            raise ValueError(
                f"`guidance` must be 1 for a published network, got {sampling.guidance}."
            )
        self.relative = network.config.temporal_rotary == "standard"
        if sampling.window == "stale" and not self.relative:
            raise ValueError(
                '`window` must be "exact" for a network whose positions in time are not relative '
                f"({network.config.temporal_rotary!r})."
            )
        self.network, self.sampling, self.draw = network, sampling, draw
        self.epsilon = epsilon if network.has_confidence else epsilon[:0]
        keep = network.config.window - 1
        self.latents, self.actions = context.noisy[:, -keep:], known_actions(context)[:, -keep:]
        window = network.config.window
        self.cache = TemporalCache(network.config.layers, window)
        self.confidence_cache = TemporalCache(network.config.confidence_layers, window)
        self.fresh = False
        """Whether the caches hold exactly the frames of `latents`."""

    def next_frame(self, frame: FrameInputs) -> ImaginedFrame:
        """Imagine one frame from the noise in `frame` and make it part of the past."""
        if not self.fresh:
            self.cache.restart()
            self.confidence_cache.restart()
            self.remember(self.latents, self.actions)
            self.fresh = True
        action = known_actions(frame)
        step = Step(self, action)
        latent = sample(step.denoise, frame.noisy, SCHEDULE, self.sampling, self.draw)
        stated = step.confidence() if len(self.epsilon) else None
        self.append(latent, action)
        return ImaginedFrame(latent[:, 0], step.hidden[:, 0].float(), stated)

    def append(self, latent: Tensor, action: Tensor) -> None:
        """Make a frame part of the past."""
        keep = self.network.config.window - 1
        slides = self.latents.shape[1] == keep
        self.latents = torch.cat((self.latents, latent), 1)[:, -keep:]
        self.actions = torch.cat((self.actions, action), 1)[:, -keep:]
        # "pixel" moves every position as the window grows, so nothing can be kept.
        grows = not slides and self.network.config.temporal_rotary != "pixel"
        if grows or (self.sampling.window == "stale"):
            self.remember(latent, action)
        else:
            self.fresh = False

    def remember(self, latents: Tensor, actions: Tensor) -> None:
        """Write frames of the past into the caches."""
        network, time = self.network, latents.shape[1]
        level = latents.new_full(latents.shape[:2], CONTEXT_LEVEL)
        condition = network.condition(level, actions)
        x = network.tokens(latents * SCHEDULE.signal(CONTEXT_LEVEL))
        mask = causal_mask(time, latents.device) if time > 1 else None
        seen = min(self.cache.position + time + 1, network.config.window)
        places, times = network.places, network.times(self.cache.position, time, seen)
        modulations = network.stack.modulations(condition)
        arguments = {"mask": mask, "cache": self.cache}
        if not len(self.epsilon):
            network.stack.remember(x, modulations, places, times, **arguments)
        else:
            hidden = network.stack(x, modulations, places, times, **arguments)
            hidden, condition = self.for_each_level(hidden, condition)
            network.confidence.remember(
                hidden, network.confidence.modulations(condition), places, times,
                mask=mask, cache=self.confidence_cache,
            )  # fmt: skip
        self.cache.advance(time)
        self.confidence_cache.advance(time)

    def for_each_level(self, hidden: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the confidence head, every ε below the other: ε reaches its keys and values."""
        levels = len(self.epsilon)
        b, time = condition.shape[:2]
        epsilon = repeat(self.epsilon, "e -> (e b) t", b=b, t=time)
        condition = self.network.with_threshold(condition.repeat(levels, 1, 1), epsilon)
        return hidden.repeat(levels, 1, 1, 1), condition


class Step:
    """One frame while it is sampled: every noise level's modulations are made at once."""

    def __init__(self, rollout: ReferenceRollout, action: Float[Tensor, "batch 1 action"]) -> None:
        network = rollout.network
        self.rollout, self.network = rollout, network
        self.levels = SCHEDULE.levels(rollout.sampling.num_steps)[:-1]
        level = action.new_tensor(self.levels).expand(len(action), -1)
        self.condition = network.condition(level, action.expand(-1, len(self.levels), -1))
        self.modulations = per_level(network.stack.modulations(self.condition))
        past = rollout.cache.position
        self.times = network.times(past, 1, min(past + 1, network.config.window))
        self.hidden = action

    def denoise(self, noisy: Tensor, level: float) -> Tensor:
        """The clean latent that the network's velocity implies: z = signal x - sigma v."""
        network, index = self.network, self.levels.index(level)
        modulations = self.modulations[index]
        self.hidden = network.stack(
            network.tokens(noisy), modulations, network.places, self.times, cache=self.rollout.cache
        )
        velocity = network.stack.read_out(self.hidden, modulations[-1]).to(noisy.dtype)
        return SCHEDULE.signal(level) * noisy - SCHEDULE.sigma(level) * velocity

    def confidence(self) -> Float[Tensor, "batch view channel h w levels"]:
        """C3's confidence, read once, at the last noise level."""
        network, rollout = self.network, self.rollout
        hidden, condition = rollout.for_each_level(self.hidden, self.condition[:, -1:])
        modulations = network.confidence.modulations(condition)
        x = network.confidence(
            hidden, modulations, network.places, self.times, cache=rollout.confidence_cache
        )
        logits = network.confidence.read_out(x, modulations[-1])[:, 0]
        levels = len(rollout.epsilon)
        return rearrange(logits.float().sigmoid(), "(e b) v c h w -> b v c h w e", e=levels)


def per_level(modulations: list[Modulation]) -> list[list[Modulation]]:
    """From modulations along the time axis to one list for each entry of it."""
    parts = torch.stack([part for block in modulations for part in block], dim=0)
    sizes = [len(block) for block in modulations]
    ends = list(itertools.accumulate(sizes))
    return [
        [views[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        for views in (level.unbind(0) for level in parts.split(1, dim=2))
    ]


def known_actions(frame: FrameInputs) -> Tensor:
    """Actions, zeros where unknown, as the published networks were trained."""
    return frame.actions * frame.action_valid[..., None].to(frame.actions)
