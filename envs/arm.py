"""Arm controller: commanded gripper pose, inverse kinematics and position servos."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from worldmodel.envs.geometry import rotation_matrix
from worldmodel.envs.scene import ARM_JOINTS

SUBSTEPS = 40
"""Physics steps of 5 ms per action: 5 Hz."""
RAMP = 28
"""Physics steps over which the servos' targets move to a new pose."""
DOWN = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
"""Rotation of the end effector when the gripper points straight down (its x axis to world -z)."""
WORKSPACE = np.array([[0.12, -0.32, 0.012], [0.46, 0.32, 0.35]])
"""Lowest and highest commanded gripper position, in metres."""
OPEN = 0.04
"""Travel of each finger (m) when the gripper is open."""
DAMPING = 1e-4
START_JOINTS = np.array([0, -0.5, 0.7, 0, 1.35, 0])
NUM_JOINTS = len(ARM_JOINTS)


class Arm:
    """Arm that follows commands; `position`, `rotation`, `opening` are the current command."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._site = model.site("end_effector").id
        self._scratch = mujoco.MjData(model)
        self._translation_jacobian = np.zeros((3, model.nv))
        self._rotation_jacobian = np.zeros((3, model.nv))

    def reset(self, data: Any, position: Float[np.ndarray, " 3"]) -> None:
        """Place the open gripper at `position`, pointing down."""
        self.position, self.rotation, self.opening = position.copy(), DOWN.copy(), 1.0
        self._scratch.qpos[:NUM_JOINTS] = START_JOINTS
        joints = self._solve(iterations=80)
        data.qpos[:NUM_JOINTS] = data.ctrl[:NUM_JOINTS] = joints
        data.qpos[NUM_JOINTS : NUM_JOINTS + 2] = data.ctrl[NUM_JOINTS:] = OPEN

    def step(self, data: Any, action: Float[np.ndarray, " 7"]) -> None:
        """Move the command by one canonical action and simulate 0.2 s."""
        self.position = np.clip(self.position + action[:3], *WORKSPACE)
        self.rotation = rotation_matrix(action[3:6]) @ self.rotation
        self.opening = float(action[6] > 0.5)
        data.ctrl[NUM_JOINTS:] = OPEN * self.opening
        start, goal = data.ctrl[:NUM_JOINTS].copy(), self._solve(iterations=6)
        for done in range(4, SUBSTEPS + 1, 4):
            data.ctrl[:NUM_JOINTS] = start + min(1.0, done / RAMP) * (goal - start)
            mujoco.mj_step(self.model, data, 4)

    def end_effector(self, data: Any) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
        """Measured position (m), and rotation relative to a gripper that points down."""
        rotation = data.site_xmat[self._site].reshape(3, 3) @ DOWN.T
        return data.site_xpos[self._site].copy(), rotation

    def _solve(self, iterations: int) -> Float[np.ndarray, " 6"]:
        """Joint angles for the command, by damped least squares from the last solution."""
        data, joints = self._scratch, self._scratch.qpos[:NUM_JOINTS]
        for _ in range(iterations):
            mujoco.mj_kinematics(self.model, data)
            mujoco.mj_comPos(self.model, data)
            error = self._pose_error()
            if np.abs(error).max() < 1e-4:
                break
            jacobian = self._jacobian()
            gram = jacobian @ jacobian.T + DAMPING * np.eye(6)
            joints += np.clip(jacobian.T @ np.linalg.solve(gram, error), -0.3, 0.3)
            np.clip(joints, *self.model.jnt_range[:NUM_JOINTS].T, out=joints)
        return joints.copy()

    def _pose_error(self) -> Float[np.ndarray, " 6"]:
        """Translation (m) and rotation vector (rad), world frame, from the pose to the command."""
        goal, pose, difference, rotation = np.zeros(4), np.zeros(4), np.zeros(4), np.zeros(3)
        mujoco.mju_mat2Quat(goal, self.rotation.reshape(9))
        mujoco.mju_mat2Quat(pose, self._scratch.site_xmat[self._site])
        mujoco.mju_negQuat(pose, pose.copy())
        mujoco.mju_mulQuat(difference, goal, pose)
        mujoco.mju_quat2Vel(rotation, difference, 1.0)
        return np.concatenate([self.position - self._scratch.site_xpos[self._site], rotation])

    def _jacobian(self) -> Float[np.ndarray, "6 6"]:
        mujoco.mj_jacSite(
            self.model,
            self._scratch,
            self._translation_jacobian,
            self._rotation_jacobian,
            self._site,
        )
        both = np.vstack([self._translation_jacobian, self._rotation_jacobian])
        return both[:, :NUM_JOINTS]
