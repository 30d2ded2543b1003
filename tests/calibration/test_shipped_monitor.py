"""The shipped model and its monitor beside the tabletop, as beside a robot."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from worldmodel.calibration.calibrated import load_calibration
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.envs.faults import make_fault
from worldmodel.envs.monitored import MonitoredEnv, hold_still
from worldmodel.envs.policies import POLICIES
from worldmodel.envs.scripted import make_policy
from worldmodel.envs.tabletop import TabletopEnv
from worldmodel.model import WorldModel
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Level
from worldmodel.runtime.live import online_monitor

ONSET, NUM_STEPS = 8, 24


class CrossedWires(gymnasium.ActionWrapper[Any, Any, Any]):
    """An arm that moves to the other side than it is told, from frame `ONSET` on."""

    def __init__(self, env: TabletopEnv, *, crossed: bool) -> None:
        super().__init__(env)
        self.fault = make_fault("flip_y", 3, np.random.default_rng(0))
        self.crossed, self.count = crossed, 0

    def action(self, action: np.ndarray) -> np.ndarray:
        self.count += 1
        strikes = self.crossed and self.count > ONSET
        return self.fault(action).astype(np.float32) if strikes else action


@pytest.fixture(scope="module")
def monitor() -> RuntimeMonitor:
    model = WorldModel.load("tabletop")
    return online_monitor(model, load_calibration(model, checkpoint_folder("tabletop")))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("crossed", [False, True])
def test_an_arm_that_does_not_obey_is_handed_over(
    monitor: RuntimeMonitor, seed: int, crossed: bool
) -> None:
    tabletop = TabletopEnv(task="pick_place", renderer="ray", size=64)
    env = MonitoredEnv(CrossedWires(tabletop, crossed=crossed), monitor, hold_still)
    env.reset(seed=seed)
    policy = make_policy(POLICIES["clean"], "pick_place", np.random.default_rng(seed))
    verdicts = []
    for _ in range(NUM_STEPS):
        action = policy.act(tabletop.simulation.scene()).astype(np.float32)
        info = env.step(np.clip(action, env.action_space.low, env.action_space.high))[4]
        verdicts.append(info["verdict"])
        if info["handed_over"]:
            break
    assert max(v.level for v in verdicts[: ONSET + 1]) == Level.TRUST
    assert all(v.evidence["surprise"].score is not None for v in verdicts[1:])
    assert info["handed_over"] == crossed
    if crossed:
        assert verdicts[-1].causes[0] == "action_ignored"
