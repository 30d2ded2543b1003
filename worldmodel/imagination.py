"""Rolling the world model forward from a few real frames, with its confidence in every subpatch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from worldmodel.confidence import ContinuousScale, Distribution
from worldmodel.sampler import euler
from worldmodel.transformer import Dynamics, FrameInputs, TemporalCache


@dataclass(frozen=True)
class Imagined:
    """Imagined frames of a batch of rollouts, the context left out."""

    latents: Float[Tensor, "batch time view channel h w"]
    """Whitened latents."""
    confidence: Float[Tensor, "batch time view channel h w levels"]
    """P(error <= ε) per subpatch, for every ε asked for; errors in latent standard deviations."""
    features: Float[Tensor, "batch time tokens dim"]
    """What the confidence head read."""


@dataclass(frozen=True)
class ImaginedFrame:
    """One imagined frame of a batch of rollouts."""

    latent: Float[Tensor, "batch view channel h w"]
    features: Float[Tensor, "batch tokens dim"]


@dataclass(frozen=True, kw_only=True)
class RolloutInputs:
    """Where rollouts start and what is done in them."""

    context: Float[Tensor, "batch start view channel h w"]
    """Latents of real frames."""
    actions: Float[Tensor, "batch rows action"]
    """Canonical actions; row t takes frame t to frame t + 1, row 0 is that of the first frame."""
    action_valid: Bool[Tensor, "batch rows"]
    seeds: Sequence[int]
    """One seed per rollout: the same seed gives the same rollout, whatever else is in the batch."""

    def __post_init__(self) -> None:
        b, start = self.context.shape[:2]
        if start < 1:
            raise ValueError("`context` needs at least one frame, got none.")
        rows = self.actions.shape[1]
        if rows < start:
            raise ValueError(
                f"`actions` needs at least {start} rows for {start} context frames, got {rows}."
            )
        if len(self.seeds) != b:
            raise ValueError(
                f"`seeds` needs one seed per rollout: {b} expected, got {len(self.seeds)}."
            )
        if not torch.isfinite(self.actions).all():
            raise ValueError(
                "`actions` must be finite, got NaN or infinity; repair or drop that episode."
            )


def leading_actions(actions: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """From "row t follows frame t" to "row t leads to frame t": one unknown row in front."""
    unknown, invalid = torch.zeros_like(actions[:, :1]), torch.zeros_like(valid[:, :1])
    return torch.cat((unknown, actions), dim=1), torch.cat((invalid, valid), dim=1)


def previous_frames(latents: Float[Tensor, "batch time view channel h w"]) -> Tensor:
    """The frame before each frame; zeros before the first."""
    return torch.cat((torch.zeros_like(latents[:, :1]), latents[:, :-1]), dim=1)


def start_cache(dynamics: Dynamics, inputs: RolloutInputs) -> TemporalCache:
    """A cache that has seen the context."""
    cache = TemporalCache()
    context = inputs.context
    b, start = context.shape[:2]
    actions, valid = leading_actions(inputs.actions, inputs.action_valid)
    frames = FrameInputs(
        noisy=context,
        previous=previous_frames(context),
        level=context.new_zeros(b, start),
        actions=actions[:, :start],
        action_valid=valid[:, :start],
    )
    dynamics.step(frames, cache, keep=True)
    return cache


@torch.inference_mode()
def frames(dynamics: Dynamics, inputs: RolloutInputs, *, num_steps: int) -> Iterator[ImaginedFrame]:
    """Imagine one frame after the other.

    Each frame costs `num_steps` passes to sample it and one to write it into the cache; that last
    one also makes the features for confidence.
    """
    cache = start_cache(dynamics, inputs)
    start = inputs.context.shape[1]
    previous = inputs.context[:, -1:]
    generators = [torch.Generator().manual_seed(seed) for seed in inputs.seeds]
    for t in range(start - 1, inputs.actions.shape[1]):
        noise = torch.stack([torch.randn(previous.shape[1:], generator=g) for g in generators])
        frame = FrameInputs(
            noisy=noise.to(previous),
            previous=previous,
            level=previous.new_ones(len(previous), 1),
            actions=inputs.actions[:, t : t + 1],
            action_valid=inputs.action_valid[:, t : t + 1],
        )
        previous, features = next_frame(dynamics, cache, frame, num_steps=num_steps)
        yield ImaginedFrame(latent=previous[:, 0], features=features[:, 0])


def next_frame(
    dynamics: Dynamics, cache: TemporalCache, frame: FrameInputs, *, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Sample the frame whose noise `frame` holds and write it into the cache; its features too."""

    def at(noisy: Tensor, level: float) -> FrameInputs:
        return replace(frame, noisy=noisy, level=torch.full_like(frame.level, level))

    def denoise(noisy: Tensor, level: float) -> Tensor:
        return dynamics.step(at(noisy, level), cache, keep=False).clean

    latent = euler(denoise, frame.noisy, num_steps)
    return latent, dynamics.step(at(latent, 0.0), cache, keep=True).features


@torch.inference_mode()
def imagine(
    dynamics: Dynamics,
    head: Distribution | ContinuousScale,
    inputs: RolloutInputs,
    *,
    num_steps: int,
    epsilon: Float[Tensor, " levels"],
) -> Imagined:
    """Imagine a whole batch of rollouts and read the confidence of every frame."""
    latents, confidence, features = [], [], []
    for index, frame in enumerate(frames(dynamics, inputs, num_steps=num_steps)):
        horizon = frame.features.new_full((len(frame.features),), index + 1)
        latents.append(frame.latent)
        stated = head.confidence(frame.features, horizon, epsilon)
        confidence.append(to_subpatches(stated, dynamics))
        features.append(frame.features)
    return Imagined(torch.stack(latents, 1), torch.stack(confidence, 1), torch.stack(features, 1))


def to_subpatches(
    per_token: Float[Tensor, "batch tokens subpatches levels"], dynamics: Dynamics
) -> Float[Tensor, "batch view channel h w levels"]:
    """From one row of values per token to one value per subpatch."""
    config = dynamics.config
    return rearrange(
        per_token, "b (v h w) (c p q) e -> b v c (h p) (w q) e",
        v=config.views, h=config.height // config.patch, p=config.patch, q=config.patch,
    )  # fmt: skip


def to_tokens(subpatches: Float[Tensor, "*batch view channel h w"], dynamics: Dynamics) -> Tensor:
    """The inverse of `to_subpatches`, without the axis of levels."""
    p = dynamics.config.patch
    return rearrange(subpatches, "... v c (h p) (w q) -> ... (v h w) (c p q)", p=p, q=p)
