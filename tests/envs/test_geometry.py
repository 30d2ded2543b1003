"""Rotations against SciPy, and the camera's pose against its definition."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldmodel.datasets.rotations import rotation_to_6d
from worldmodel.envs.geometry import camera_pose, rotation_6d, rotation_matrix, yaw


@pytest.mark.parametrize("vector", [[0.0, 0.0, 0.0], [0.3, -1.2, 0.5], [0.0, 0.0, 3.1]])
def test_rotation_matrix_equals_scipy(vector: list[float]) -> None:
    expected = Rotation.from_rotvec(vector).as_matrix()
    assert rotation_matrix(np.array(vector)) == pytest.approx(expected, abs=1e-12)


def test_yaw_and_6d_of_a_turn_about_z() -> None:
    turn = Rotation.from_euler("z", 0.4).as_matrix()
    assert yaw(turn) == pytest.approx(0.4)
    assert rotation_6d(turn) == pytest.approx(
        [np.cos(0.4), np.sin(0.4), 0, -np.sin(0.4), np.cos(0.4), 0]
    )


def test_6d_has_the_order_of_recorded_states() -> None:
    rotation = Rotation.from_rotvec([0.3, -1.2, 0.5])
    expected = rotation_to_6d(Rotation.concatenate([rotation]))[0]
    assert rotation_6d(rotation.as_matrix()) == pytest.approx(expected)


def test_camera_at_azimuth_zero_looks_along_minus_x() -> None:
    position, rotation = camera_pose(np.zeros(3), 2.0, 0.0, 0.0, 0.0)
    assert position == pytest.approx([2, 0, 0])
    assert rotation == pytest.approx(np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), abs=1e-12)


def test_camera_always_looks_at_its_target() -> None:
    target = np.array([0.1, 0.2, 0.3])
    position, rotation = camera_pose(target, 0.7, 30.0, 50.0, 10.0)
    assert rotation.T @ (target - position) == pytest.approx([0, 0, -0.7])
    assert rotation.T @ rotation == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
