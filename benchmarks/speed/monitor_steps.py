"""Nominal steps that the monitor is timed on, and features computed beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.envs.collect import Collection
from worldmodel.evaluation.simulate import simulate
from worldmodel.model import WorldModel
from worldmodel.monitors.monitor import RuntimeMonitor

SEED = 5_000_011
"""Seed of the simulated episodes."""


@dataclass(frozen=True, kw_only=True)
class MonitorStep:
    """Frame and action of one step."""

    first: bool
    """Whether an episode starts at this step."""
    frame: np.ndarray
    action: np.ndarray


class CachedFeatures:
    """Feature function with a cache."""

    def __init__(self, features: Callable[..., Any]) -> None:
        self.features, self.cache, self.calls = features, dict[tuple[bytes, ...], Any](), 0

    def __call__(self, *values: np.ndarray) -> Any:
        self.calls += 1
        key = tuple(np.asarray(value).tobytes() for value in values)
        if key not in self.cache:
            self.cache[key] = self.features(*values)
        return self.cache[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.features, name)


def nominal_steps(model: WorldModel, episodes: int) -> list[MonitorStep]:
    """Simulate nominal episodes and concatenate their steps."""
    scene = Collection(renderer="ray", seed=SEED)
    (simulated,) = simulate(model, [("nominal", scene, episodes)], workers=1).values()
    return [
        MonitorStep(first=t == 0, frame=frame.numpy(), action=action.numpy())
        for episode in simulated
        for t, (frame, action) in enumerate(
            zip(episode.frames, episode.batch.actions[0], strict=True)
        )
    ]


def rehearse(monitor: RuntimeMonitor, steps: Sequence[MonitorStep]) -> Iterator[MonitorStep]:
    """Repeat the steps endlessly, resetting the monitor at every episode start."""
    for step in itertools.cycle(steps):
        if step.first:
            monitor.reset()
        yield step
