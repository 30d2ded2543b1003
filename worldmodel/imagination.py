"""Imagination: rollouts from a few real frames, with a confidence for every subpatch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from worldmodel.networks.attention import lay_out_for_inference
from worldmodel.networks.c3 import PUBLISHED, C3Network
from worldmodel.networks.c3_rollout import C3Rollout
from worldmodel.networks.commanded_pose import pose_features
from worldmodel.networks.confidence_heads import Head
from worldmodel.networks.dynamics import Dynamics, FrameInputs, only_valid
from worldmodel.networks.noise_schedule import Flow
from worldmodel.networks.recurrent import RecurrentDynamics
from worldmodel.networks.rollout import (
    ImaginedFrame,
    Rollout,
    RolloutInputs,
    RowNoise,
    leading_actions,
    previous_frames,
)
from worldmodel.networks.sampler import Draw, Sampling, sample

TOKENS_AT_ONCE = 512
"""Approximate number of tokens per call of the confidence head, so that its activations stay in the
CPU's cache. A call takes at least one frame of the whole batch."""


@dataclass(frozen=True)
class Imagined:
    """Imagined frames of a batch of rollouts, without the context."""

    latents: Float[Tensor, "batch time view channel h w"]
    """Whitened latents."""
    confidence: Float[Tensor, "batch time view channel h w levels"]
    """P(error <= ε) per subpatch for every requested ε, in latent standard deviations. The last
    axis is empty if no ε was requested or the model has no confidence head."""
    features: Float[Tensor, "batch time tokens dim"]
    """Input of the confidence head."""
    view_valid: Bool[Tensor, "batch time view"] | None = None
    """View mask; where false, latents are zeros and the confidence is NaN. None: all true."""


Network = Dynamics | RecurrentDynamics | C3Network
"""Union of all dynamics networks."""


class DynamicsRollout:
    """Batch of rollouts of the dynamics network.

    Each frame takes `num_steps` passes to sample it, and one pass that writes it into the key/value
    cache and computes the features for the confidence. The attention window slides with the frame,
    so the cache is exact at any length.
    """

    def __init__(
        self, dynamics: Dynamics, context: FrameInputs, sampling: Sampling, draw: Draw
    ) -> None:
        self.dynamics, self.sampling, self.draw = dynamics, sampling, draw
        self.cache = dynamics.new_cache()
        dynamics.step(context, self.cache, keep=True)

    def next_frame(self, frame: FrameInputs) -> ImaginedFrame:
        """Sample one frame from the noise in `frame` and append it to the past."""

        def at(noisy: Tensor, level: float) -> FrameInputs:
            return replace(frame, noisy=noisy, level=torch.full_like(frame.level, level))

        def estimate(inputs: FrameInputs) -> Tensor:
            return self.dynamics.step(inputs, self.cache, keep=False).clean

        def denoise(noisy: Tensor, level: float) -> Tensor:
            weight, inputs = self.sampling.guidance, at(noisy, level)
            if weight == 1:
                return estimate(inputs)
            known, unknown = estimate(with_and_without_action(inputs)).chunk(2)
            return unknown + weight * (known - unknown)

        latent = sample(denoise, frame.noisy, Flow(), self.sampling, self.draw)
        if frame.view_valid is not None:
            latent = only_valid(latent, frame.view_valid)
        features = self.dynamics.step(at(latent, 0.0), self.cache, keep=True).features
        return ImaginedFrame(latent=latent[:, 0], features=features[:, 0])


def with_and_without_action(frame: FrameInputs) -> FrameInputs:
    """Batch for classifier-free guidance: the frames, then the same frames without actions."""

    def twice(x: Tensor) -> Tensor:
        return torch.cat((x, x))

    view_mask = frame.view_valid
    return FrameInputs(
        noisy=twice(frame.noisy),
        previous=twice(frame.previous),
        level=twice(frame.level),
        actions=twice(frame.actions),
        action_valid=torch.cat((frame.action_valid, torch.zeros_like(frame.action_valid))),
        view_valid=None if view_mask is None else twice(view_mask),
        pose=None if frame.pose is None else torch.cat((frame.pose, torch.zeros_like(frame.pose))),
    )


class RecurrentRollout:
    """Batch of rollouts of the recurrent network: one pass per frame, a memory of fixed size."""

    def __init__(
        self, network: RecurrentDynamics, context: FrameInputs, sampling: Sampling
    ) -> None:
        if sampling != Sampling():
            raise ValueError(
                f"`sampling` must be left out, got {sampling}: a recurrent network predicts every "
                "frame in one pass, without sampling or guidance."
            )
        self.network = network
        self.memory = network.read_context(context)

    def next_frame(self, frame: FrameInputs) -> ImaginedFrame:
        """Predict one frame and remember it; the noise in `frame` is not used."""
        condition = self.network.conditions(frame.actions, frame.action_valid, frame.pose)[:, 0]
        seen = None if frame.view_valid is None else frame.view_valid[:, 0]
        step = self.network.step(frame.previous[:, 0], self.memory, condition, seen)
        self.memory = step.memory
        features = rearrange(step.features, "b v d h w -> b (v h w) d")
        return ImaginedFrame(latent=step.latents, features=features)


