"""Scripted policies of graded skill, which observe the simulation state, not images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from worldmodel.envs.faults import Action, make_fault

if TYPE_CHECKING:
    from worldmodel.envs.simulation import Scene

GRASP, RELEASE = 2, 6
"""Phases of `PICK_PLACE` in which the gripper closes and opens."""
MAX_YAW_STEP = 0.25
"""Largest turn per action in radians."""
STOPS_WITHIN = 30
BABBLE_AREA = np.array([[0.17, -0.15, 0.02], [0.37, 0.15, 0.2]])
"""Area of the gripper while babbling (m); keeps the arm in view."""


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """The skill of a scripted policy."""

    summary: str
    action_noise: float = 0.0
    """Standard deviation of the noise on each displacement (m); 3 times as much on yaw (rad)."""
    bias: float = 0.0
    """Standard deviation of the error in object and zone position (m, x and y), per episode."""
    miss: float = 0.0
    """Distance (m) by which every grasp misses the object's centre, in a random direction."""
    misplace: float = 0.0
    """Distance (m) from the zone at which the object is set down, in a random direction."""
    late_grip: float = 0.0
    """Probability that the gripper closes only after the arm has begun to rise."""
    early_release: float = 0.0
    """Probability that the gripper opens while the arm still carries the object."""
    gripper_slips: float = 0.0
    """Probability per step that the gripper does the opposite for one to three steps."""
    stops: float = 0.0
    """Probability that the arm stops for good at a random step among its first `STOPS_WITHIN`."""
    speed: float = 0.04
    """Largest displacement per action in metres."""
    fault: str = ""
    """Action fault (see `FAULTS`) at severity 3, or "" for none."""
    babble: bool = False
    """Whether the policy ignores the task and moves at random."""
    then_babble: bool = False
    """Whether the policy babbles after finishing the task."""


