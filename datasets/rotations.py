"""Conversions between rotation formats; angles are never subtracted, so wrapping is safe."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation


def euler_to_rotation_vector(euler: Float[np.ndarray, "time 3"]) -> Float[np.ndarray, "time 3"]:
    """Convert extrinsic xyz Euler angles (roll, pitch, yaw; rad) to rotation vectors (rad).

    >>> euler_to_rotation_vector(np.array([[0.0, 0.0, 0.5]]))
    array([[0. , 0. , 0.5]])
    """
    return Rotation.from_euler("xyz", euler).as_rotvec()


def rotation_vector_to_euler(vector: Float[np.ndarray, "time 3"]) -> Float[np.ndarray, "time 3"]:
    """The inverse of `euler_to_rotation_vector`, for pitch inside (-π/2, π/2)."""
    return Rotation.from_rotvec(vector).as_euler("xyz")


def rotation_to_6d(rotation: Rotation) -> Float[np.ndarray, "time 6"]:
    """First column of each matrix, then the second: continuous, unlike angles (Zhou et al. 2019).

    >>> rotation_to_6d(Rotation.identity(1))
    array([[1., 0., 0., 0., 1., 0.]])
    """
    matrix = rotation.as_matrix()
    return np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], axis=1)


def rotation_from_6d(columns: Float[np.ndarray, "time 6"]) -> Rotation:
    """The inverse of `rotation_to_6d` (Gram–Schmidt, so rounding errors are corrected)."""
    first = columns[:, :3] / np.linalg.norm(columns[:, :3], axis=1, keepdims=True)
    second = columns[:, 3:] - (first * columns[:, 3:]).sum(axis=1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    return Rotation.from_matrix(np.stack([first, second, np.cross(first, second)], axis=2))


def compose_rotation_vectors(
    vectors: Float[np.ndarray, "chunk row 3"],
) -> Float[np.ndarray, "chunk 3"]:
    """Compose the rotations of each chunk in order, all about axes of the base frame (rad).

    >>> compose_rotation_vectors(np.array([[[0.0, 0.0, 0.5], [0.0, 0.0, 0.25]]]))
    array([[0.  , 0.  , 0.75]])
    """
    total = Rotation.identity(len(vectors))
    for row in range(vectors.shape[1]):
        total = Rotation.from_rotvec(vectors[:, row]) * total
    return total.as_rotvec()


def step_rotation_vectors(rotation: Rotation) -> Float[np.ndarray, "steps 3"]:
    """Rotation from each pose to the next, base frame: rotation vector of R[t+1] R[t]^T (rad)."""
    return (rotation[1:] * rotation[:-1].inv()).as_rotvec()
