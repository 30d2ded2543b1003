"""Inputs, outputs and interface of rollouts, shared by all networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from worldmodel.networks.dynamics import FrameInputs


@dataclass(frozen=True, kw_only=True)
class RolloutInputs:
    """Context frames, actions and seeds of a batch of rollouts."""

    context: Float[Tensor, "batch start view channel h w"]
    """Latents of real frames."""
    actions: Float[Tensor, "batch rows action"]
    """Canonical actions; row t takes frame t to frame t + 1, row 0 belongs to the first context
    frame."""
    action_valid: Bool[Tensor, "batch rows"]
    seeds: Sequence[int]
    """One seed per rollout; a rollout does not depend on the rest of the batch."""
    noise: Float[Tensor, "batch frames view channel h w"] | None = None
    """Initial noise of every imagined frame; None: drawn from the seeds."""
    view_valid: Bool[Tensor, "batch start view"] | None = None
    """View mask of the context frames, false for missing views; None: all true. Imagined frames
    have the views of the last context frame."""
    first_action: Float[Tensor, "batch action"] | None = None
    """Action that led to the first frame; None: unknown."""
    first_state: Float[Tensor, "batch 10"] | None = None
    """Canonical state of the robot at the first frame, for networks that read the commanded pose;
    None, or NaN in a row: unknown."""

    def __post_init__(self) -> None:
        b, start = self.context.shape[:2]
        if start < 1:
            raise ValueError("`context` needs at least one frame, got none.")
        num_rows = self.actions.shape[1]
        if num_rows < start:
            raise ValueError(
                f"`actions` needs at least {start} rows for {start} context frames, got {num_rows}."
            )
        if len(self.seeds) != b:
            raise ValueError(
                f"`seeds` needs one seed per rollout: {b} expected, got {len(self.seeds)}."
            )
        for rows in (self.actions, self.first_action):
            if rows is not None and not torch.isfinite(rows).all():
                raise ValueError(
                    "`actions` must be finite, got NaN or infinity; repair or drop that episode."
                )
        expected = (b, self.num_frames, *self.context.shape[2:])
        if self.noise is not None and self.noise.shape != expected:
            raise ValueError(f"`noise` must be of shape {expected}, got {tuple(self.noise.shape)}.")
        if self.view_valid is not None:
            check_views(self.view_valid, expected=self.context.shape[:3])

    @property
    def imagined_views(self) -> Bool[Tensor, "batch 1 view"] | None:
        """View mask of all imagined frames; None: all views."""
        return None if self.view_valid is None else self.view_valid[:, -1:]

    @property
    def num_frames(self) -> int:
        """Number of imagined frames."""
        return self.actions.shape[1] - self.context.shape[1] + 1


def check_views(view_valid: Bool[Tensor, "*any"], *, expected: Sequence[int]) -> None:
    """Raise a ValueError if a view mask has the wrong shape or a frame has no view."""
    if view_valid.shape != tuple(expected):
        raise ValueError(
            f"`view_valid` must be of shape {tuple(expected)}, got {tuple(view_valid.shape)}."
        )
    if not view_valid.any(-1).all():
        raise ValueError("`view_valid` must leave every frame at least one view.")


class RowNoise:
    """Standard normal noise for a batch of frames, with one seed per row."""

    def __init__(self, seeds: Sequence[int], like: Float[Tensor, "batch 1 view channel h w"]):
        self.like = like
        self.generators = [Generator().manual_seed(seed) for seed in seeds]

    def __call__(self) -> Float[Tensor, "batch 1 view channel h w"]:
        shape = self.like.shape[1:]
        rows = torch.stack([torch.randn(shape, generator=g) for g in self.generators])
        if self.like.is_cuda:  # pinned memory makes the copy asynchronous
            return rows.pin_memory().to(self.like, non_blocking=True)
        return rows.to(self.like)


@dataclass(frozen=True)
class ImaginedFrame:
    """One imagined frame of a batch of rollouts."""

    latent: Float[Tensor, "batch view channel h w"]
    features: Float[Tensor, "batch tokens dim"]
    """Input of a confidence head."""
    confidence: Float[Tensor, "batch view channel h w levels"] | None = None
    """P(error <= ε) from the network's own confidence head; None without one."""

    def each(self, change: Callable[[Tensor], Tensor]) -> ImaginedFrame:
        """The frame with all tensors changed."""
        own = None if self.confidence is None else change(self.confidence)
        return ImaginedFrame(change(self.latent), change(self.features), own)


@runtime_checkable
class Rollout(Protocol):
    """Batch of rollouts in progress: a network with its key/value cache."""

    def next_frame(self, frame: FrameInputs) -> ImaginedFrame:
        """Sample one frame from the noise in `frame` and append it to the past."""


def leading_actions(
    actions: Tensor, valid: Tensor, first: Float[Tensor, "batch action"] | None = None
) -> tuple[Tensor, Tensor]:
    """Shift actions from "row t follows frame t" to "row t leads to frame t".

    The new row 0 is `first`, or unknown.
    """
    front = torch.zeros_like(actions[:, :1]) if first is None else first[:, None]
    known = torch.full_like(valid[:, :1], first is not None)
    return torch.cat((front, actions), dim=1), torch.cat((known, valid), dim=1)


def previous_frames(latents: Float[Tensor, "batch time view channel h w"]) -> Tensor:
    """Previous frame of each frame, zeros for the first; missing views must be zero."""
    return torch.cat((torch.zeros_like(latents[:, :1]), latents[:, :-1]), dim=1)
