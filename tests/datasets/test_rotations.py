"""Rotations against matrices written out by hand."""

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from worldmodel.datasets.rotations import (
    euler_to_rotation_vector,
    rotation_from_6d,
    rotation_to_6d,
    rotation_vector_to_euler,
    step_rotation_vectors,
)


def euler_matrix(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rotation about the fixed x axis, then fixed y, then fixed z."""
    (cr, cp, cy), (sr, sp, sy) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def vector_matrix(vector: np.ndarray) -> np.ndarray:
    """The matrix of a rotation vector, as the exponential of its cross product."""
    x, y, z = vector
    return expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))


def random_euler(num: int) -> np.ndarray:
    return np.random.default_rng(0).uniform([-np.pi, -1.5, -np.pi], [np.pi, 1.5, np.pi], (num, 3))


def test_euler_angles_and_rotation_vectors_are_the_same_matrix() -> None:
    for euler in random_euler(50):
        vector = euler_to_rotation_vector(euler[None])[0]
        np.testing.assert_allclose(vector_matrix(vector), euler_matrix(*euler), atol=1e-9)


def test_euler_angles_survive_the_round_trip_through_rotation_vectors() -> None:
    euler = random_euler(50)
    np.testing.assert_allclose(rotation_vector_to_euler(euler_to_rotation_vector(euler)), euler)


def test_6d_is_the_first_column_and_then_the_second() -> None:
    quarter_turn_about_z = Rotation.from_matrix([[[0, -1, 0], [1, 0, 0], [0, 0, 1]]])
    np.testing.assert_allclose(
        rotation_to_6d(quarter_turn_about_z), [[0, 1, 0, -1, 0, 0]], atol=1e-15
    )


def test_6d_survives_rounding_and_scale() -> None:
    rotation = Rotation.from_euler("xyz", random_euler(50))
    rounded = 1.7 * rotation_to_6d(rotation).astype(np.float32)
    gap = (rotation_from_6d(rounded.astype(np.float64)) * rotation.inv()).magnitude()
    assert gap.max() < 1e-6


def test_a_step_over_plus_minus_pi_is_small() -> None:
    rolls = Rotation.from_euler("xyz", [[3.13, 0.0, 0.0], [-3.13, 0.0, 0.0]])
    expected = 2 * np.pi - 6.26
    np.testing.assert_allclose(step_rotation_vectors(rolls), [[expected, 0, 0]], atol=1e-12)


def test_a_step_is_taken_in_the_base_frame() -> None:
    start = euler_matrix(np.pi / 2, 0.3, 0.0)
    rotations = Rotation.from_matrix(np.stack([start, euler_matrix(0, 0, 0.1) @ start]))
    assert step_rotation_vectors(rotations)[0] == pytest.approx([0, 0, 0.1], abs=1e-12)
