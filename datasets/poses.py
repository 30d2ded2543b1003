"""Conversion between absolute gripper poses and canonical states and actions.

The action of a source of absolute poses is the achieved motion from the pose of frame t to the pose
of frame t + 1. DROID's commanded targets lead the state by more than four raw frames (over one step
at 5 Hz), so no frame shows the motion "target minus state".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.spatial.transform import Rotation

from worldmodel.datasets.actions import canonical_gripper, source_gripper
from worldmodel.datasets.rotations import rotation_from_6d, rotation_to_6d, step_rotation_vectors


@dataclass(frozen=True)
class PoseStates:
    """Source rows x y z (m), roll pitch yaw (extrinsic xyz, rad), gripper <-> canonical states."""

    gripper: str
    """Gripper convention of the source, as in `ActionSpec`."""

    def __call__(self, poses: Float[np.ndarray, "time 7"]) -> Float32[np.ndarray, "time 10"]:
        """Canonical states; a gripper value slightly outside [0, 1] (Bridge: 1.007) is kept."""
        rotation = rotation_to_6d(Rotation.from_euler("xyz", poses[:, 3:6]))
        opening = canonical_gripper(poses[:, 6:], self.gripper)
        return np.concatenate([poses[:, :3], rotation, opening], axis=1).astype(np.float32)

    def inverse(self, states: Float[np.ndarray, "time 10"]) -> Float32[np.ndarray, "time 7"]:
        """Source rows, with angles in [-π, π]; at a pitch of ±π/2, roll and yaw are ambiguous."""
        euler = rotation_from_6d(states[:, 3:9]).as_euler("xyz")
        gripper = source_gripper(states[:, 9:], self.gripper)
        return np.concatenate([states[:, :3], euler, gripper], axis=1).astype(np.float32)


@dataclass(frozen=True)
class AchievedActions:
    """Source poses <-> canonical actions: row t is the motion from frame t to t + 1, base frame."""

    gripper: str
    """Gripper convention of the source, as in `ActionSpec`."""

    def __call__(
        self, poses: Float[np.ndarray, "time 7"]
    ) -> tuple[Float32[np.ndarray, "time 7"], Bool[np.ndarray, " time"]]:
        """Actions and their validity mask; the last row is invalid and zero."""
        actions = np.zeros((len(poses), 7), np.float32)
        actions[:-1, :3] = np.diff(poses[:, :3], axis=0)
        actions[:-1, 3:6] = step_rotation_vectors(Rotation.from_euler("xyz", poses[:, 3:6]))
        actions[:-1, 6:] = canonical_gripper(poses[1:, 6:], self.gripper)
        return actions, np.arange(len(poses)) < len(poses) - 1

    def inverse(
        self, actions: Float[np.ndarray, "time 7"], start: Float[np.ndarray, " 7"]
    ) -> Float[np.ndarray, "time 7"]:
        """Integrate all but the last action from the source row `start`."""
        poses = np.empty((len(actions), 7))
        poses[0] = start
        poses[1:, :3] = start[:3] + np.cumsum(actions[:-1, :3], axis=0, dtype=np.float64)
        rotation = Rotation.from_euler("xyz", start[3:6])
        for row, turn in enumerate(Rotation.from_rotvec(actions[:-1, 3:6]), start=1):
            rotation = turn * rotation
            poses[row, 3:6] = rotation.as_euler("xyz")
        poses[1:, 6:] = source_gripper(actions[:-1, 6:], self.gripper)
        return poses
