"""What a step of the monitor costs beside a robot: time, and memory that must stay flat.

    python -m benchmarks.speed.monitor          # about ten minutes, if nothing else runs
    python -m benchmarks.speed.monitor --quick  # a minute; writes no file

The shipped tabletop model and monitor, simulated nominal episodes that neither has seen. Every
update without imagined frames takes turns with its features alone, with one round trip through the
tokenizer and with a plain encode of the same frame. Then updates that check what the model claimed
of a frame take turns with the imagination of the next one. On one thread and on two, in a process
each. Then memory over 100,000 updates whose features are remembered from the first time a
frame was shown, to keep it short, over 5,000 whose features are computed, and over 2,000 beside the
model. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.provenance import RESULTS, git_commit, hardware
from worldmodel.calibration.calibrated import load_calibration
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.envs.collect import Collection
from worldmodel.evaluation.simulate import simulate
from worldmodel.model import WorldModel
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.networks.images import to_model
from worldmodel.runtime.live import online_monitor

SEED = 5_000_011
"""Of the simulated episodes."""
BAR_MS = 10.0
"""Bar of p50 and p99."""
MAX_GROWTH_MIB = 8.0
"""Most by which memory may grow after the first tenth of the updates."""
WARM_UP = 50
UPDATE = "update"
CHECK, IMAGINE = "update that checks a claim", "imagining the next frame"


@dataclass(frozen=True, kw_only=True)
class LatencySize:
    """How much is measured."""

    episodes: int = 8
    updates: int = 1000
    remembered: int = 100_000
    computed: int = 5000
    beside: int = 2000
    limit_s: float = 600.0
    """Timing ends after so long, with the updates it has: two threads on a machine whose cores are
    taken wait for one another, a hundred times longer than they work."""


QUICK = LatencySize(
    episodes=2, updates=100, remembered=5000, computed=200, beside=100, limit_s=60.0
)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one thing; by the clock on the wall, and of CPU time of all threads."""

    what: str
    updates: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    update_ratio: float
    """Median over turns of the update's time over this one's, of the same turn."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """MiB that the process holds after so many updates."""

    features: str
    updates: list[int]
    rss_mib: list[float]

    @property
    def growth_mib(self) -> float:
        """After the first tenth of the updates."""
        return self.rss_mib[-1] - self.rss_mib[0]


@dataclass(frozen=True, kw_only=True)
class MonitorStep:
    """What a robot sees and is told to do."""

    first: bool
    """Whether an episode starts here."""
    frame: np.ndarray
    action: np.ndarray


class Remembered:
    """A feature function that computes nothing twice."""

    def __init__(self, features: Callable[..., Any]) -> None:
        self.features, self.known, self.calls = features, dict[tuple[bytes, ...], Any](), 0

    def __call__(self, *values: np.ndarray) -> Any:
        self.calls += 1
        key = tuple(np.asarray(value).tobytes() for value in values)
        if key not in self.known:
            self.known[key] = self.features(*values)
        return self.known[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.features, name)


def nominal_steps(model: WorldModel, episodes: int) -> list[MonitorStep]:
    """The frames and actions of simulated episodes, one after the other."""
    scene = Collection(renderer="ray", seed=SEED)
    (found,) = simulate(model, [("nominal", scene, episodes)], workers=1).values()
    return [
        MonitorStep(first=t == 0, frame=frame.numpy(), action=action.numpy())
        for episode in found
        for t, (frame, action) in enumerate(
            zip(episode.frames, episode.batch.actions[0], strict=True)
        )
    ]


def rehearse(monitor: RuntimeMonitor, steps: Sequence[MonitorStep]) -> Iterator[MonitorStep]:
    """The steps over and over; the monitor is told where an episode starts."""
    for step in itertools.cycle(steps):
        if step.first:
            monitor.reset()
        yield step


def parts(
    model: WorldModel, monitor: RuntimeMonitor, step: MonitorStep, levels: Counter[str]
) -> dict[str, Callable[[], Any]]:
    """What is timed on a step; the update counts its level."""
    tokenizer, features, views = model.tokenizer, monitor.features, torch.from_numpy(step.frame)
    assert features is not None, "the shipped monitor has features"

    def update() -> None:
        levels[monitor.update(step.frame, step.action).level.name.lower()] += 1

    return {
        UPDATE: update,
        "its features alone": lambda: features(step.frame),
        "tokenizer round trip": lambda: tokenizer.decode(tokenizer.encode(to_model(views))),
        "encode": lambda: tokenizer.encode(to_model(views)),
    }


def elapsed_ms(run: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of one call, by the clock on the wall and of CPU time."""
    started, worked = time.perf_counter(), time.process_time()
    run()
    return 1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - worked)


