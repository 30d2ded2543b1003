"""A small tabletop per task, shared: an episode leaves nothing behind in it."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from worldmodel.envs.scripted import PolicySpec, make_policy
from worldmodel.envs.tabletop import TabletopEnv


@cache
def make_tabletop(task: str) -> TabletopEnv:
    return TabletopEnv(task, size=64, renderer="ray", terminate_on_success=False)


@pytest.fixture(scope="session")
def tabletop() -> Callable[[str], TabletopEnv]:
    """Task -> its environment, 64x64, rendered by rays."""
    return make_tabletop


@pytest.fixture(scope="session")
def succeeds() -> Callable[[str, PolicySpec, int], bool]:
    """Whether a policy fulfils a task within 39 actions, for one seed; nothing is rendered."""

    def run(task: str, spec: PolicySpec, seed: int) -> bool:
        env = make_tabletop(task)
        env.reset(seed=seed)
        policy = make_policy(spec, task, np.random.default_rng(seed))
        for _ in range(39):
            env.simulation.arm.step(env.simulation.data, policy.act(env.simulation.scene()))
            if env.success():
                return True
        return False

    return run
