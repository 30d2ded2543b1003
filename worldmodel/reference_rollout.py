"""Rolling a published network forward with a cache.

Frames of the past stand at a fixed noise level, temporal attention is causal and spatial attention
stays in its frame. So keys and values of the past do not depend on the frame being sampled, and as
long as the window only grows, caching them is exact. When the window slides, frames that stay had
attended to the frame that leaves: "exact" computes them anew, once per frame instead of once per
step; "stale" keeps them as they were, an approximation of constant cost.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from worldmodel.attention import Modulation, Rotary
from worldmodel.cache import TemporalCache
from worldmodel.reference import CONTEXT_LEVEL, Reference, causal_mask, run_stack
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
        self.weights = network.stack.weights()
        self.confidence_weights = network.confidence.weights() if network.has_confidence else []
        self.fresh = False
        """Whether the caches hold exactly the frames of `latents`."""

    def next_frame(self, frame: FrameInputs) -> ImaginedFrame:
        """Imagine one frame from the noise in `frame` and make it part of the past."""
        if not self.fresh:
            self.restart()
        action = known_actions(frame)
        step = Step(self, action)
        latent = sample(step.denoise, frame.noisy, SCHEDULE, self.sampling, self.draw)
        stated = step.confidence() if len(self.epsilon) else None
        keep = self.network.config.window - 1
        slides = self.latents.shape[1] == keep
        self.latents = torch.cat((self.latents, latent), 1)[:, -keep:]
        self.actions = torch.cat((self.actions, action), 1)[:, -keep:]
        # "pixel" moves every position as the window grows, so nothing can be kept.
        grows = not slides and self.network.config.temporal_rotary != "pixel"
        self.fresh = grows or self.sampling.window == "stale"
        if self.fresh:
            step.remember(latent)
        return ImaginedFrame(latent[:, 0], step.hidden[:, 0].float(), stated)

    def restart(self) -> None:
        """Compute the caches anew from the frames still in the window."""
        network, time = self.network, self.latents.shape[1]
        for cache in (self.cache, self.confidence_cache):
            cache.restart()
        level = self.latents.new_full(self.latents.shape[:2], CONTEXT_LEVEL)
        condition = network.condition(level, self.actions)
        times = network.times(0, time, min(time + 1, network.config.window))
        confidence = self.for_each_level(condition) if len(self.epsilon) else None
        self.write(
            self.latents,
            network.stack.modulations(condition),
            None if confidence is None else network.confidence.modulations(confidence),
            (network.places, times),
        )
        self.fresh = True

    def write(
        self,
        latents: Float[Tensor, "batch time 1 channel height width"],
        modulations: list[Modulation],
        confidence_modulations: list[Modulation] | None,
        tables: tuple[Rotary, Rotary],
    ) -> None:
        """Write frames of the past into the caches, as the network sees the past."""
        network, time = self.network, latents.shape[1]
        mask = causal_mask(time, latents.device) if time > 1 else None
        hidden = run_stack(
            network.tokens(latents * SCHEDULE.signal(CONTEXT_LEVEL)), self.weights, modulations,
            tables, mask=mask, cache=self.cache, only_write=confidence_modulations is None,
        )  # fmt: skip
        self.cache.advance(time)
        if confidence_modulations is not None:
            run_stack(
                hidden.repeat(len(self.epsilon), 1, 1, 1), self.confidence_weights,
                confidence_modulations, tables,
                mask=mask, cache=self.confidence_cache, only_write=True,
            )  # fmt: skip
            self.confidence_cache.advance(time)

    def for_each_level(self, condition: Float[Tensor, "batch time dim"]) -> Tensor:
        """The confidence head's conditions, every ε below the other: ε reaches keys and values."""
        b, time = condition.shape[:2]
        epsilon = repeat(self.epsilon, "e -> (e b) t", b=b, t=time)
        return self.network.with_threshold(condition.repeat(len(self.epsilon), 1, 1), epsilon)


class Step:
    """One frame while it is sampled: its modulations at every noise level are made at once."""

    def __init__(self, rollout: ReferenceRollout, action: Float[Tensor, "batch 1 action"]) -> None:
        network = rollout.network
        self.rollout, self.network = rollout, network
        self.levels = [*SCHEDULE.levels(rollout.sampling.num_steps)[:-1], float(CONTEXT_LEVEL)]
        level = action.new_tensor(self.levels).expand(len(action), -1)
        condition = network.condition(level, action.expand(-1, len(self.levels), -1))
        self.modulations = network.stack.modulations_at(condition)
        past = rollout.cache.position
        times = network.times(past, 1, min(past + 1, network.config.window))
        self.tables = network.places, times
        self.hidden = action
        self.last: list[Modulation] | None = None
        self.remembered: list[Modulation] | None = None
        if len(rollout.epsilon):
            stated = network.confidence.modulations_at(rollout.for_each_level(condition[:, -2:]))
            self.last, self.remembered = stated

    def denoise(self, noisy: Tensor, level: float) -> Tensor:
        """The clean latent that the network's velocity implies: z = signal x - sigma v."""
        network, rollout = self.network, self.rollout
        modulations = self.modulations[self.levels.index(level)]
        self.hidden = run_stack(
            network.tokens(noisy), rollout.weights, modulations, self.tables, cache=rollout.cache
        )
        velocity = network.stack.read_out(self.hidden, modulations[-1]).to(noisy.dtype)
        return SCHEDULE.signal(level) * noisy - SCHEDULE.sigma(level) * velocity

    def confidence(self) -> Float[Tensor, "batch view channel h w levels"]:
        """C3's confidence, read once, at the last noise level."""
        rollout, levels = self.rollout, len(self.rollout.epsilon)
        assert self.last is not None
        x = run_stack(
            self.hidden.repeat(levels, 1, 1, 1), rollout.confidence_weights, self.last,
            self.tables, cache=rollout.confidence_cache,
        )  # fmt: skip
        logits = self.network.confidence.read_out(x, self.last[-1])[:, 0]
        return rearrange(logits.float().sigmoid(), "(e b) v c h w -> b v c h w e", e=levels)

    def remember(self, latent: Float[Tensor, "batch 1 1 channel height width"]) -> None:
        """Make the sampled frame part of the past."""
        self.rollout.write(latent, self.modulations[-1], self.remembered, self.tables)


def known_actions(frame: FrameInputs) -> Tensor:
    """Actions, zeros where unknown, as the published networks were trained."""
    return frame.actions * frame.action_valid[..., None].to(frame.actions)