@torch.inference_mode()
def timings(
    model: WorldModel, monitor: RuntimeMonitor, steps: Sequence[MonitorStep], size: LatencySize
) -> tuple[list[Timing], Counter[str]]:
    """Each of the parts in turns, and how often the monitor gave each level."""
    levels, rows = Counter[str](), list[dict[str, tuple[float, float]]]()
    for number, step in enumerate(timed(monitor, steps, size)):
        todo = list(parts(model, monitor, step, levels).items())
        turn = number % len(todo)  # nothing is always the first to see a frame
        rows.append({name: elapsed_ms(run) for name, run in todo[turn:] + todo[:turn]})
    return summed_up(rows, [name for name, _ in todo]), levels


def beside_model(
    live: RuntimeMonitor, steps: Sequence[MonitorStep], size: LatencySize
) -> list[Timing]:
    """An update that checks what the model claimed of the frame, then the next claim."""
    rows = [
        {
            CHECK: elapsed_ms(partial(live.update, step.frame, step.action)),
            IMAGINE: elapsed_ms(live.imagine),
        }
        for step in timed(live, steps, size)
    ]
    return summed_up(rows, [CHECK, IMAGINE])


def timed(
    monitor: RuntimeMonitor, steps: Sequence[MonitorStep], size: LatencySize
) -> Iterator[MonitorStep]:
    """As many steps as are to be timed, or as there is time for."""
    asked, end = WARM_UP + size.updates, time.monotonic() + size.limit_s
    for number, step in enumerate(itertools.islice(rehearse(monitor, steps), asked)):
        if time.monotonic() > end and number > 2 * WARM_UP:
            return
        yield step


def summed_up(rows: Sequence[dict[str, tuple[float, float]]], names: Sequence[str]) -> list[Timing]:
    """The times of each part; the first one is the update that the others are compared with."""
    found = []
    for name in names:
        wall, cpu = np.array([row[name] for row in rows[WARM_UP:]]).T
        whole = np.array([row[names[0]][0] for row in rows[WARM_UP:]])
        found.append(
            Timing(
                what=name,
                updates=len(wall),
                p50_ms=float(np.median(wall)),
                p99_ms=float(np.quantile(wall, 0.99)),
                max_ms=float(wall.max()),
                cpu_p50_ms=float(np.median(cpu)),
                cpu_p99_ms=float(np.quantile(cpu, 0.99)),
                update_ratio=float(np.median(whole / wall)),
            )
        )
    return found


