"""A recorded episode: rows, alignment, faults and provenance."""

from collections.abc import Callable
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.envs.episode_recorder import Shift, collect_episode
from worldmodel.envs.policies import POLICIES
from worldmodel.envs.tabletop import TabletopEnv

Tabletop = Callable[[str], TabletopEnv]


def pixels(trajectory: Trajectory) -> np.ndarray:
    return trajectory.frames["image"][:]


def test_action_row_t_takes_frame_t_to_the_next(tabletop: Tabletop) -> None:
    env = tabletop("pick_place")
    episode = collect_episode(env, "noise_010", seed=5, num_steps=8)
    observation, _ = env.reset(seed=5)
    for t in range(8):
        assert np.array_equal(observation["image"], pixels(episode)[t])
        assert np.array_equal(observation["state"], episode.states[t])
        assert env.simulation.object_pose() == pytest.approx(episode.signals["object_pose"][t])
        if t < 7:
            observation, *_ = env.step(episode.actions[t])


def test_only_the_last_action_is_invalid_and_zero(tabletop: Tabletop) -> None:
    episode = collect_episode(tabletop("pick_place"), "clean", seed=1, num_steps=6)
    assert episode.action_valid.tolist() == [True] * 5 + [False]
    assert not episode.actions[-1].any()
    assert np.abs(episode.actions[:5, :3]).max() > 0.02
    assert episode.action_spec == CANONICAL
    assert episode.rate_hz == 5
    assert len(episode) == len(episode.frames["image"]) == 6


def test_recording_goes_on_after_success(tabletop: Tabletop) -> None:
    episode = collect_episode(tabletop("lift"), "clean", seed=0, num_steps=16)
    success = episode.signals["success"]
    assert success.dtype == bool
    assert not success[:5].any()
    assert success[-1]
    assert episode.success is True
    assert collect_episode(tabletop("lift"), "frozen", seed=0, num_steps=3).success is False


def test_an_episode_depends_on_its_seed_only(tabletop: Tabletop) -> None:
    env = tabletop("pick_place")
    first = collect_episode(env, "mixed", seed=3, num_steps=6)
    collect_episode(env, "random", seed=9, shift=Shift(factor="object", severity=3), num_steps=6)
    again = collect_episode(env, "mixed", seed=3, num_steps=6)
    other = collect_episode(env, "mixed", seed=4, num_steps=6)
    assert np.array_equal(pixels(first), pixels(again))
    assert np.array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions)


def test_a_fault_changes_the_actions_and_keeps_the_intention(tabletop: Tabletop) -> None:
    env = tabletop("pick_place")
    nominal = collect_episode(env, "clean", seed=2, num_steps=3)
    faulty = collect_episode(
        env, "clean", seed=2, num_steps=3, shift=Shift(factor="flip_y", severity=3)
    )
    assert np.array_equal(pixels(nominal)[0], pixels(faulty)[0])
    intended = faulty.signals["intended_action"]
    assert intended[0] == pytest.approx(nominal.actions[0])
    assert faulty.actions[0] == pytest.approx(intended[0] * [1, -1, 1, 1, 1, 1, 1])


def test_actions_are_stored_as_they_were_carried_out(tabletop: Tabletop) -> None:
    wild = replace(POLICIES["clean"], action_noise=1.0)
    episode = collect_episode(tabletop("pick_place"), wild, seed=2, num_steps=5)
    assert np.abs(episode.actions[:, :3]).max() == pytest.approx(0.12)
    assert np.abs(episode.signals["intended_action"][:, :3]).max() > 0.5


def test_source_says_how_it_was_made(tabletop: Tabletop) -> None:
    shift = Shift(factor="camera", severity=2, onset=1)
    episode = collect_episode(tabletop("push"), "bias_010", seed=7, shift=shift, num_steps=2)
    assert episode.source == (
        "tabletop:push?policy=bias_010&skill=sees+things+10+mm+off"
        "&factor=camera&severity=2&onset=1&seed=7"
    )
    assert episode.instruction == "push the block to the green zone"


@pytest.mark.parametrize("factor", ["background", "lighting", "clutter", "end_effector", "camera"])
def test_a_shift_comes_with_its_onset_and_leaves_the_physics(
    factor: str, tabletop: Tabletop
) -> None:
    env = tabletop("pick_place")

    def episode(onset: int, factor: str = factor) -> Trajectory:
        shift = Shift(factor=factor, severity=3, onset=onset)
        return collect_episode(env, "clean", seed=4, shift=shift, num_steps=6)

    before, after, late = episode(0, "nominal"), episode(0), episode(3)
    assert np.array_equal(pixels(late)[:3], pixels(before)[:3])
    assert np.array_equal(pixels(late)[3:], pixels(after)[3:])
    assert np.array_equal(late.states, before.states)


def test_an_object_changes_where_it_is(tabletop: Tabletop) -> None:
    env = tabletop("pick_place")
    shift = Shift(factor="object", severity=3, onset=3)
    before = collect_episode(env, "clean", seed=4, num_steps=6)
    late = collect_episode(env, "clean", seed=4, shift=shift, num_steps=6)
    assert np.array_equal(pixels(late)[:3], pixels(before)[:3])
    assert not np.array_equal(pixels(late)[3], pixels(before)[3])
    place, _ = np.split(late.signals["object_pose"][3], [3])
    assert place == pytest.approx(before.signals["object_pose"][3][:3], abs=0.01)


def test_a_fault_strikes_from_its_onset(tabletop: Tabletop) -> None:
    shift = Shift(factor="flip_y", severity=3, onset=2)
    episode = collect_episode(tabletop("push"), "clean", seed=2, shift=shift, num_steps=5)
    intended = episode.signals["intended_action"]
    assert episode.actions[:2, 1] == pytest.approx(intended[:2, 1])
    assert episode.actions[2:4, 1] == pytest.approx(-intended[2:4, 1])


def test_wrong_arguments(tabletop: Tabletop) -> None:
    with pytest.raises(ValueError, match=r"Unknown factor 'dealy'; known: .*'delay'\?"):
        collect_episode(tabletop("push"), "clean", seed=0, shift=Shift(factor="dealy"))
    with pytest.raises(ValueError, match=r"`env` must be a TabletopEnv, got CartPoleEnv\."):
        collect_episode(gymnasium.make("CartPole-v1"), "clean", seed=0)
