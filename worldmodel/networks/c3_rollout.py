"""Rollouts of C3 and WorldGym networks with a key/value cache.

Past frames have a fixed noise level, temporal attention is causal and spatial attention stays
within a frame. Keys and values of past frames therefore do not depend on the frame being sampled,
and the cache is exact while the window grows. Once the window slides, the remaining frames have
attended to a frame that left it. `window="exact"` recomputes them, once per frame and not once per
step; `window="stale"` keeps them, an approximation of constant cost.

Guidance follows WorldGym: a second rollout in the same batch has the null action at every frame of
its window, which also needs its own keys and values.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from worldmodel.networks.attention import Rotary
from worldmodel.networks.c3 import C3Network, causal_mask, null_actions, run_stack, split
from worldmodel.networks.cache import TemporalCache
from worldmodel.networks.dynamics import FrameInputs
from worldmodel.networks.rollout import ImaginedFrame
from worldmodel.networks.sampler import Draw, Sampling, sample


class C3Rollout:
    """Batch of rollouts of a C3 or WorldGym network."""

    def __init__(
        self,
        network: C3Network,
        context: FrameInputs,
        sampling: Sampling,
        draw: Draw,
        epsilon: Float[Tensor, " levels"],
    ) -> None:
        if sampling.method == "heun":
            raise ValueError('`method` must be "ddim" for a C3 network, got "heun".')
        if sampling.guidance != 1 and network.has_confidence:
            raise ValueError(
                "`guidance` must be 1 for a C3 network with a confidence head, which never learned "
                f"to predict without an action, got {sampling.guidance}."
            )
        if sampling.window == "stale" and network.config.temporal_rotary != "standard":
            raise ValueError(
                '`window` must be "exact" unless `temporal_rotary` is "standard", got "stale" with '
                f"{network.config.temporal_rotary!r}."
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
        self.places = network.places
        self.objective = network.objective
        self.guided = sampling.guidance != 1
        self.fresh = False
        """Whether the caches and `waiting` together hold exactly the frames of `latents`."""
        self.waiting: Step | None = None
        """The last frame if not yet cached; the next frame's first pass writes it."""

    def next_frame(self, frame: FrameInputs) -> ImaginedFrame:
        """Sample one frame from the noise in `frame` and append it to the past."""
        if not self.fresh:
            self.restart()
        action = known_actions(frame)
        step = Step(self, action)
        step.latent = sample(
            step.denoise, frame.noisy, self.objective.schedule, self.sampling, self.draw
        )
        confidence = step.confidence() if len(self.epsilon) else None
        keep = self.network.config.window - 1
        slides = self.latents.shape[1] == keep
        self.latents = torch.cat((self.latents, step.latent), 1)[:, -keep:]
        self.actions = torch.cat((self.actions, action), 1)[:, -keep:]
        # With "pixel", all positions change as the window grows, so the cache cannot be kept.
        grows = not slides and self.network.config.temporal_rotary != "pixel"
        self.fresh = grows or self.sampling.window == "stale"
        if grows:
            self.waiting = step
        elif self.fresh:
            step.write()
        features = step.hidden[: len(action), 0].float()  # those with the action
        return ImaginedFrame(step.latent[:, 0], features, confidence)

    def restart(self) -> None:
        """Recompute the caches from the frames in the window."""
        network, time = self.network, self.latents.shape[1]
        for cache in (self.cache, self.confidence_cache):
            cache.restart()
        actions = self.with_null(self.actions)
        condition = network.condition(
            actions.new_full(actions.shape[:2], self.objective.context_timestep), actions
        )
        tables = self.places, network.times(0, time, min(time + 1, network.config.window))
        hidden = run_stack(
            self.tokens(self.objective.as_context(self.latents)), self.weights,
            split(network.stack.modulations(condition)), tables,
            mask=causal_mask(time, condition.device), cache=self.cache,
            only_write=not len(self.epsilon),
        )  # fmt: skip
        self.cache.advance(time)
        if len(self.epsilon):
            self.write_confidence(
                hidden, network.confidence.modulations(self.for_each_level(condition)), tables
            )
        self.fresh = True

    def with_null(self, actions: Float[Tensor, "batch time action"]) -> Tensor:
        """Actions, and with guidance the null actions of a second rollout after them."""
        return torch.cat((actions, null_actions(actions))) if self.guided else actions

    def tokens(self, latents: Float[Tensor, "batch time 1 channel height width"]) -> Tensor:
        """Tokens of frames, twice with guidance."""
        return self.network.tokens(torch.cat((latents, latents)) if self.guided else latents)

    def write_confidence(
        self,
        hidden: Float[Tensor, "batch time tokens dim"],
        modulations: Float[Tensor, "rows time parts dim"],
        tables: tuple[Rotary, Rotary],
    ) -> None:
        """Write past frames into the confidence head's cache."""
        time = hidden.shape[1]
        run_stack(
            hidden.repeat(len(self.epsilon), 1, 1, 1), self.confidence_weights, split(modulations),
            tables, mask=causal_mask(time, hidden.device) if time > 1 else None,
            cache=self.confidence_cache, only_write=True,
        )  # fmt: skip
        self.confidence_cache.advance(time)

    def for_each_level(self, condition: Float[Tensor, "batch time dim"]) -> Tensor:
        """Conditions of the confidence head, one group per ε: its keys and values depend on ε."""
        b, time = condition.shape[:2]
        epsilon = repeat(self.epsilon, "e -> (e b) t", b=b, t=time)
        return self.network.with_threshold(condition.repeat(len(self.epsilon), 1, 1), epsilon)


