"""What `benchmarks/service.py` found, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service_abuse import Outcome  # the script beside this one


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked."""

    what: str
    found: str
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the service holds."""

    when: str
    file_descriptors: int
    threads: int
    rss_mib: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per update: round trip, and the monitor's own share."""

    robots: int
    updates: int
    p50_ms: float
    p99_ms: float
    monitor_p50_ms: float
    monitor_p99_ms: float


@dataclass
class Report:
    """Everything that is written."""

    facts: dict[str, Any]
    checks: list[Check]
    latencies: list[Latency]
    used: list[Usage]
    outcomes: list[Outcome]

    def text(self) -> str:
        """The tables as Markdown."""
        told = "; ".join(f"{name}: {value}" for name, value in self.facts.items())
        checks = [(c.what, c.found, "yes" if c.kept else "NO") for c in self.checks]
        latencies = [
            (x.robots, x.updates, *(f"{ms:.1f}" for ms in list(asdict(x).values())[2:]))
            for x in self.latencies
        ]
        outcomes = [
            (o.peer, o.found.replace("|", "\\|"), f"{o.seconds:.1f}", "yes" if o.kept else "NO")
            for o in self.outcomes
        ]
        return "\n".join([
            "# The monitor as a service\n", f"{told}.\n",
            table(("check", "found", "kept"), checks),
            "Round trips as the robots see them, all of them threads of one process on the same "
            "machine, each asking as fast as it is answered; and the monitor's own time.\n",
            table(("robots at once", "updates", "p50 (ms)", "p99 (ms)",
                   "monitor p50 (ms)", "monitor p99 (ms)"), latencies),
            "What the service's process holds.\n",
            table(("when", "file descriptors", "threads", "RSS (MiB)"),
                  [tuple(asdict(used).values()) for used in self.used]),
            "Peers that misbehave, what the service did, and after how long.\n",
            table(("peer", "the service", "s", "as it must"), outcomes),
        ])  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
