"""Absolute poses to canonical states and actions, and back."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldmodel.datasets.poses import AchievedActions, PoseStates


def same_pose(left: np.ndarray, right: np.ndarray, atol: float) -> bool:
    """Whether two rows of pose and gripper are the same place, angles taken as rotations."""
    straight = np.abs(left[:, [0, 1, 2, 6]] - right[:, [0, 1, 2, 6]]).max()
    turns = [Rotation.from_euler("xyz", rows[:, 3:6]) for rows in (left, right)]
    return max(straight, (turns[0] * turns[1].inv()).magnitude().max()) < atol


def test_the_fixture_wraps_around_pi(poses: np.ndarray) -> None:
    assert np.abs(np.diff(poses[:, 3])).max() > 6


def test_a_state_by_hand() -> None:
    poses = np.array([[1, 2, 3, 0, 0, np.pi / 2, 0.25]])
    expected = [[1, 2, 3, 0, 1, 0, -1, 0, 0, 0.75]]
    np.testing.assert_allclose(PoseStates("closed_is_one")(poses), expected, atol=1e-7)


@pytest.mark.parametrize("gripper", ["open_is_one", "closed_is_one"])
def test_states_survive_the_round_trip(poses: np.ndarray, gripper: str) -> None:
    conversion = PoseStates(gripper)
    assert same_pose(conversion.inverse(conversion(poses).astype(np.float64)), poses, atol=1e-6)


def test_an_action_by_hand() -> None:
    poses = np.array([[0, 0, 0, 3.13, 0, 0, 0.0], [0.1, 0, -0.2, -3.13, 0, 0, 1.0]])
    actions, valid = AchievedActions("closed_is_one")(poses)
    np.testing.assert_allclose(actions[0], [0.1, 0, -0.2, 2 * np.pi - 6.26, 0, 0, 0], atol=1e-6)
    assert not actions[1].any()
    assert valid.tolist() == [True, False]


def test_actions_lead_back_to_the_poses(poses: np.ndarray) -> None:
    conversion = AchievedActions("closed_is_one")
    actions, _ = conversion(poses)
    assert same_pose(conversion.inverse(actions.astype(np.float64), poses[0]), poses, atol=1e-5)


def test_an_episode_of_one_frame_has_no_valid_action() -> None:
    actions, valid = AchievedActions("open_is_one")(np.zeros((1, 7)))
    assert actions.shape == (1, 7)
    assert not valid.any()
