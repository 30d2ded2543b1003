"""Results of `benchmarks.service.run` and their tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.markdown import markdown_table
from benchmarks.service.abuse import Outcome

MAX_GROWTH_MIB = 16.0
"""Maximum memory growth in a second, identical round."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one check."""

    what: str
    found: str
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Resources held by the service."""

    when: str
    file_descriptors: int
    threads: int
    rss_mib: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per update: round trip, and time inside the monitor."""

    imagines: bool
    """Whether the model imagines the next frame after every answer."""
    robots: int
    updates: int
    load: float
    """Load average of the last minute, including this measurement."""
    p50_ms: float
    p99_ms: float
    monitor_p50_ms: float
    monitor_p99_ms: float


@dataclass
class ServiceReport:
    """All results of a run."""

    facts: dict[str, Any]
    checks: list[Check]
    latencies: list[Latency]
    used: list[Usage]
    outcomes: list[Outcome]

    def text(self) -> str:
        """Tables as Markdown."""
        settings = "; ".join(f"{name}: {value}" for name, value in self.facts.items())
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
            "# The monitor as a service\n", f"{settings}.\n",
            markdown_table(("check", "result", "passed"), checks), "",
            "Round trips measured by the robots, which are threads of one process on the same "
            "machine and send the next step at once; and time inside the monitor.\n",
            markdown_table(("imagining", "concurrent robots", "updates", "load", "p50 (ms)",
                            "p99 (ms)", "monitor p50 (ms)", "monitor p99 (ms)"), latencies), "",
            "Resources of the service process.\n",
            markdown_table(("when", "file descriptors", "threads", "RSS (MiB)"),
                           [tuple(asdict(used).values()) for used in self.used]), "",
            "Misbehaving peers, response of the service, and time until it.\n",
            markdown_table(("peer", "response", "s", "correct"), outcomes), "",
        ])  # fmt: skip


def usage(process: psutil.Process, when: str, *, at_most: int | None = None) -> Usage:
    """Resources of the service, after waiting up to 30 s for `at_most` file descriptors."""
    end = time.monotonic() + 30
    while at_most is not None and process.num_fds() > at_most and time.monotonic() < end:
        time.sleep(0.1)
    memory, fds = process.memory_info().rss / 2**20, process.num_fds()
    used = Usage(
        when=when, file_descriptors=fds, threads=process.num_threads(), rss_mib=round(memory, 1)
    )
    print(f"  {when}: {fds} file descriptors, {used.threads} threads, {memory:.0f} MiB", flush=True)
    return used


def leaks(used: Sequence[Usage]) -> list[Check]:
    """Check that file descriptors return to the initial number and memory stops growing."""
    first, *_, visited, again, _, _, heavy, last = used
    ends = f"{last.file_descriptors} and {first.file_descriptors}"
    what = "file descriptors at the end, at most those at the start"
    checks = [Check(what=what, found=ends, kept=last.file_descriptors <= first.file_descriptors)]
    for part, before, after in (
        ("second round of visitors", visited, again),
        ("third rounds of large messages", heavy, last),
    ):
        growth = after.rss_mib - before.rss_mib
        what = f"memory over the {part}: at most {MAX_GROWTH_MIB:g} MiB more"
        found = f"{growth:+.1f} MiB"
        checks.append(Check(what=what, found=found, kept=growth <= MAX_GROWTH_MIB))
    return checks
