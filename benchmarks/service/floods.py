"""Measure the latency of one robot while another address floods the monitor service.

    OMP_NUM_THREADS=1 python -m benchmarks.service.floods          # five minutes on two cores
    OMP_NUM_THREADS=1 python -m benchmarks.service.floods --quick  # one minute; writes no file

The flooding process has the lowest priority and the address 127.0.0.2; it reconnects as soon as it
is cut off. The robot has 127.0.0.1 and pauses for 20 ms after each answer. Rounds with and without
flood alternate, because the speed of a shared machine drifts. Exit code 1 if an answer is lost or
wrong, or if a flood more than doubles the robot's median latency.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.markdown import markdown_table
from benchmarks.provenance import RESULTS, git_commit, hardware, today, versions
from benchmarks.service.flooder import FLOODS, KEY
from benchmarks.service.run import PATIENCE_S, count_wrong, drive, service
from worldmodel.calibration.calibrated import load_calibration
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.model import WorldModel
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.runtime.client import MonitorClient

NONE = "none"
MAX_RATIO = 2.0
"""Largest allowed median latency, relative to the rounds without flood."""
ROBOT = 7
"""Number of the robot whose frames are sent."""
DEFAULT_CONNECTS = ("--max-connects-per-minute", "120")


@dataclass
class FloodRounds:
    """All rounds with one flood."""

    flood: str
    waits_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    """Lost, misnumbered or mixed-up answers."""
    connects: int = 0
    """Connections that the flooding process opened."""
    sent_mib: float = 0.0

    def row(self) -> tuple[object, ...]:
        """Row of the table."""
        waits = np.array(self.waits_ms)
        times = (np.median(waits), np.quantile(waits, 0.99), waits.max())
        numbers = (f"{ms:.1f}" for ms in times)
        traffic = (self.connects, f"{self.sent_mib:.1f}")
        return self.flood, len(waits), self.wrong, *numbers, *traffic


@contextmanager
def flooding(rounds: FloodRounds, address: str) -> Iterator[None]:
    """Run the flooding process; adds its traffic to `rounds`."""
    if rounds.flood == NONE:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.service.flooder", rounds.flood, address]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
            told, _ = process.communicate(timeout=PATIENCE_S)
            connects, sent_mib = told.split()
            rounds.connects += int(connects)
            rounds.sent_mib += float(sent_mib)
        finally:
            process.kill()


def one_round(rounds: FloodRounds, address: str, monitor: RuntimeMonitor, steps: int) -> None:
    """Drive one robot next to the flood."""
    with MonitorClient(address, KEY, timeout_s=PATIENCE_S) as client, flooding(rounds, address):
        run = drive(client, ROBOT, lambda step: step < steps, gap_s=0.02)
    lost = steps - len(run.verdicts)
    rounds.wrong += lost + sum(count_wrong(monitor, ROBOT, run))
    rounds.waits_ms += [round(1e3 * wait, 2) for wait in run.waits_s]


def measure(name: str, *, num_rounds: int, steps: int) -> list[FloodRounds]:
    """Alternate rounds with every flood and without."""
    folder = checkpoint_folder(name)
    monitor = load_calibration(WorldModel.load(folder), folder).monitor
    results = {kind: FloodRounds(kind) for kind in (NONE, *FLOODS)}
    with (
        tempfile.TemporaryDirectory() as temporary,
        service(name, Path(temporary), "--no-imagine", *DEFAULT_CONNECTS) as (address, _),
    ):
        one_round(FloodRounds(NONE), address, monitor, steps)  # warm-up
        for _ in range(num_rounds):
            for rounds in results.values():
                one_round(rounds, address, monitor, steps)
                print(*rounds.row(), flush=True)
    return list(results.values())


def text(results: list[FloodRounds], facts: dict[str, str]) -> str:
    """Table as Markdown."""
    head = ("flood", "updates", "lost or wrong", "p50 (ms)", "p99 (ms)", "longest (ms)",
            "connects of the flood", "MiB sent by it")  # fmt: skip
    return "\n".join([
        "# The monitor service under floods\n",
        f"{'; '.join(f'{name}: {value}' for name, value in facts.items())}.\n",
        "Round trips of one robot while another address floods the service, which limits small "
        "frames, and connects of an address to 120 a minute.\n",
        markdown_table(head, [rounds.row() for rounds in results]), "",
    ])  # fmt: skip


def main() -> int:
    """Run, print and write; exit code 1 if a check fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="tabletop", help="checkpoint folder or name")
    parser.add_argument("--quick", action="store_true", help="a quarter of the rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    facts = {
        "command": "`python -m benchmarks.service.floods`",
        "checkpoint": options.model,
        "hardware": hardware(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "versions": versions("torch", "numpy", "websockets", "msgpack"),
        "commit": git_commit(),
        "date": today(),
    }
    results = measure(options.model, num_rounds=1 if options.quick else 4, steps=100)
    print(text(results, facts))
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "service_floods.md").write_text(text(results, facts), encoding="utf-8")
        record = {"facts": facts, "rounds": [asdict(rounds) for rounds in results]}
        file = options.out / "service_floods.json"
        file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    calm, *floods = (float(np.median(rounds.waits_ms)) for rounds in results)
    kept = max(floods) <= MAX_RATIO * calm and not any(rounds.wrong for rounds in results)
    print("Every check passed." if kept else "A check FAILED.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