@runtime_checkable
class Controller(Protocol):
    """Chooses the next canonical action."""

    def act(self, scene: Scene) -> Action: ...

    @property
    def done(self) -> bool:
        """Whether the policy has nothing left to do."""
        ...


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Waypoint and its tolerances."""

    above: str
    """"object", "zone" or "here" (wherever the gripper is)."""
    height: float | None
    """Metres above the table; None: the current height."""
    opening: float
    near: float = np.inf
    """Horizontal tolerance in metres."""
    level: float = np.inf
    """Vertical tolerance in metres."""
    least_steps: int = 1


PICK_PLACE = (
    Phase(above="object", height=0.1, opening=1.0, near=0.02, level=0.03),
    Phase(above="object", height=0.018, opening=1.0, near=0.012, level=0.009),
    Phase(above="here", height=None, opening=0.0, least_steps=2),
    Phase(above="here", height=0.12, opening=0.0, level=0.02),
    Phase(above="zone", height=0.12, opening=0.0, near=0.022),
    Phase(above="zone", height=0.03, opening=0.0, level=0.015),
    Phase(above="zone", height=0.03, opening=1.0, least_steps=2),
    Phase(above="zone", height=0.13, opening=1.0, level=0.02),
)
"""Hover, descend, close, raise, carry, lower, open, retreat."""
LIFT = (*PICK_PLACE[: GRASP + 1], Phase(above="here", height=0.14, opening=0.0, level=0.02))


class Grasper:
    """Expert that follows the phases of `PICK_PLACE` or `LIFT`."""

    def __init__(
        self, phases: tuple[Phase, ...], spec: PolicySpec, rng: np.random.Generator
    ) -> None:
        self.phases, self.speed = phases, spec.speed
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        self._object_error = rng.normal(0, 1, 2) * spec.bias + spec.miss * direction
        self._zone_error = rng.normal(0, 1, 2) * spec.bias + spec.misplace * direction
        self._late = rng.random() < spec.late_grip
        self._drops = rng.random() < spec.early_release
        self._index, self._steps = 0, 0

    @property
    def done(self) -> bool:
        return self._index == len(self.phases)

    def act(self, scene: Scene) -> Action:
        """One step towards the current waypoint."""
        phase = self.phases[min(self._index, len(self.phases) - 1)]
        offset = self._waypoint(phase, scene) - scene.gripper
        turn = self._yaw_step(scene) if self._index < GRASP else 0.0
        opening = self._opening(phase, scene)
        self._advance(phase, offset)
        return np.array([*_limited(offset, self.speed), 0, 0, turn, opening])

    def _waypoint(self, phase: Phase, scene: Scene) -> Float[np.ndarray, " 3"]:
        places = {
            "object": scene.object[:2] + self._object_error,
            "zone": scene.zone + self._zone_error,
            "here": scene.gripper[:2],
        }
        height = scene.gripper[2] if phase.height is None else phase.height
        return np.append(places[phase.above], height)

    def _yaw_step(self, scene: Scene) -> float:
        quarter = np.pi / 2
        error = (scene.object_yaw - scene.gripper_yaw + quarter / 2) % quarter - quarter / 2
        return float(np.clip(error, -MAX_YAW_STEP, MAX_YAW_STEP))

    def _opening(self, phase: Phase, scene: Scene) -> float:
        if not GRASP <= self._index < RELEASE:
            return phase.opening
        height = scene.gripper[2]
        if (self._late and height < 0.09) or (self._drops and height > 0.05):
            return 1.0
        return phase.opening

    def _advance(self, phase: Phase, offset: Float[np.ndarray, " 3"]) -> None:
        self._steps += 1
        reached = np.linalg.norm(offset[:2]) < phase.near and abs(offset[2]) < phase.level
        if reached and self._steps >= phase.least_steps and not self.done:
            self._index, self._steps = self._index + 1, 0


class Pusher:
    """Expert that pushes the object to the zone from behind with a closed gripper."""

    def __init__(self, spec: PolicySpec, rng: np.random.Generator) -> None:
        self.speed = spec.speed
        self._object_error, self._zone_error = rng.normal(0, 1, (2, 2)) * spec.bias
        self._phase = 0

    done = False

    def act(self, scene: Scene) -> Action:
        """One step of approaching, lowering or pushing."""
        start, zone = scene.object[:2] + self._object_error, scene.zone + self._zone_error
        way = (zone - start) / max(float(np.linalg.norm(zone - start)), 1e-6)
        behind = start - 0.08 * way
        if self._phase == 2:
            return self._push(scene, start, zone, way)
        offset = np.append(behind, (0.12, 0.022)[self._phase]) - scene.gripper
        reached = np.linalg.norm(offset) < 0.012
        self._phase += int(reached)
        turn = (np.arctan2(way[1], way[0]) - scene.gripper_yaw + np.pi / 2) % np.pi - np.pi / 2
        step = _limited(offset, self.speed)
        return np.array([*step, 0, 0, np.clip(turn, -MAX_YAW_STEP, MAX_YAW_STEP), 0])

    def _push(
        self,
        scene: Scene,
        start: Float[np.ndarray, " 2"],
        zone: Float[np.ndarray, " 2"],
        way: Float[np.ndarray, " 2"],
    ) -> Action:
        relative = scene.gripper[:2] - start
        along = relative @ way
        aside = relative - along * way
        if np.linalg.norm(aside) > 0.018 or along > -0.012:
            self._phase = 0  # beside the object: rise and approach again
            return np.array([0, 0, 0.05, 0, 0, 0, 0])
        advance = way * min(0.03, float(np.linalg.norm(zone - start)) + 0.01) - 0.9 * aside
        step = _limited(np.append(advance, 0.022 - scene.gripper[2]), 0.9 * self.speed)
        return np.array([*step, 0, 0, 0, 0])


class Babbler:
    """Policy that moves smoothly between random points, often near the object."""

    def __init__(self, spec: PolicySpec, rng: np.random.Generator) -> None:
        self.speed, self.rng = spec.speed, rng
        self._velocity = np.zeros(3)
        self._target, self._opening, self._left = np.zeros(3), 1.0, 0

    done = False

    def act(self, scene: Scene) -> Action:
        """One step of a smoothed random walk."""
        if self._left == 0:
            self._choose(scene)
        self._left -= 1
        wanted = _limited(self._target - scene.gripper, self.speed)
        self._velocity += 0.6 * (wanted - self._velocity)
        bounded = np.clip(scene.gripper + self._velocity, *BABBLE_AREA) - scene.gripper
        turn = self.rng.normal(0, 0.06) - 0.1 * scene.gripper_yaw
        return np.array([*bounded, 0, 0, np.clip(turn, -MAX_YAW_STEP, MAX_YAW_STEP), self._opening])

    def _choose(self, scene: Scene) -> None:
        self._target, self._left = self.rng.uniform(*BABBLE_AREA), int(self.rng.integers(3, 9))
        if self.rng.random() < 0.4:
            self._target = scene.object + self.rng.normal(0, [0.02, 0.02, 0.03])
        if self.rng.random() < 0.35:
            self._opening = 1 - self._opening


class Imperfect:
    """Wraps an expert with the noise, slips and faults of a `PolicySpec`."""

    def __init__(self, expert: Controller, spec: PolicySpec, rng: np.random.Generator) -> None:
        self.expert, self.spec, self.rng = expert, spec, rng
        self._fault = make_fault(spec.fault, 3, rng) if spec.fault else None
        self._afterwards = Babbler(spec, rng)
        self._slipping = 0
        stops = spec.stops > 0 and rng.random() < spec.stops
        self._left = int(rng.integers(STOPS_WITHIN)) if stops else None

    @property
    def done(self) -> bool:
        return self.expert.done

    def act(self, scene: Scene) -> Action:
        """The expert's action with noise, slips and faults."""
        idle = self.expert.done and self.spec.then_babble
        action = (self._afterwards if idle else self.expert).act(scene)
        action[:3] += self.rng.normal(0, 1, 3) * self.spec.action_noise
        action[5] += self.rng.normal() * self.spec.action_noise * 3
        if self._slipping == 0 and self.rng.random() < self.spec.gripper_slips:
            self._slipping = int(self.rng.integers(1, 4))
        if self._slipping:
            self._slipping -= 1
            action[6] = 1 - action[6]
        if self._left is not None:
            if self._left == 0:
                action[:6] = 0
            self._left = max(0, self._left - 1)
        return self._fault(action) if self._fault else action


EXPERTS: dict[str, Callable[[PolicySpec, np.random.Generator], Controller]] = {
    "pick_place": lambda spec, rng: Grasper(PICK_PLACE, spec, rng),
    "lift": lambda spec, rng: Grasper(LIFT, spec, rng),
    "push": Pusher,
}
"""Task -> expert policy."""


def make_policy(spec: PolicySpec, task: str, rng: np.random.Generator) -> Controller:
    """Create a policy for one episode."""
    expert = Babbler(spec, rng) if spec.babble else EXPERTS[task](spec, rng)
    return Imperfect(expert, spec, rng)


def _limited(offset: Float[np.ndarray, " n"], longest: float) -> Float[np.ndarray, " n"]:
    distance = float(np.linalg.norm(offset))
    return offset if distance <= longest else offset * (longest / distance)