class Step:
    """One frame being sampled, with its modulations for all noise levels from one call."""

    latent: Float[Tensor, "batch 1 1 channel height width"]
    """The sampled frame."""

    def __init__(self, rollout: C3Rollout, action: Float[Tensor, "batch 1 action"]) -> None:
        network, objective = rollout.network, rollout.objective
        self.rollout, self.network, self.objective = rollout, network, objective
        self.levels = objective.schedule.levels(rollout.sampling.num_steps)[:-1]
        # The last timestep is that of the frame as part of the past.
        timesteps = [*map(objective.timestep, self.levels), objective.context_timestep]
        actions = rollout.with_null(action).expand(-1, len(timesteps), -1)
        condition = network.condition(
            actions.new_tensor(timesteps).expand(len(actions), -1), actions
        )
        self.modulations = network.stack.modulations(condition)
        if len(rollout.epsilon):
            head_condition = rollout.for_each_level(condition[:, -2:])
            self.confidence_modulations = network.confidence.modulations(head_condition)
        self.hidden = action
        self._tables: dict[tuple[int, int], tuple[Rotary, Rotary]] = {}

    def tables(self, first: int, num_frames: int) -> tuple[Rotary, Rotary]:
        """Rotary tables of frames from index `first` on; the last frame is being sampled."""
        key = (first, num_frames)
        if key not in self._tables:
            window = min(first + num_frames, self.network.config.window)
            self._tables[key] = self.rollout.places, self.network.times(first, num_frames, window)
        return self._tables[key]

    def denoise(self, noisy: Tensor, level: float) -> Tensor:
        """Estimated clean latent from the predicted velocity."""
        network, rollout = self.network, self.rollout
        index = self.levels.index(level)
        modulations = self.modulations[:, index : index + 1]
        parts = split(modulations)
        past, rollout.waiting = rollout.waiting, None
        if past is not None:
            self.hidden = self.pass_with(past, noisy, modulations)
        else:
            self.hidden = run_stack(
                rollout.tokens(noisy), rollout.weights, parts,
                self.tables(rollout.cache.position, 1), cache=rollout.cache,
            )  # fmt: skip
        velocity = network.stack.read_out(self.hidden, parts[-1]).to(noisy.dtype)
        if rollout.guided:
            known, unknown = velocity.chunk(2)
            velocity = unknown + rollout.sampling.guidance * (known - unknown)
        return self.objective.clean(noisy, velocity, level)

    def pass_with(self, past: Step, noisy: Tensor, modulations: Tensor) -> Tensor:
        """Hidden state of this frame, in a pass that also caches the previous frame."""
        rollout, first = self.rollout, self.rollout.cache.position
        pair = torch.cat((self.objective.as_context(past.latent), noisy), dim=1)
        hidden = run_stack(
            rollout.tokens(pair), rollout.weights,
            split(torch.cat((past.modulations[:, -1:], modulations), dim=1)),
            self.tables(first, 2), mask=causal_mask(first + 2, noisy.device)[-2:],
            cache=rollout.cache,
        )  # fmt: skip
        rollout.cache.advance(1)
        if len(rollout.epsilon):
            rollout.write_confidence(
                hidden[:, :1], past.confidence_modulations[:, -1:], self.tables(first, 1)
            )
        return hidden[:, 1:]

    def confidence(self) -> Float[Tensor, "batch view channel h w levels"]:
        """C3's confidence at the last noise level."""
        rollout, levels = self.rollout, len(self.rollout.epsilon)
        modulations = split(self.confidence_modulations[:, :1])
        x = run_stack(
            self.hidden.repeat(levels, 1, 1, 1), rollout.confidence_weights, modulations,
            self.tables(rollout.cache.position, 1), cache=rollout.confidence_cache,
        )  # fmt: skip
        logits = self.network.confidence.read_out(x, modulations[-1])[:, 0]
        return rearrange(logits.float().sigmoid(), "(e b) v c h w -> b v c h w e", e=levels)

    def write(self) -> None:
        """Write the sampled frame into the caches in a separate pass."""
        rollout, tables = self.rollout, self.tables(self.rollout.cache.position, 1)
        hidden = run_stack(
            rollout.tokens(self.objective.as_context(self.latent)), rollout.weights,
            split(self.modulations[:, -1:]), tables,
            cache=rollout.cache, only_write=not len(rollout.epsilon),
        )  # fmt: skip
        rollout.cache.advance(1)
        if len(rollout.epsilon):
            rollout.write_confidence(hidden, self.confidence_modulations[:, -1:], tables)


def known_actions(frame: FrameInputs) -> Tensor:
    """Actions with zeros where unknown, as in the training of the published networks."""
    return frame.actions * frame.action_valid[..., None].to(frame.actions)
