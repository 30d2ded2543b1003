"""A fitted monitor and services of it."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from tests.monitor_service import CONFIG, SHAPE, Served, draw_episode, features, serving
from worldmodel.monitors import RuntimeMonitor


@pytest.fixture(scope="session")
def fitted() -> RuntimeMonitor:
    rng = np.random.default_rng(0)
    return RuntimeMonitor(CONFIG, features=features).fit(
        [draw_episode(rng) for _ in range(19)],
        reference=[draw_episode(rng) for _ in range(20)],
        frame_shape=SHAPE,
    )


@pytest.fixture
def served(fitted: RuntimeMonitor) -> Iterator[Served]:
    """`served(max_sessions=..., ...)`: the address of a service of the fitted monitor."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(fitted, **settings))
