"""Robot episode in the package's canonical units and shapes."""

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
    """One episode: frames per camera, actions, states and source signals.

    Row t of `actions` takes frame t to frame t + 1. Every array has one row per frame.
    """

    episode_id: str
    source: str
    """Form and path of the source, for provenance."""
    frames: Mapping[str, Frames]
    """Camera name -> lazy frames. All cameras have the same number of frames."""
    actions: Float32[np.ndarray, "time action"]
    """Canonical actions (see `CANONICAL`) unless `row_spec` is set; invalid rows are zero."""
    action_valid: Bool[np.ndarray, " time"]
    """False where the source has no action."""
    states: Float32[np.ndarray, "time 10"] | None
    """x y z (m), first two columns of the rotation matrix, gripper (1 = open); None if unknown."""
    action_spec: ActionSpec
    """Meaning of the source's actions; `actions` are usually canonical already."""
    instruction: str
    rate_hz: float
    success: bool | None
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Unchanged source signals by their original names, such as a simulator's success per step."""
    row_spec: ActionSpec | None = None
    """Meaning of the rows of `actions` if they have no canonical form (joint velocities, two
    arms); None: canonical."""
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
        """Meaning of the rows of `actions`."""
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
