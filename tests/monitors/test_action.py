"""Action channel: unfamiliar actions score high in any units; out-of-range axes are named."""

import numpy as np
import pytest

from worldmodel.monitors.channels.action import RECENT, ActionChannel, recent_actions

UNITS = np.array([0.01, 0.01, 0.01, 0.2, 0.2, 0.2, 0.5])


def smooth(rng: np.random.Generator, episodes: int, time: int = 30) -> np.ndarray:
    """Actions that change slowly from step to step, [episode, time, 7]."""
    phase = rng.uniform(0, 2 * np.pi, (episodes, 1, 7))
    return UNITS * np.sin(phase + 0.3 * np.arange(time)[None, :, None])


def rows(actions: np.ndarray) -> np.ndarray:
    return np.concatenate([recent_actions(episode) for episode in actions])


@pytest.fixture(scope="module")
def channel() -> ActionChannel:
    return ActionChannel().fit(rows(smooth(np.random.default_rng(0), 200)))


def test_recent_actions_end_with_the_action_itself() -> None:
    actions = np.arange(5.0)[:, None]
    recent = recent_actions(actions)
    assert recent.shape == (5, RECENT, 1)
    assert np.array_equal(recent[:, -1], actions)
    assert np.array_equal(recent[1:, -2], actions[:-1])
    assert recent[0, 0] == recent[0, -1]


def test_scores_do_not_depend_on_units(channel: ActionChannel) -> None:
    usual = recent_actions(smooth(np.random.default_rng(1), 1)[0])[5:6]
    scores = []
    for axis in range(7):
        odd = usual.copy()
        odd[..., axis] += 8 * UNITS[axis]
        scores.append(channel.score(odd)[0])
    assert min(scores) > 3 * channel.score(usual)[0]
    assert max(scores) < 2 * min(scores)


def test_a_jump_between_familiar_actions_is_unfamiliar(channel: ActionChannel) -> None:
    calm = smooth(np.random.default_rng(2), 20)
    jumping = calm.copy()
    jumping[:, 1::2] *= -1
    assert np.median(channel.score(rows(jumping))) > 2 * np.median(channel.score(rows(calm)))


def test_constant_axis_tolerates_noise_but_not_motion() -> None:
    still = smooth(np.random.default_rng(3), 100)
    still[..., 4] = 0
    channel = ActionChannel().fit(rows(still))
    usual = recent_actions(still[0])[5:6]
    trembling, moving = usual.copy(), usual.copy()
    trembling[..., 4], moving[..., 4] = 1e-4, 0.2
    assert channel.score(trembling)[0] < channel.score(usual)[0] + 0.05
    assert channel.score(moving)[0] > channel.score(usual)[0] + 5


def test_axes_out_of_range_are_named(channel: ActionChannel) -> None:
    action = np.zeros(7)
    assert channel.out_of_range(action) == []
    action[[0, 6]] = 1.2 * UNITS[[0, 6]]
    assert channel.out_of_range(action) == [0, 6]


def test_unknown_actions_have_no_score(channel: ActionChannel) -> None:
    actions = smooth(np.random.default_rng(4), 1)[0]
    actions[3] = np.nan
    unknown = np.isnan(channel.score(recent_actions(actions)))
    assert np.flatnonzero(unknown).tolist() == [3, 4]


def test_saved_and_loaded_scores_are_equal(channel: ActionChannel) -> None:
    again = ActionChannel.from_arrays(channel.arrays())
    actions = rows(smooth(np.random.default_rng(5), 3))
    assert np.array_equal(again.score(actions), channel.score(actions))


def test_wrong_shapes_and_too_few_actions(channel: ActionChannel) -> None:
    with pytest.raises(ValueError, match=r"`actions` must have the shape \(2, 7\) per frame"):
        channel.score(np.zeros((1, RECENT, 6)))
    with pytest.raises(ValueError, match="at least 2 rows without NaN, got 0"):
        ActionChannel().fit(np.full((5, RECENT, 7), np.nan))