def memory(
    what: str, monitor: RuntimeMonitor, steps: Sequence[MonitorStep], updates: int
) -> Memory:
    """What the process holds, ten times along the way."""
    process, found = psutil.Process(), Memory(features=what, updates=[], rss_mib=[])
    for number, step in enumerate(itertools.islice(rehearse(monitor, steps), updates), 1):
        monitor.update(step.frame, step.action)
        if number % (updates // 10) == 0:
            found.updates.append(number)
            found.rss_mib.append(round(process.memory_info().rss / 2**20, 2))
            print(f"{what}: {number} updates, {found.rss_mib[-1]} MiB", file=sys.stderr, flush=True)
    return found


def measure(name: str, size: LatencySize, threads: int, *, with_memory: bool) -> dict[str, Any]:
    """Everything that one process measures, as plain JSON values."""
    torch.set_num_threads(threads)
    folder = checkpoint_folder(name)
    model = WorldModel.load(folder)
    calibration = load_calibration(model, folder)
    monitor, live = calibration.monitor, online_monitor(model, calibration)
    steps, load = nominal_steps(model, size.episodes), os.getloadavg()[0]
    times, levels = timings(model, monitor, steps, size)
    times += beside_model(live, steps, size)
    found: dict[str, Any] = {
        "threads": threads,
        "hardware": hardware(),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "levels": levels,
        "timings": [asdict(timing) for timing in times],
        "memory": [],
    }
    if with_memory:
        held = [memory("computed", monitor, steps, size.computed)]
        held.append(memory("computed, beside the model", live, steps, size.beside))
        assert monitor.features is not None
        remembered = Remembered(monitor.features)
        monitor.features = remembered
        held.append(memory("remembered", monitor, steps, size.remembered))
        assert remembered.calls >= size.remembered, "the monitor looks at every frame"
        found["memory"] = [asdict(one) for one in held]
    return found


def in_process(name: str, threads: int, *, quick: bool) -> dict[str, Any]:
    """`measure` in a process of its own: libraries ask for the number of threads but once."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.monitor",
        "--model",
        name,
        "--threads",
        str(threads),
    ]
    variables = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    answer = subprocess.run(
        command + ["--quick"] * quick,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=3000,
    )
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    print("\n".join(timing_lines([found])), file=sys.stderr, flush=True)
    return found


def timing_lines(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: what each part takes."""
    columns = ("p50_ms", "p99_ms", "max_ms", "cpu_p50_ms", "cpu_p99_ms")
    yield (
        "| threads | part | updates | p50 (ms) | p99 | max | CPU p50 | CPU p99 "
        "| update / this, median |"
    )
    yield "|" + "---|" * 9
    for run in runs:
        for row in run["timings"]:
            times = " | ".join(f"{row[key]:.2f}" for key in columns)
            what = f"{run['threads']} | {row['what']} | {row['updates']}"
            yield f"| {what} | {times} | {row['update_ratio']:.2f} |"


def memory_lines(held: Sequence[Memory]) -> Iterator[str]:
    """Markdown: what the process holds."""
    yield "| features | updates | RSS (MiB) |"
    yield "|---|---|---|"
    for one in held:
        for number, mib in zip(one.updates, one.rss_mib, strict=True):
            yield f"| {one.features} | {number} | {mib:.1f} |"


def bar_lines(runs: Sequence[dict[str, Any]], held: Sequence[Memory]) -> Iterator[tuple[str, bool]]:
    """What was asked, and whether it was reached."""
    for run in runs:
        (row,) = (row for row in run["timings"] if row["what"] == UPDATE)
        for key in ("p50_ms", "p99_ms"):
            what = f"{run['threads']} thread(s): {key[:3]} {row[key]:.2f} ms, bar {BAR_MS:g} ms"
            yield what, row[key] <= BAR_MS
    for one in held:
        what = f"memory, {one.features} features: {one.growth_mib:+.1f} MiB from "
        what += f"{one.updates[0]} to {one.updates[-1]} updates, bar {MAX_GROWTH_MIB:g} MiB"
        yield what, one.growth_mib <= MAX_GROWTH_MIB


def write_up(facts: dict[str, Any], runs: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """The tables as Markdown, and whether every bar was reached."""
    held = [Memory(**one) for run in runs for one in run["memory"]]
    bars = list(bar_lines(runs, held))
    told = "; ".join(f"{name}: {value}" for name, value in facts.items())
    levels = "; ".join(
        f"{run['threads']} thread(s): "
        + ", ".join(f"{count} {name}" for name, count in run["levels"].items())
        + f", load before and after {run['load']}"
        for run in runs
    )
    return (
        "\n".join([
            "# Time and memory of the monitor\n", f"{told}.\n",
            *(f"- {what}: {'kept' if kept else 'MISSED'}" for what, kept in bars), "",
            "Times by the clock on the wall, and of CPU time, which other work on the machine "
            "disturbs less; the parts take turns on the same frames. Levels given, warm-up "
            f"included: {levels}.\n",
            *timing_lines(runs), "",
            "Memory of the process, on one thread. Features: computed, or remembered from the "
            "first time that a frame was shown.\n",
            *memory_lines(held),
        ]) + "\n",
        all(kept for _, kept in bars),
    )  # fmt: skip


def main() -> int:
    """Measure, print, write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="tabletop", help="checkpoint folder or name")
    parser.add_argument("--quick", action="store_true", help="few updates, and no file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--threads", type=int, help="measure in this process, and print JSON")
    given = parser.parse_args()
    size = QUICK if given.quick else LatencySize()
    if given.threads:
        alone = given.threads == 1
        print(json.dumps(measure(given.model, size, given.threads, with_memory=alone)))
        return 0
    facts = {
        "checkpoint": given.model,
        "updates": size.updates,
        "episodes": f"{size.episodes} simulated, seed {SEED}",
        "cores": os.cpu_count(),
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy")),
        "commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    runs = [in_process(given.model, threads, quick=given.quick) for threads in (2, 1)]
    facts["hardware"] = runs[0]["hardware"].split(",")[0]
    text, kept = write_up(facts, runs)
    print(text)
    if not given.quick:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "monitor_latency.md").write_text(text)
        made = {**facts, "runs": runs}
        (given.out / "monitor_latency.json").write_text(json.dumps(made, indent=1) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
