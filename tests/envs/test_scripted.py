"""Scripted policies: skill, its loss, and what their actions look like."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from worldmodel.envs.episode_recorder import collect_episode
from worldmodel.envs.policies import (
    HELD_OUT_FAMILIES,
    MIXED,
    POLICIES,
    draw_policy,
    policy_family,
)
from worldmodel.envs.scripted import BABBLE_AREA, STOPS_WITHIN, PolicySpec, make_policy
from worldmodel.envs.simulation import Scene
from worldmodel.envs.tabletop import TabletopEnv

CLEAN = POLICIES["clean"]
Succeeds = Callable[[str, PolicySpec, int], bool]


def still(position: tuple[float, float, float] = (0.24, 0.0, 0.17)) -> Scene:
    return Scene(
        gripper=np.array(position),
        gripper_yaw=0.0,
        object=np.array([0.3, 0.1, 0.026]),
        object_yaw=0.2,
        zone=np.array([0.25, -0.1]),
    )


def act(spec: PolicySpec, scene: Scene, seed: int = 0) -> np.ndarray:
    return make_policy(spec, "pick_place", np.random.default_rng(seed)).act(scene)


def test_the_first_step_goes_towards_the_object_at_full_speed() -> None:
    action = act(CLEAN, still())
    offset = np.array([0.3, 0.1, 0.1]) - [0.24, 0.0, 0.17]
    assert action[:3] == pytest.approx(CLEAN.speed * offset / np.linalg.norm(offset))
    assert action[3:] == pytest.approx([0, 0, 0.2, 1])


@pytest.mark.parametrize("name", ["frozen", "random", "inverted_gripper", "wrong_frame"])
def test_planted_bad_policies_never_succeed(succeeds: Succeeds, name: str) -> None:
    assert not any(succeeds("pick_place", POLICIES[name], seed) for seed in range(6))


def test_grip_faults_decide_the_outcome(succeeds: Succeeds) -> None:
    def successes(spec: PolicySpec) -> int:
        return sum(succeeds("pick_place", spec, seed) for seed in range(4))

    assert successes(CLEAN) == 4
    assert successes(replace(CLEAN, late_grip=1.0)) == 0
    assert successes(replace(CLEAN, early_release=1.0)) == 0
    assert successes(replace(CLEAN, miss=0.06)) == 0


def test_noise_and_bias_have_their_size() -> None:
    clean = act(CLEAN, still())
    noisy = [act(POLICIES["noise_010"], still(), seed) - clean for seed in range(1000)]
    expected = [0.01] * 3 + [0, 0, 0.03, 0]
    assert np.std(noisy, axis=0) == pytest.approx(np.array(expected), rel=0.1)  # over 4 sd

    def goal(seed: int) -> np.ndarray:
        close = still((0.3, 0.1, 0.1))
        return act(replace(POLICIES["bias_010"], speed=1.0), close, seed)[:2]

    errors = [goal(seed) for seed in range(1000)]
    assert np.std(errors, axis=0) == pytest.approx(np.array([0.01, 0.01]), rel=0.1)


def test_slips_invert_the_gripper_for_one_to_three_steps() -> None:
    policy = make_policy(replace(CLEAN, gripper_slips=0.05), "lift", np.random.default_rng(0))
    closed = np.array([policy.act(still())[6] == 0 for _ in range(4000)])
    changes = np.flatnonzero(np.diff(np.concatenate([[0], closed, [0]])))
    lengths = np.diff(changes)[::2]
    # Two slips may follow one another directly, so a few runs are longer than three.
    assert np.median(lengths) in (1, 2, 3)
    assert np.mean(closed) == pytest.approx(0.05 * 2 / 1.05, abs=0.03)


def test_babbling_stays_in_its_area_and_uses_the_gripper() -> None:
    policy = make_policy(POLICIES["babble"], "pick_place", np.random.default_rng(0))
    scene, openings, places = still(), [], []
    for _ in range(300):
        action = policy.act(scene)
        scene = replace(scene, gripper=scene.gripper + action[:3])
        openings.append(action[6])
        places.append(scene.gripper)
    assert (np.array(places) >= BABBLE_AREA[0] - 1e-9).all()
    assert (np.array(places) <= BABBLE_AREA[1] + 1e-9).all()
    assert np.std(places, axis=0).min() > 0.02
    assert 0.2 < np.mean(openings) < 0.8


def test_mixture_has_its_shares() -> None:
    drawn = [draw_policy(MIXED, np.random.default_rng(seed)) for seed in range(2000)]
    shares = {kind: np.mean([spec.summary == kind for spec in drawn]) for kind in
              ("babble", "near miss", "try")}  # fmt: skip
    assert shares == pytest.approx({"babble": 0.1, "near miss": 0.45, "try": 0.45}, abs=0.04)
    slipping = np.mean([spec.gripper_slips > 0 for spec in drawn if spec.summary == "try"])
    assert slipping == pytest.approx(0.2, abs=0.05)


def test_mixture_holds_no_family_that_is_held_out() -> None:
    drawn = [draw_policy(MIXED, np.random.default_rng(seed)) for seed in range(2000)]
    assert set(map(policy_family, POLICIES)) > set(HELD_OUT_FAMILIES)
    assert not any(spec.misplace or spec.stops for spec in drawn)


def test_a_policy_that_stops_never_moves_again() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(replace(POLICIES["clean"], stops=1.0), "pick_place", rng)
    moves = np.array([np.abs(policy.act(still())[:6]).max() for _ in range(40)])
    last = np.flatnonzero(moves)[-1]
    assert 0 <= last < STOPS_WITHIN
    assert moves[: last + 1].all()


def test_a_misplacing_policy_lets_go_beside_the_zone() -> None:
    """5 cm is the radius of the zone: the object ends about 7 cm from its centre."""
    env = TabletopEnv("pick_place", 8, "ray")
    found = collect_episode(env, "misplace_070", seed=5)
    zone = env.simulation.scene().zone
    place = found.signals["object_pose"][-1][:2]
    assert np.linalg.norm(place - zone) == pytest.approx(0.07, abs=0.015)
    assert not found.success


def test_unknown_policy_says_what_exists() -> None:
    with pytest.raises(ValueError, match=r"Unknown policy 'noise_01'; known: mixed, clean, .*"):
        draw_policy("noise_01", np.random.default_rng(0))
