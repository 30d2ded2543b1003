"""A recorded session, judged again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from worldmodel.monitors.claims import PredictionCheck
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """What the monitor was shown at one step."""

    observation: object
    action: object
    imagined: PredictionCheck | None = None
    latency_s: float = 0.0
    """The time the verdict took then, in seconds: it decides whether a deadline was missed."""


def replay(
    monitor: RuntimeMonitor, steps: Iterable[RecordedStep], *, today: datetime | None = None
) -> Iterator[Verdict]:
    """Judge an episode again: the same monitor gives the same verdicts, bit for bit.

    The monitor's clock is set to the recorded latencies, so that deadlines are missed where they
    were missed then, and its date to `today`, with a time zone: that of the session (`watched_at`
    in a log's attributes), so that a calibration that was fresh then is; None: now. Features must
    come from the same model on the same kind of machine.
    """
    clock_of_days = monitor.today
    if today is not None:
        monitor.today = lambda: today
    try:
        monitor.reset()
    finally:
        monitor.today = clock_of_days
    for step in steps:
        clock, monitor.clock = monitor.clock, iter((0.0, step.latency_s)).__next__
        try:
            verdict = monitor.update(step.observation, step.action, step.imagined)
        finally:
            monitor.clock = clock
        yield verdict
