"""Recording of one episode of a scripted policy on the tabletop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

import gymnasium
import numpy as np

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.trajectory import ArrayFrames, Trajectory
from worldmodel.envs.factors import FACTORS, SEVERITIES
from worldmodel.envs.faults import FAULTS, make_fault
from worldmodel.envs.policies import draw_policy
from worldmodel.envs.registry import lookup
from worldmodel.envs.scripted import PolicySpec, make_policy
from worldmodel.envs.tabletop import ACTION_HIGH, ACTION_LOW, TabletopEnv

CAMERA = "image"
SIGNALS = ("success", "object_pose", "object_in_image", "intended_action")
INSTRUCTIONS = {
    "pick_place": "put the block on the green zone",
    "push": "push the block to the green zone",
    "lift": "lift the block",
}


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Shift of an episode from the nominal domain."""

    factor: str = "nominal"
    """A scene factor or an action fault."""
    severity: int = 1
    onset: int = 0
    """First frame with the shifted scene, or with the action fault."""

    def __post_init__(self) -> None:
        lookup("factor", self.factor, {**FACTORS, **FAULTS})
        if self.severity not in SEVERITIES:
            raise ValueError(f"`severity` must be 1, 2 or 3, got {self.severity}.")
        if self.onset < 0:
            raise ValueError(f"`onset` must not be negative, got {self.onset}.")


NOMINAL = Shift()


def collect_episode(
    env: gymnasium.Env[Any, Any],
    policy: str | PolicySpec,
    *,
    seed: int,
    shift: Shift = NOMINAL,
    num_steps: int = 40,
    episode_id: str = "",
) -> Trajectory:
    """Record `num_steps` frames of the tabletop, even if the task succeeds earlier.

    A shift acts from its onset. A fault changes the policy's actions before they are executed:
    `actions` holds the faulty actions, the signal `intended_action` those of the policy.
    """
    tabletop = env.unwrapped
    if not isinstance(tabletop, TabletopEnv):
        raise ValueError(f"`env` must be a TabletopEnv, got {type(tabletop).__name__}.")
    rng = np.random.default_rng([seed, 1])
    spec = draw_policy(policy, rng) if isinstance(policy, str) else policy
    actor = make_policy(spec, tabletop.task, rng)
    fault = make_fault(shift.factor, shift.severity, rng) if shift.factor in FAULTS else None
    options = {} if fault else {"factor": shift.factor, "severity": shift.severity}
    observation, info = tabletop.reset(seed=seed, options={} if shift.onset else options)
    rows: list[dict[str, Any]] = []
    for step in range(num_steps):
        if options and 0 < step == shift.onset:
            observation = tabletop.change(options)
        intended = actor.act(tabletop.simulation.scene())
        action = fault(intended) if fault and step >= shift.onset else intended
        action = np.clip(action, ACTION_LOW, ACTION_HIGH).astype(np.float32)
        pose, place = tabletop.simulation.object_pose(), tabletop.simulation.object_in_image()
        row = {"action": action, "intended_action": intended.astype(np.float32)}
        row |= {"object_pose": pose, "object_in_image": place}
        rows.append({**observation, **row, "success": info["success"]})
        if step + 1 < num_steps:
            observation, _, _, _, info = tabletop.step(action)
    name = policy if isinstance(policy, str) else policy.summary
    origin = {"policy": name, "skill": spec.summary, **asdict(shift)}
    source = f"tabletop:{tabletop.task}?{urlencode({**origin, 'seed': seed})}"
    return _trajectory(rows, episode_id or source, source, INSTRUCTIONS[tabletop.task])


def _trajectory(
    rows: list[dict[str, Any]], episode_id: str, source: str, instruction: str
) -> Trajectory:
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    valid = np.arange(len(rows)) < len(rows) - 1
    return Trajectory(
        episode_id=episode_id,
        source=source,
        frames={CAMERA: ArrayFrames(columns["image"])},
        actions=np.where(valid[:, None], columns["action"], np.float32(0)),
        action_valid=valid,
        states=columns["state"],
        action_spec=CANONICAL,
        instruction=instruction,
        rate_hz=CANONICAL.rate_hz,
        success=bool(columns["success"].any()),
        signals={name: columns[name] for name in SIGNALS},
    )
