"""Named scripted policies, and the mixture used to collect training data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldmodel.envs.registry import lookup
from worldmodel.envs.scripted import PolicySpec

POLICIES: dict[str, PolicySpec] = {
    "clean": PolicySpec(summary="exact"),
    "noise_005": PolicySpec(summary="5 mm of noise per action", action_noise=0.005),
    "noise_010": PolicySpec(summary="10 mm of noise per action", action_noise=0.01),
    "noise_015": PolicySpec(summary="15 mm of noise per action", action_noise=0.015),
    "noise_020": PolicySpec(summary="20 mm of noise per action", action_noise=0.02),
    "noise_030": PolicySpec(summary="30 mm of noise per action", action_noise=0.03),
    "bias_010": PolicySpec(summary="sees things 10 mm off", bias=0.01),
    "bias_015": PolicySpec(summary="sees things 15 mm off", bias=0.015),
    "bias_020": PolicySpec(summary="sees things 20 mm off", bias=0.02),
    "bias_030": PolicySpec(summary="sees things 30 mm off", bias=0.03),
    "late_grip": PolicySpec(summary="closes too late in half of the episodes", late_grip=0.5),
    "early_release": PolicySpec(summary="drops the object in 3 of 10", early_release=0.3),
    "misplace_050": PolicySpec(summary="aims 50 mm beside the zone", misplace=0.05),
    "misplace_070": PolicySpec(summary="aims 70 mm beside the zone", misplace=0.07),
    "stops_30": PolicySpec(summary="stops for good in 3 of 10 episodes", stops=0.3),
    "stops_60": PolicySpec(summary="stops for good in 6 of 10 episodes", stops=0.6),
    "babble": PolicySpec(summary="moves about in view", babble=True),
    "frozen": PolicySpec(summary="never moves", fault="frozen"),
    "random": PolicySpec(summary="uniform random actions", fault="uniform"),
    "inverted_gripper": PolicySpec(summary="opens to close", fault="invert_gripper"),
    "wrong_frame": PolicySpec(summary="displacements turned by 90 degrees", fault="wrong_frame"),
}
"""Name -> skill. The last four are bad on purpose. Grip errors do not affect pushing."""
MIXED = "mixed"
"""Name of the training mixture."""
HELD_OUT_FAMILIES = ("misplace", "stops")
"""Families of failure that the training mixture does not contain, to test generalisation."""


def policy_family(name: str) -> str:
    """Family of a policy: its name without the level. Levels of one family are not independent.

    >>> policy_family("noise_010"), policy_family("noise_030"), policy_family("clean")
    ('noise', 'noise', 'clean')
    """
    return name.rstrip("0123456789").rstrip("_")


def draw_policy(name: str, rng: np.random.Generator) -> PolicySpec:
    """The named policy, or a sample from the training mixture for "mixed".

    The mixture is 10% babbling, 45% noisy attempts and 45% attempts at the edge of success: a
    model that sees only clear successes and clear failures imagines that near misses succeed. In a
    fifth of the noisy attempts the gripper slips, so that its command matters. The families in
    `HELD_OUT_FAMILIES` never occur.
    """
    if name != MIXED:
        return lookup("policy", name, {MIXED: POLICIES["clean"], **POLICIES})
    kind, speed = rng.random(), rng.uniform(0.03, 0.05)
    if kind < 0.1:
        return PolicySpec(summary="babble", babble=True, speed=speed)
    if kind < 0.55:
        return PolicySpec(
            summary="try",
            action_noise=rng.choice([0.0, 0.003, 0.005, 0.01, 0.015, 0.02]),
            bias=rng.choice([0.0, 0.01, 0.015]),
            gripper_slips=rng.choice([0.0, 0.05], p=[0.8, 0.2]),
            speed=speed,
            then_babble=bool(rng.integers(2)),
        )
    return _near_miss(rng, speed)


def _near_miss(rng: np.random.Generator, speed: float) -> PolicySpec:
    """An attempt whose error is near the tolerance of the grasp, 14 mm."""
    kind, noise = rng.random(), rng.choice([0.0, 0.0, 0.003, 0.005, 0.01])
    spec = PolicySpec(
        summary="near miss", speed=speed, then_babble=bool(rng.integers(2)), action_noise=noise
    )
    if kind < 0.5:
        return replace(spec, bias=rng.uniform(0.01, 0.04))
    if kind < 0.65:
        return replace(spec, action_noise=rng.uniform(0.008, 0.03))
    if kind < 0.8:
        return replace(spec, late_grip=0.5, early_release=0.4, bias=rng.choice([0.0, 0.015]))
    if kind < 0.95:
        return replace(spec, miss=rng.uniform(0.01, 0.035))
    return replace(spec, gripper_slips=0.08)
