"""Rotation helpers of the arm and the camera."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def rotation_matrix(vector: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation by |vector| radians about `vector` (Rodrigues' formula).

    >>> rotation_matrix(np.array([0.0, 0.0, np.pi / 2])).round(6)[:, 0].tolist()
    [0.0, 1.0, 0.0]
    """
    angle = float(np.linalg.norm(vector))
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def yaw(rotation: Float[np.ndarray, "3 3"]) -> float:
    """Angle (rad) of the rotated x axis in the horizontal plane."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def rotation_6d(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 6"]:
    """First two columns of the matrix, concatenated."""
    return rotation[:, :2].T.reshape(6)


def camera_pose(
    target: Float[np.ndarray, " 3"], distance: float, azimuth: float, elevation: float, roll: float
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
    """Position and rotation (columns: right, up, backward) of a camera that looks at `target`.

    `distance` is in metres, angles are in degrees; azimuth 0 looks along -x.
    """
    azimuth, elevation, roll = np.deg2rad([azimuth, elevation, roll])
    horizontal = np.cos(elevation)
    backward = np.array(
        [horizontal * np.cos(azimuth), horizontal * np.sin(azimuth), np.sin(elevation)]
    )
    right = np.cross([0, 0, 1.0], backward)
    right /= np.linalg.norm(right)
    up = np.cross(backward, right)
    tilted_right = np.cos(roll) * right + np.sin(roll) * up
    tilted_up = np.cos(roll) * up - np.sin(roll) * right
    return target + distance * backward, np.stack([tilted_right, tilted_up, backward], axis=1)
