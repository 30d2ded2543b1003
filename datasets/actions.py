"""What an action means: the declared specification every reader, checkpoint and policy carries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """The meaning of one row of an action array.

    Two specs are interchangeable only if every field except `name` is equal.
    """

    name: str
    """Name of the convention, for people."""
    space: str
    """"delta_pose" (pose change), "absolute_pose" (target pose) or "joint_velocity"."""
    frame: str
    """"base" (robot base frame) or "end_effector"."""
    rotation: str
    """"rotation_vector" (rad), "euler_xyz" (extrinsic, rad) or "none"."""
    gripper: str
    """"open_is_one" (1 = open), "closed_is_one" (1 = closed) or "open_is_minus_one" (-1 = open, +1 = closed)."""
    dim: int
    """Width of one action."""
    scale: tuple[float, ...]
    """Multiply column i of a stored action by scale[i] to get metres, radians and gripper units."""
    rate_hz: float
    """Actions per second."""

    def __post_init__(self) -> None:
        if len(self.scale) != self.dim:
            raise ValueError(f"`scale` needs {self.dim} entries, got {len(self.scale)}.")

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**asdict(self), "scale": list(self.scale)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ActionSpec:
        """The inverse of `as_dict`."""
        return cls(**{**fields, "scale": tuple(fields["scale"])})


CANONICAL = ActionSpec(
    name="canonical",
    space="delta_pose",
    frame="base",
    rotation="rotation_vector",
    gripper="open_is_one",
    dim=7,
    scale=(1.0,) * 7,
    rate_hz=5.0,
)
"""Δx Δy Δz (m), rotation vector (rad), gripper opening in [0, 1] with 1 = open, base frame, 5 Hz."""
