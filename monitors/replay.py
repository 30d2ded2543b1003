"""Replay of recorded sessions through a monitor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from worldmodel.monitors.claims import PredictionCheck
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """Input of the monitor at one step."""

    observation: object
    action: object
    imagined: PredictionCheck | None = None
    latency_s: float = 0.0
    """Recorded latency of the verdict in seconds; decides whether the deadline was missed."""


def replay(
    monitor: RuntimeMonitor, steps: Iterable[RecordedStep], *, today: datetime | None = None
) -> Iterator[Verdict]:
    """Replay an episode; the same monitor gives the same verdicts, bit for bit.

    The recorded latencies replace the monitor's clock, so the same deadlines are missed. `today`
    (with a time zone) replaces its date: pass the session's date (`watched_at` in a log's
    attributes) to repeat its expiry check; None: now. Features must come from the same model on the
    same kind of machine.
    """
    original_today = monitor.today
    if today is not None:
        monitor.today = lambda: today
    try:
        monitor.reset()
    finally:
        monitor.today = original_today
    for step in steps:
        clock, monitor.clock = monitor.clock, iter((0.0, step.latency_s)).__next__
        try:
            verdict = monitor.update(step.observation, step.action, step.imagined)
        finally:
            monitor.clock = clock
        yield verdict
