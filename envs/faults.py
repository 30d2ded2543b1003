"""Action faults of a miswired or broken policy, in three severities."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from worldmodel.envs.factors import SEVERITIES
from worldmodel.envs.registry import lookup

Action = Float[np.ndarray, " 7"]
Fault = Callable[[Action], Action]
"""Maps the intended action of each step to the faulty one; created per episode."""

HOLD = np.array([0, 0, 0, 0, 0, 0, 1.0])
"""Action without motion, gripper open."""


def make_fault(name: str, severity: int, rng: np.random.Generator) -> Fault:
    """Create the fault `name` for one episode."""
    maker = lookup("action fault", name, FAULTS)
    if severity not in SEVERITIES:
        raise ValueError(f"`severity` must be 1, 2 or 3, got {severity!r}.")
    return maker(severity - 1, rng)


def _linear(*matrices: Float[np.ndarray, "3 3"]) -> Callable[[int, np.random.Generator], Fault]:
    """Fault that multiplies the displacement by a matrix, one per severity."""

    def make(level: int, rng: np.random.Generator) -> Fault:
        return lambda action: np.concatenate([matrices[level] @ action[:3], action[3:]])

    return make


def _sometimes(
    change: Callable[[Action, np.random.Generator], Action], *probabilities: float
) -> Callable[[int, np.random.Generator], Fault]:
    """Fault that changes each step with a probability, one per severity."""

    def make(level: int, rng: np.random.Generator) -> Fault:
        def fault(action: Action) -> Action:
            return change(action, rng) if rng.random() < probabilities[level] else action

        return fault

    return make


def _scale(level: int, rng: np.random.Generator) -> Fault:
    gain = np.array([(1.4, 1.8, 2.5)[level]] * 6 + [1])
    return lambda action: action * gain


def _jitter(level: int, rng: np.random.Generator) -> Fault:
    spread = (0.008, 0.015, 0.03)[level] * np.array([1, 1, 1, 10, 10, 10, 0])
    return lambda action: action + rng.normal(0, spread)


def _delay(level: int, rng: np.random.Generator) -> Fault:
    waiting = deque([HOLD] * (level + 1))

    def fault(action: Action) -> Action:
        waiting.append(action)
        return waiting.popleft()

    return fault


def _inverted_gripper(action: Action, rng: np.random.Generator) -> Action:
    return np.append(action[:6], 1 - action[6])


def _frozen(action: Action, rng: np.random.Generator) -> Action:
    return HOLD.copy()


def _uniform(action: Action, rng: np.random.Generator) -> Action:
    pose = rng.uniform(-1, 1, 6) * np.repeat([0.05, 0.25], 3)
    return np.append(pose, rng.integers(2))


def _turn(degrees: float) -> Float[np.ndarray, "3 3"]:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


_SWAP = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])

FAULTS: dict[str, Callable[[int, np.random.Generator], Fault]] = {
    "scale": _scale,
    "flip_y": _linear(*(np.diag([1, gain, 1]) for gain in (0.3, -0.3, -1.0))),
    "swap_xy": _linear(*(w * _SWAP + (1 - w) * np.eye(3) for w in (0.3, 0.6, 1.0))),
    "wrong_frame": _linear(_turn(30.0), _turn(60.0), _turn(90.0)),
    "jitter": _jitter,
    "delay": _delay,
    "invert_gripper": _sometimes(_inverted_gripper, 0.15, 0.4, 1.0),
    "frozen": _sometimes(_frozen, 0.2, 0.5, 1.0),
    "uniform": _sometimes(_uniform, 0.2, 0.5, 1.0),
}
"""Fault -> function that creates it from a level (0, 1, 2) and a generator."""
