"""One recorded episode of a scripted policy on the tabletop."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import gymnasium
import numpy as np
from jaxtyping import UInt8

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.envs.factors import FACTORS
from worldmodel.envs.faults import FAULTS, make_fault
from worldmodel.envs.policies import draw_policy
from worldmodel.envs.registry import lookup
from worldmodel.envs.scripted import PolicySpec, make_policy
from worldmodel.envs.tabletop import ACTION_HIGH, ACTION_LOW, TabletopEnv

CAMERA = "image"
INSTRUCTIONS = {
    "pick_place": "put the block on the green zone",
    "push": "push the block to the green zone",
    "lift": "lift the block",
}


class ArrayFrames:
    """Frames of one camera, held in memory."""

    def __init__(self, pixels: UInt8[np.ndarray, "time height width 3"]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        return self.pixels[window]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def check_factor(name: str) -> None:
    """Refuse what is neither a scene factor nor an action fault."""
    lookup("factor", name, {**FACTORS, **FAULTS})


def collect_episode(
    env: gymnasium.Env[Any, Any],
    policy: str | PolicySpec,
    *,
    seed: int,
    factor: str = "nominal",
    severity: int = 1,
    num_steps: int = 40,
    episode_id: str = "",
) -> Trajectory:
    """Record `num_steps` frames of the tabletop, whether or not the task is fulfilled before.

    `factor` is a scene factor or an action fault. A fault strikes the policy's actions before they
    are carried out: `actions` are the faulty ones, the signal `intended_action` the policy's own.
    """
    check_factor(factor)
    tabletop = env.unwrapped
    if not isinstance(tabletop, TabletopEnv):
        raise ValueError(f"`env` must be a TabletopEnv, got {type(tabletop).__name__}.")
    rng = np.random.default_rng([seed, 1])
    spec = draw_policy(policy, rng) if isinstance(policy, str) else policy
    actor = make_policy(spec, tabletop.task, rng)
    fault = make_fault(factor, severity, rng) if factor in FAULTS else lambda action: action
    options = {"factor": factor, "severity": severity} if factor in FACTORS else {}
    observation, info = tabletop.reset(seed=seed, options=options)
    rows: list[dict[str, Any]] = []
    for step in range(num_steps):
        intended = actor.act(tabletop.simulation.scene())
        action = np.clip(fault(intended), ACTION_LOW, ACTION_HIGH).astype(np.float32)
        pose = tabletop.simulation.object_pose()
        row = {"action": action, "intended_action": intended.astype(np.float32)}
        rows.append({**observation, **row, "success": info["success"], "object_pose": pose})
        if step + 1 < num_steps:
            observation, _, _, _, info = tabletop.step(action)
    name = policy if isinstance(policy, str) else policy.summary
    origin = {"policy": name, "skill": spec.summary, "factor": factor, "severity": severity}
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
        signals={name: columns[name] for name in ("success", "object_pose", "intended_action")},
    )