def context_frames(network: Network, inputs: RolloutInputs) -> FrameInputs:
    """Network inputs for the real frames that rollouts start from."""
    b, start = inputs.context.shape[:2]
    actions, valid = leading_actions(inputs.actions, inputs.action_valid, inputs.first_action)
    context, view_mask = inputs.context, inputs.view_valid
    if view_mask is not None:
        context = only_valid(context, view_mask)
    rows = slice(start - 1)
    return FrameInputs(
        noisy=context,
        previous=previous_frames(context),
        level=context.new_zeros(b, start),
        actions=actions[:, :start],
        action_valid=valid[:, :start],
        view_valid=view_mask,
        pose=None
        if network.pose is None
        else pose_features(
            network.pose, inputs.first_state, inputs.actions[:, rows], inputs.action_valid[:, rows]
        ),
    )


def begin(
    network: Network,
    context: FrameInputs,
    sampling: Sampling,
    draw: Draw,
    epsilon: Float[Tensor, " levels"],
) -> Rollout:
    """Start a batch of rollouts; only a network with its own confidence head uses `epsilon`."""
    if isinstance(network, C3Network):
        return C3Rollout(network, context, sampling, draw, epsilon)
    if isinstance(network, RecurrentDynamics):
        return RecurrentRollout(network, context, sampling)
    return DynamicsRollout(network, context, sampling, draw)


class CommandedTrack:
    """Commanded pose of a batch of rollouts in progress, from the last context frame on."""

    def __init__(self, network: Network, inputs: RolloutInputs) -> None:
        self._integrate = network.pose
        if self._integrate is not None:
            rows = slice(inputs.context.shape[1] - 1)
            self._pose = self._integrate.track(
                inputs.first_state, inputs.actions[:, rows], inputs.action_valid[:, rows]
            )[:, -1]

    def after(
        self, actions: Float[Tensor, "batch 1 action"], valid: Bool[Tensor, "batch 1"]
    ) -> Float[Tensor, "batch 1 features"] | None:
        """Features of the pose after the next action; None for networks that read no pose."""
        if self._integrate is None:
            return None
        before = self._pose
        self._pose = self._integrate.advance(before, actions[:, 0], valid[:, 0])
        return self._integrate.features(self._pose, before)[:, None]


class Imagination:
    """Batch of rollouts in progress, one action and one frame at a time."""

    @torch.inference_mode()
    def __init__(
        self,
        network: Network,
        inputs: RolloutInputs,
        *,
        sampling: Sampling,
        epsilon: Float[Tensor, " levels"] | None = None,
    ) -> None:
        """Read the context of `inputs` and the actions between its frames; ignore later actions."""
        if inputs.context.device.type == "cpu" and not network.training:
            lay_out_for_inference(network)
        context = context_frames(network, inputs)
        self._pose = CommandedTrack(network, inputs)
        self._previous = context.noisy[:, -1:]
        self._views = inputs.imagined_views
        self._draw = RowNoise(inputs.seeds, self._previous)
        levels = self._previous.new_empty(0) if epsilon is None else epsilon
        self._network = network
        with network.computing():
            self._rollout = begin(network, context, sampling, self._draw, levels)

    @torch.inference_mode()
    def step(
        self,
        actions: Float[Tensor, "batch 1 action"],
        action_valid: Bool[Tensor, "batch 1"],
        noise: Float[Tensor, "batch 1 view channel h w"] | None = None,
    ) -> ImaginedFrame:
        """Imagine the frame after these actions; `noise` None: drawn from the seeds."""
        frame = FrameInputs(
            noisy=self._draw() if noise is None else noise,
            previous=self._previous,
            level=self._previous.new_ones(len(self._previous), 1),
            actions=actions,
            action_valid=action_valid,
            view_valid=self._views,
            pose=self._pose.after(actions, action_valid),
        )
        with self._network.computing():
            imagined = self._rollout.next_frame(frame).each(self._network.computed)
        self._previous = imagined.latent[:, None]
        return imagined

    def end(self) -> None:
        """Release a key/value cache now; reference cycles would keep it alive."""
        if isinstance(self._rollout, DynamicsRollout):
            self._rollout.cache.layers.clear()


def frames(
    network: Network,
    inputs: RolloutInputs,
    *,
    sampling: Sampling,
    epsilon: Float[Tensor, " levels"] | None = None,
) -> Iterator[ImaginedFrame]:
    """Iterate over imagined frames; memory does not grow with their number."""
    rollouts = Imagination(network, inputs, sampling=sampling, epsilon=epsilon)
    first = inputs.context.shape[1] - 1
    for index in range(inputs.num_frames):
        row = slice(first + index, first + index + 1)
        noise = None if inputs.noise is None else inputs.noise[:, index : index + 1]
        yield rollouts.step(inputs.actions[:, row], inputs.action_valid[:, row], noise)


