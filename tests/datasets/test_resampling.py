"""Fewer frames per second: which are kept, and what becomes of the actions between them."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldmodel.datasets.actions import CANONICAL, ActionSpec, sum_actions
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.poses import AchievedActions
from worldmodel.datasets.resampling import EveryNthFrame, resample, resampled
from worldmodel.datasets.trajectory import Trajectory

Make = Callable[..., Trajectory]
FAST = replace(CANONICAL, rate_hz=15.0)
TWO_ARMS = ActionSpec(
    name="two arms", space="joint_velocity", frame="base", rotation="none",
    gripper="open_is_one", dim=14, scale=(1.0,) * 14, rate_hz=15.0,
)  # fmt: skip


def random_actions(num_rows: int, seed: int = 0) -> np.ndarray:
    """Canonical rows whose turns are far from small, so that their order matters."""
    random = np.random.default_rng(seed)
    actions = random.normal(0, 0.5, (num_rows, 7))
    actions[:, 6] = random.uniform(0, 1, num_rows)
    return actions.astype(np.float32)


@pytest.fixture
def fast(make_trajectory: Make) -> Callable[..., Trajectory]:
    """`fast(length)`: an episode at 15 Hz whose actions are all known but the last."""

    def make(length: int, **changes: object) -> Trajectory:
        episode, random = make_trajectory("a"), np.random.default_rng(0)
        frames = type(episode.frames["front"])(
            random.integers(256, size=(length, 8, 8, 3), dtype=np.uint8)
        )
        actions = random_actions(length)
        actions[-1] = 0
        own = {
            "frames": {"front": frames},
            "actions": actions,
            "action_valid": np.arange(length) < length - 1,
            "states": random.normal(size=(length, 10)).astype(np.float32),
            "signals": {},
            "rate_hz": 15.0,
        }
        return replace(episode, **(own | changes))

    return make


def apply(poses: tuple[np.ndarray, Rotation], action: np.ndarray) -> tuple[np.ndarray, Rotation]:
    """The pose after an action: moved and turned in the base frame."""
    position, rotation = poses
    return position + action[:3], Rotation.from_rotvec(action[3:6]) * rotation


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_a_sum_leads_where_its_rows_lead(rows: int) -> None:
    actions = random_actions(12)
    summed = sum_actions(actions.reshape(-1, rows, 7))
    assert summed.shape == (12 // rows, 7)
    start = np.array([0.1, -0.2, 0.3]), Rotation.from_euler("xyz", [0.4, 1.0, -2.0])
    for chunk, whole in zip(actions.reshape(-1, rows, 7), summed, strict=True):
        end = start
        for row in chunk:
            end = apply(end, row)
        position, rotation = apply(start, whole)
        np.testing.assert_allclose(position, end[0], atol=1e-5)
        assert (rotation * end[1].inv()).magnitude() < 1e-5
        assert whole[6] == chunk[-1, 6]


def test_sums_of_sums_are_sums() -> None:
    actions = random_actions(24)
    once = sum_actions(actions.reshape(-1, 6, 7))
    for inner, outer in ((2, 3), (3, 2)):
        twice = sum_actions(sum_actions(actions.reshape(-1, inner, 7)).reshape(-1, outer, 7))
        np.testing.assert_allclose(twice, once, atol=1e-5)
    backwards = sum_actions(actions.reshape(-1, 6, 7)[:, ::-1])
    assert np.abs(backwards[:, 3:6] - once[:, 3:6]).max() > 0.1  # rotations do not commute


def test_real_motion_at_15_hz_sums_to_that_at_5_hz(real_data: Path) -> None:
    """DROID's annotations hold every raw row; the states of the videos are every third of them."""
    for path in sorted((real_data / "droid" / "annotation").rglob("*.json")):
        stored = json.loads(path.read_text())
        gripper = np.array(stored["observation.state.gripper_position"])
        poses = np.column_stack([stored["observation.state.cartesian_position"], gripper])
        achieved = AchievedActions("closed_is_one")
        fine, _ = achieved(poses)
        coarse, valid = achieved(np.array(stored["states"]))
        chunks = fine[: 3 * (len(fine) // 3)].reshape(-1, 3, 7)
        summed = sum_actions(chunks)[: valid.sum()]
        known = slice(len(summed))
        np.testing.assert_allclose(summed[:, :3], coarse[known, :3], atol=2e-5)
        turns = (
            Rotation.from_rotvec(summed[:, 3:6]) * Rotation.from_rotvec(coarse[known, 3:6]).inv()
        )
        assert turns.magnitude().max() < 2e-4
        np.testing.assert_allclose(summed[:, 6], coarse[known, 6], atol=1e-5)


def test_every_third_frame_and_the_motion_between(fast: Make) -> None:
    episode = fast(11, signals={"success": np.arange(11) > 4, "raw": np.arange(3)})
    slow = resample(episode, CANONICAL)
    assert len(slow) == 4
    assert (slow.rate_hz, slow.spec) == (5.0, CANONICAL)
    for name, frames in episode.frames.items():
        np.testing.assert_array_equal(slow.frames[name][:], frames[:][[0, 3, 6, 9]])
    np.testing.assert_array_equal(slow.states, episode.states[[0, 3, 6, 9]])
    np.testing.assert_array_equal(
        slow.actions[:3], sum_actions(episode.actions[:9].reshape(3, 3, 7))
    )
    assert slow.action_valid.tolist() == [
        True,
        True,
        True,
        False,
    ]  # one row is missing for the last
    assert (slow.actions[3] == 0).all()
    assert slow.signals["success"].tolist() == [False, False, True, True]
    assert slow.signals["raw"].tolist() == [0, 1, 2]


def test_one_unknown_row_makes_an_action_unknown(fast: Make) -> None:
    episode = fast(10)
    valid = episode.action_valid.copy()
    valid[4] = False
    slow = resample(replace(episode, action_valid=valid), CANONICAL)
    assert slow.action_valid.tolist() == [True, False, True, False]
    assert (slow.actions[1] == 0).all()


def test_rows_lie_side_by_side(fast: Make) -> None:
    episode = fast(10)
    chunked = resample(episode, FAST.side_by_side(3))
    assert (chunked.spec.dim, chunked.rate_hz, len(chunked)) == (21, 5.0, 4)
    np.testing.assert_array_equal(chunked.actions[:3].reshape(-1, 7), episode.actions[:9])
    assert FAST.side_by_side(3).one_row == FAST


def test_rows_are_summed_until_as_many_are_left_as_fit(fast: Make) -> None:
    """30 Hz for a model of two rows per frame at 5 Hz: three rows make one of the two."""
    episode = replace(fast(19), rate_hz=30.0)
    spec = replace(CANONICAL, rate_hz=10.0).side_by_side(2)
    chunked = resample(episode, spec)
    expected = sum_actions(episode.actions[:18].reshape(6, 3, 7)).reshape(3, 14)
    np.testing.assert_array_equal(chunked.actions[:3], expected)
    assert len(chunked) == 4


def test_columns_are_converted_after_they_are_summed(fast: Make) -> None:
    millimetres = replace(CANONICAL, scale=(0.001,) * 3 + (1.0,) * 4)
    episode = fast(10)
    plain, scaled = (resample(episode, spec) for spec in (CANONICAL, millimetres))
    np.testing.assert_allclose(scaled.actions[:3, :3], 1000 * plain.actions[:3, :3], rtol=1e-5)
    np.testing.assert_allclose(scaled.actions[:, 3:], plain.actions[:, 3:], rtol=1e-5)


def test_what_has_no_sum_can_still_lie_side_by_side(fast: Make) -> None:
    actions = np.random.default_rng(0).normal(size=(9, 14)).astype(np.float32)
    episode = fast(9)
    episode = replace(episode, actions=actions, row_spec=TWO_ARMS)
    message = 'Only pose changes in the base frame can be composed over 3 rows, .*"encode"'
    with pytest.raises(ValueError, match=message):
        resample(episode, replace(TWO_ARMS, rate_hz=5.0))
    chunked = resample(episode, TWO_ARMS.side_by_side(3))
    np.testing.assert_array_equal(chunked.actions[:2].reshape(6, 14), actions[:6])


@pytest.mark.parametrize(("rate_hz", "rows"), [(10.0, 1), (30.0, 1), (10.0, 2)])
def test_rates_that_do_not_divide_are_refused(fast: Make, rate_hz: float, rows: int) -> None:
    spec = replace(CANONICAL, rate_hz=rate_hz).side_by_side(rows)
    expected = r"No lossless .*rate_hz=15\.0.* to .*: a model needs data at its own rate or a whole"
    with pytest.raises(ValueError, match=expected):
        resample(fast(10), spec)


def test_frames_are_sliced_as_an_array_is(fast: Make) -> None:
    frames = next(iter(fast(11).frames.values()))
    kept = EveryNthFrame(frames, 3)
    array = frames[:][::3]
    assert (len(kept), kept.size) == (4, array.shape[1:3])
    for window in (slice(None), slice(1, 3), slice(2, 9), slice(3, 3), slice(-2, None)):
        np.testing.assert_array_equal(kept[window], array[window])


def test_a_whole_data_set_at_a_lower_rate(tmp_path: Path, fast: Make) -> None:
    store = ClipStore.create(
        tmp_path / "s.zarr", cameras=("front",), action_spec=CANONICAL, rate_hz=15.0, encoding="raw"
    )
    store.add(fast(11))
    data = resampled(open_dataset(store.path), CANONICAL)
    assert (data.rate_hz, data.path, data.cameras) == (5.0, store.path, ("front",))
    assert data.summary("a").num_frames == len(data.episode("a")) == 4
    assert resampled(store, FAST) is store
    with pytest.raises(ValueError, match="No lossless conversion"):
        resampled(store, replace(CANONICAL, rate_hz=4.0))


def test_rows_of_their_own_meaning_survive_the_store(tmp_path: Path, fast: Make) -> None:
    actions = np.random.default_rng(0).normal(size=(5, 14)).astype(np.float32)
    episode = replace(fast(5), actions=actions, row_spec=TWO_ARMS)
    store = ClipStore.create(
        tmp_path / "s.zarr", cameras=("front",), action_spec=CANONICAL, rate_hz=15.0,
        encoding="raw", row_spec=TWO_ARMS,
    )  # fmt: skip
    store.add(episode)
    again = ClipStore.open(store.path)
    assert again.spec == again.episode("a").spec == TWO_ARMS
    np.testing.assert_array_equal(again.episode("a").actions, actions)
    with pytest.raises(ValueError, match=re.escape("has the `row_spec` None, but the store has")):
        store.add(replace(fast(5), episode_id="b"))
    with pytest.raises(
        ValueError, match="`actions` must be rows of 7 numbers, got 14 in episode a"
    ):
        replace(episode, row_spec=None)
