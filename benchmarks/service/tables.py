"""What `benchmarks/service/run.py` found, and its tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.service.abuse import Outcome

MAX_GROWTH_MIB = 16.0
"""Most by which memory may grow over a second round of the same."""


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

    imagines: bool
    """Whether the model imagines every next frame, after the answer."""
    robots: int
    updates: int
    load: float
    """Of the machine in the last minute, this measurement included."""
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
            (
                "yes" if x.imagines else "no",
                x.robots,
                x.updates,
                x.load,
                *(f"{ms:.1f}" for ms in list(asdict(x).values())[4:]),
            )
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
            table(("imagining", "robots at once", "updates", "load", "p50 (ms)", "p99 (ms)",
                   "monitor p50 (ms)", "monitor p99 (ms)"), latencies),
            "What the service's process holds.\n",
            table(("when", "file descriptors", "threads", "RSS (MiB)"),
                  [tuple(asdict(used).values()) for used in self.used]),
            "Peers that misbehave, what the service did, and after how long.\n",
            table(("peer", "the service", "s", "as it must"), outcomes),
        ])  # fmt: skip


def usage(process: psutil.Process, when: str, *, at_most: int | None = None) -> Usage:
    """What the service holds, once it is down to `at_most` file descriptors or half a minute on."""
    end = time.monotonic() + 30
    while at_most is not None and process.num_fds() > at_most and time.monotonic() < end:
        time.sleep(0.1)
    memory, fds = process.memory_info().rss / 2**20, process.num_fds()
    found = Usage(
        when=when, file_descriptors=fds, threads=process.num_threads(), rss_mib=round(memory, 1)
    )
    print(
        f"  {when}: {fds} file descriptors, {found.threads} threads, {memory:.0f} MiB", flush=True
    )
    return found


def leaks(used: Sequence[Usage]) -> list[Check]:
    """Whether file descriptors came back to where they were, and memory stopped growing."""
    first, *_, visited, again, _, _, heavy, last = used
    ends = f"{last.file_descriptors} and {first.file_descriptors}"
    what = "file descriptors at the end, at most those at the start"
    checks = [Check(what=what, found=ends, kept=last.file_descriptors <= first.file_descriptors)]
    for part, before, after in (
        ("second round of visitors", visited, again),
        ("third of the rounds of much", heavy, last),
    ):
        growth = after.rss_mib - before.rss_mib
        what = f"memory over the {part}: at most {MAX_GROWTH_MIB:g} MiB more"
        found = f"{growth:+.1f} MiB"
        checks.append(Check(what=what, found=found, kept=growth <= MAX_GROWTH_MIB))
    return checks


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