@torch.inference_mode()
def imagine(
    network: Network,
    head: Head | None,
    inputs: RolloutInputs,
    *,
    sampling: Sampling,
    epsilon: Float[Tensor, " levels"],
) -> Imagined:
    """Imagine a batch of rollouts and compute the confidence of every frame."""
    imagined = list(frames(network, inputs, sampling=sampling, epsilon=epsilon))
    latents = torch.stack([frame.latent for frame in imagined], 1)
    features = torch.stack([frame.features for frame in imagined], 1)
    own = [frame.confidence for frame in imagined if frame.confidence is not None]
    if own:
        confidence = torch.stack(own, 1)
    elif head is None or not len(epsilon):
        confidence = latents[..., None][..., :0]
    else:
        confidence = state_confidence(network, head, features, epsilon)
    view_mask = inputs.imagined_views
    if view_mask is not None:
        view_mask = view_mask.expand(-1, len(imagined), -1)
        confidence = confidence.masked_fill(~view_mask[..., None, None, None, None], torch.nan)
    return Imagined(latents, confidence, features, view_mask)


def imagine_published(
    network: C3Network,
    context: Float[Tensor, "batch start 1 channel height width"],
    actions: Float[Tensor, "batch rows action"],
    *,
    noise: Float[Tensor, "batch frames 1 channel height width"] | None = None,
    seeds: Sequence[int] | None = None,
    epsilon: Sequence[float] = (),
    sampling: Sampling = PUBLISHED,
) -> Imagined:
    """Imagine with the action convention of C3 and WorldGym: row t leads *to* frame t.

    Args:
        network: C3 or WorldGym network.
        context: Latents of the frames before the rollout.
        actions: Row 0 leads to the first context frame and is used. Everywhere else in this
            package, row t takes frame t to frame t + 1.
        noise: Initial noise of each imagined frame; default: drawn from the seeds.
        seeds: One per rollout; default: 0, 1, 2, ...
        epsilon: Error levels of the confidence; ignored without a confidence head.
        sampling: Configuration of the sampler.

    Returns:
        `rows - start` imagined frames per rollout. The last axis of the confidence is empty without
        `epsilon` or without a confidence head.

    Raises:
        ValueError: There is no row for a frame to imagine, or the shapes of the inputs differ.
    """
    start, (b, rows, width) = context.shape[1], actions.shape
    if rows <= start or width != network.config.action_dim:
        raise ValueError(
            f"`actions` must have more than {start} rows, one per context and imagined frame, "
            f"of {network.config.action_dim} numbers, got {rows} rows of {width}."
        )
    inputs = RolloutInputs(
        context=context,
        actions=actions[:, 1:],
        action_valid=torch.ones((b, rows - 1), dtype=torch.bool, device=actions.device),
        seeds=range(len(context)) if seeds is None else seeds,
        noise=noise,
        first_action=actions[:, 0],
    )
    levels = torch.tensor(list(epsilon), device=context.device)
    return imagine(network, None, inputs, sampling=sampling, epsilon=levels)


def state_confidence(
    network: Network,
    head: Head,
    features: Float[Tensor, "batch time tokens dim"],
    epsilon: Float[Tensor, " levels"],
    *,
    first_horizon: int = 1,
) -> Float[Tensor, "batch time view channel h w levels"]:
    """P(error <= ε) of consecutive imagined frames, computed a few frames at a time.

    The first frame has the horizon `first_horizon`.
    """
    batch, time, tokens, _ = features.shape
    at_once = max(1, TOKENS_AT_ONCE // (batch * tokens))
    parts = []
    for first in range(0, time, at_once):
        part = features[:, first : first + at_once]
        horizon = torch.arange(part.shape[1], device=part.device).to(part) + first + first_horizon
        per_token = head.confidence(part.flatten(0, 1), horizon.repeat(batch), epsilon)
        confidence = to_subpatches(per_token, network)
        parts.append(rearrange(confidence, "(b t) ... -> b t ...", b=batch))
    return torch.cat(parts, 1)


def to_subpatches(
    per_token: Float[Tensor, "batch tokens subpatches levels"], network: Network
) -> Float[Tensor, "batch view channel h w levels"]:
    """Rearrange values from tokens to subpatches."""
    config = network.config
    return rearrange(
        per_token, "b (v h w) (c p q) e -> b v c (h p) (w q) e",
        v=config.views, h=config.height // config.patch, p=config.patch, q=config.patch,
    )  # fmt: skip


def to_tokens(subpatches: Float[Tensor, "*batch view channel h w"], network: Network) -> Tensor:
    """Rearrange values from subpatches to tokens: inverse of `to_subpatches`, without levels."""
    p = network.config.patch
    return rearrange(subpatches, "... v c (h p) (w q) -> ... (v h w) (c p q)", p=p, q=p)
