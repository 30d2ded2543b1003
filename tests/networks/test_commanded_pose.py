"""The commanded pose: integration of canonical actions, and what a network reads of it."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from worldmodel.datasets.rotations import rotation_to_6d
from worldmodel.networks.commanded_pose import STATE, CommandedPose, pose_features


def random_states(count: int) -> Tensor:
    rng = np.random.default_rng(0)
    turns = rotation_to_6d(Rotation.random(count, random_state=1))
    rows = np.concatenate([rng.normal(size=(count, 3)), turns, rng.random((count, 1))], 1)
    return torch.tensor(rows, dtype=torch.float32)


def random_actions(batch: int, rows: int) -> Tensor:
    return 0.3 * torch.randn((batch, rows, 7), generator=torch.Generator().manual_seed(2))


def test_poses_are_those_of_the_rotations_and_sums() -> None:
    """SciPy multiplies the rotations; the first axis of time is the state itself."""
    states, actions = random_states(4), random_actions(4, 6)
    poses = CommandedPose().track(states, actions, torch.ones(4, 6, dtype=torch.bool))
    for item in range(4):
        first = states[item, 3:9].reshape(2, 3).numpy()
        columns = np.stack([*first, np.cross(*first)], 1)
        turn = Rotation.identity()
        for row in range(6):
            turn = Rotation.from_rotvec(actions[item, row, 3:6].numpy()) * turn
            expected = (turn.as_matrix() @ columns)[:, :2].T.reshape(-1)
            np.testing.assert_allclose(poses[item, row + 1, 3:9], expected, atol=1e-5)
    moved = states[:, None, :3] + actions[..., :3].cumsum(1)
    torch.testing.assert_close(poses[:, 1:, :3], moved)
    assert torch.equal(poses[:, 1:, 9], actions[..., 6])
    assert torch.equal(poses[:, 0, :STATE], states)


def test_a_known_arm_stays_in_the_workspace_of_the_data() -> None:
    pose = CommandedPose().fit(random_states(50))
    start = random_states(1)
    up = torch.tensor([[[0, 0, 5.0, 0, 0, 0, 1]] * 2])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert pose.track(start, up, valid)[0, -1, 2] == pose.high[2]
    assert pose.track(None, up, valid)[0, -1, 2] == pytest.approx(pose.mean[2].item() + 10)


def test_a_start_outside_the_workspace_is_not_moved() -> None:
    pose = CommandedPose().fit(random_states(50))
    start = random_states(1)
    start[0, 0] = 99.0
    none = torch.zeros(1, 1, 7)
    assert pose.track(start, none, torch.ones(1, 1, dtype=torch.bool))[0, -1, 0] == 99


def test_unknown_actions_do_not_move_the_arm() -> None:
    states, actions = random_states(2), random_actions(2, 3)
    poses = CommandedPose().track(states, actions, torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(poses[:, -1, :STATE], states)


def test_several_commands_in_one_action_count_one_after_the_other() -> None:
    states, actions = random_states(3), random_actions(3, 4)
    apart = CommandedPose().track(states, actions, torch.ones(3, 4, dtype=torch.bool))
    joined = actions.reshape(3, 2, 14)
    together = CommandedPose().track(states, joined, torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(together, apart[:, ::2])


def test_features_say_whether_the_state_is_known() -> None:
    """An unknown state is the mean one, so that displacements remain."""
    pose = CommandedPose().fit(random_states(50))
    states = random_states(2)
    states[1] = math.nan
    actions, valid = random_actions(2, 3), torch.ones(2, 3, dtype=torch.bool)
    features = pose_features(pose, states, actions, valid)
    assert features.shape == (2, 4, CommandedPose.num_features)
    assert features.isfinite().all()
    assert features[:, :, -1].tolist() == [[1.0] * 4, [0.0] * 4]
    none = pose_features(pose, None, actions, valid)
    torch.testing.assert_close(none[1], features[1])
    assert features[1, 0, :STATE].abs().max() < 1e-6


def test_states_to_fit_must_be_finite() -> None:
    with pytest.raises(ValueError, match="`states` must be finite"):
        CommandedPose().fit(torch.full((2, STATE), math.nan))
