"""Counts of a running service, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from worldmodel.monitors.verdict import Level

Refusal = Literal[
    "connects_per_address",  # an address connects too often
    "key",  # the API key is missing or wrong
    "sessions",  # all sessions are in use
    "sessions_per_address",  # all sessions of an address are in use
    "small_frames",  # a flood of pings, pongs or fragments
    "text",  # a text message
    "not_msgpack",
    "too_large",  # a message above the size limit
    "message",  # a message answered with an error
    "idle",  # no complete message in time
    "unread",  # a reply that the peer does not read
]
"""Reasons to refuse a connection or a message."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCIES_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the histogram."""


class ServiceMetrics:
    """Verdicts by level, refusals by reason, sessions, and the latency of verdicts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._verdicts = Counter(
            "worldmodel_verdicts", "Verdicts by level.", ["level"], registry=self.registry
        )
        self._refusals = Counter(
            "worldmodel_refusals",
            "Refused connections and messages by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._open = Gauge("worldmodel_open_sessions", "Open sessions.", registry=self.registry)
        self._sessions = Counter(
            "worldmodel_sessions", "Sessions since the start.", registry=self.registry
        )
        self._latency = Histogram(
            "worldmodel_verdict_latency_seconds",
            "Time from the undecoded message to the verdict, without waiting for other robots.",
            buckets=LATENCIES_S,
            registry=self.registry,
        )
        # A series exists from the start, so that its first event is an increase.
        for level in Level:
            self._verdicts.labels(level.name.lower())
        for reason in get_args(Refusal):
            self._refusals.labels(reason)

    def verdict(self, level: str, latency_s: float) -> None:
        """Count a verdict."""
        self._verdicts.labels(level).inc()
        self._latency.observe(latency_s)

    def refuse(self, reason: Refusal) -> None:
        """Count a refusal."""
        self._refusals.labels(reason).inc()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Count a session while it is open."""
        self._sessions.inc()
        with self._open.track_inprogress():
            yield

    def text(self) -> str:
        """All counts, as `GET /metrics` returns them."""
        return generate_latest(self.registry).decode()
