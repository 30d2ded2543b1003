"""One episode of a robot, in the units and shapes the rest of the package relies on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from worldmodel.datasets.actions import CANONICAL, ActionSpec


@runtime_checkable
class Frames(Protocol):
    """Frames of one camera, decoded only when indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        """RGB frames of a contiguous window."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One episode: frames per camera, actions and states, and what the source said.

    Row t of `actions` takes frame t to frame t + 1. Every array has one row per frame.
    """

    episode_id: str
    source: str
    """Where it came from: form and path, for people and provenance."""
    frames: Mapping[str, Frames]
    """Camera name -> lazy frames. All cameras have the same number of frames."""
    actions: Float32[np.ndarray, "time action"]
    """Canonical actions (see `CANONICAL`) unless `row_spec` says otherwise; where `action_valid` is
    false a row is all zero."""
    action_valid: Bool[np.ndarray, " time"]
    """False where the source has no action."""
    states: Float32[np.ndarray, "time 10"] | None
    """x y z (m), first two columns of the rotation matrix, gripper (1 = open); None if unknown."""
    action_spec: ActionSpec
    """What the source's own actions meant. `actions` are already canonical, as a rule."""
    instruction: str
    rate_hz: float
    success: bool | None
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Untouched source signals, by the source's own names (a simulator's per-step success, too)."""
    row_spec: ActionSpec | None = None
    """What the rows of `actions` mean where they have no canonical form (joint velocities, two
    arms); None: they are canonical."""
    notes: tuple[str, ...] = ()
    """What the reader left out of this episode, one sentence each."""

    def __post_init__(self) -> None:
        where = f"episode {self.episode_id} of {self.source}"
        for camera, frames in self.frames.items():
            if len(frames) != len(self):
                raise ValueError(
                    f"`frames` of camera {camera} hold {len(frames)} frames, but there are "
                    f"{len(self)} actions in {where}."
                )
        if self.actions.shape[1] != self.spec.dim:
            raise ValueError(
                f"`actions` must be rows of {self.spec.dim} numbers, got {self.actions.shape[1]} "
                f"in {where}."
            )
        if not np.isfinite(self.actions).all():
            raise ValueError(f"`actions` hold NaN or infinity in {where}.")

    @property
    def spec(self) -> ActionSpec:
        """What the rows of `actions` mean."""
        return self.row_spec or replace(CANONICAL, rate_hz=self.rate_hz)

    def __len__(self) -> int:
        return len(self.actions)


class ArrayFrames:
    """Frames of one camera, held in memory."""

    def __init__(self, pixels: UInt8[np.ndarray, "time height width 3"]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        return self.pixels[window]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]
