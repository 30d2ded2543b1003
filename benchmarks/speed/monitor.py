"""Latency of a monitor update, and memory over many updates.

    python -m benchmarks.speed.monitor          # ten minutes on an idle machine
    python -m benchmarks.speed.monitor --quick  # a minute; writes no file

Uses the shipped tabletop model and monitor on held-out simulated nominal episodes. Updates without
predictions alternate with their features alone, a tokenizer round trip and an encoding of the same
frame. Then updates that check a prediction alternate with imagining the next frame. Runs on one
thread and on two, in separate processes. Memory is measured over 100,000 updates with cached
features (to save time), 5,000 with computed features, and 2,000 together with the model. Exit code
1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.provenance import RESULTS, git_commit, hardware, today, versions
from benchmarks.speed.monitor_steps import (
    SEED,
    CachedFeatures,
    MonitorStep,
    nominal_steps,
    rehearse,
)
from worldmodel.calibration.calibrated import load_calibration
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.model import WorldModel
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.networks.images import to_model
from worldmodel.runtime.live import online_monitor

LIMIT_MS = 10.0
"""Limit of p50 and p99."""
MAX_GROWTH_MIB = 8.0
"""Maximum memory growth after the first tenth of the updates."""
WARM_UP = 50
UPDATE = "update"
CHECK, IMAGINE = "update that checks a prediction", "imagining the next frame"


@dataclass(frozen=True, kw_only=True)
class LatencySize:
    """Size of the benchmark."""

    episodes: int = 8
    updates: int = 1000
    cached: int = 100_000
    computed: int = 5000
    with_model: int = 2000
    limit_s: float = 600.0
    """Time limit of the latency measurement; it then uses the updates so far. On a busy machine two
    threads can wait for each other a hundred times longer than they work."""


QUICK = LatencySize(
    episodes=2, updates=100, cached=5000, computed=200, with_model=100, limit_s=60.0
)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one part: wall-clock time, and CPU time of all threads."""

    what: str
    updates: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    update_ratio: float
    """Median over turns of the update's time divided by this part's time in the same turn."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the process in MiB by number of updates."""

    features: str
    updates: list[int]
    rss_mib: list[float]

    @property
    def growth_mib(self) -> float:
        """Growth after the first tenth of the updates."""
        return self.rss_mib[-1] - self.rss_mib[0]


def parts(
    model: WorldModel, monitor: RuntimeMonitor, step: MonitorStep, levels: Counter[str]
) -> dict[str, Callable[[], Any]]:
    """Timed parts of one step; the update counts its level."""
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
    """Milliseconds of one call: wall-clock and CPU time."""
    started, cpu_started = time.perf_counter(), time.process_time()
    run()
    return 1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - cpu_started)


@torch.inference_mode()
def timings(
    model: WorldModel, monitor: RuntimeMonitor, steps: Sequence[MonitorStep], size: LatencySize
) -> tuple[list[Timing], Counter[str]]:
    """Time all parts in turns; also counts the monitor's levels."""
    levels, rows = Counter[str](), list[dict[str, tuple[float, float]]]()
    for number, step in enumerate(timed(monitor, steps, size)):
        todo = list(parts(model, monitor, step, levels).items())
        turn = number % len(todo)  # rotate, so that no part is always first on a frame
        rows.append({name: elapsed_ms(run) for name, run in todo[turn:] + todo[:turn]})
    return summarize(rows, [name for name, _ in todo]), levels


def time_with_model(
    live: RuntimeMonitor, steps: Sequence[MonitorStep], size: LatencySize
) -> list[Timing]:
    """Time updates that check a prediction, and imagining the next frame."""
    rows = [
        {
            CHECK: elapsed_ms(partial(live.update, step.frame, step.action)),
            IMAGINE: elapsed_ms(live.imagine),
        }
        for step in timed(live, steps, size)
    ]
    return summarize(rows, [CHECK, IMAGINE])


def timed(
    monitor: RuntimeMonitor, steps: Sequence[MonitorStep], size: LatencySize
) -> Iterator[MonitorStep]:
    """Steps to time, up to the time limit."""
    count, end = WARM_UP + size.updates, time.monotonic() + size.limit_s
    for number, step in enumerate(itertools.islice(rehearse(monitor, steps), count)):
        if time.monotonic() > end and number > 2 * WARM_UP:
            return
        yield step


def summarize(rows: Sequence[dict[str, tuple[float, float]]], names: Sequence[str]) -> list[Timing]:
    """Summarise the times of each part; the first part is the update, the reference."""
    timings = []
    for name in names:
        wall, cpu = np.array([row[name] for row in rows[WARM_UP:]]).T
        update = np.array([row[names[0]][0] for row in rows[WARM_UP:]])
        timings.append(
            Timing(
                what=name,
                updates=len(wall),
                p50_ms=float(np.median(wall)),
                p99_ms=float(np.quantile(wall, 0.99)),
                max_ms=float(wall.max()),
                cpu_p50_ms=float(np.median(cpu)),
                cpu_p99_ms=float(np.quantile(cpu, 0.99)),
                update_ratio=float(np.median(update / wall)),
            )
        )
    return timings


def memory(
    what: str, monitor: RuntimeMonitor, steps: Sequence[MonitorStep], updates: int
) -> Memory:
    """Memory of the process, sampled ten times."""
    process, result = psutil.Process(), Memory(features=what, updates=[], rss_mib=[])
    for number, step in enumerate(itertools.islice(rehearse(monitor, steps), updates), 1):
        monitor.update(step.frame, step.action)
        if number % (updates // 10) == 0:
            result.updates.append(number)
            result.rss_mib.append(round(process.memory_info().rss / 2**20, 2))
            print(
                f"{what}: {number} updates, {result.rss_mib[-1]} MiB", file=sys.stderr, flush=True
            )
    return result


def measure(name: str, size: LatencySize, threads: int, *, with_memory: bool) -> dict[str, Any]:
    """Measure everything in this process; returns plain JSON values."""
    torch.set_num_threads(threads)
    folder = checkpoint_folder(name)
    model = WorldModel.load(folder)
    calibration = load_calibration(model, folder)
    monitor, live = calibration.monitor, online_monitor(model, calibration)
    steps, load = nominal_steps(model, size.episodes), os.getloadavg()[0]
    times, levels = timings(model, monitor, steps, size)
    times += time_with_model(live, steps, size)
    result: dict[str, Any] = {
        "threads": threads,
        "hardware": hardware(),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "levels": levels,
        "timings": [asdict(timing) for timing in times],
        "memory": [],
    }
    if with_memory:
        memories = [memory("computed", monitor, steps, size.computed)]
        memories.append(memory("computed, with the model", live, steps, size.with_model))
        assert monitor.features is not None
        cached = CachedFeatures(monitor.features)
        monitor.features = cached
        memories.append(memory("cached", monitor, steps, size.cached))
        assert cached.calls >= size.cached, "the monitor must compute features of every frame"
        result["memory"] = [asdict(one) for one in memories]
    return result


def in_process(name: str, threads: int, *, quick: bool) -> dict[str, Any]:
    """Run `measure` in a new process, because libraries read the number of threads only once."""
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
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    print("\n".join(timing_lines([result])), file=sys.stderr, flush=True)
    return result


def timing_lines(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown table of latencies."""
    columns = ("p50_ms", "p99_ms", "max_ms", "cpu_p50_ms", "cpu_p99_ms")
    yield (
        "| threads | part | updates | p50 (ms) | p99 | max | CPU p50 | CPU p99 "
        "| update / this part, median |"
    )
    yield "|" + "---|" * 9
    for run in runs:
        for row in run["timings"]:
            times = " | ".join(f"{row[key]:.2f}" for key in columns)
            what = f"{run['threads']} | {row['what']} | {row['updates']}"
            yield f"| {what} | {times} | {row['update_ratio']:.2f} |"


def memory_lines(memories: Sequence[Memory]) -> Iterator[str]:
    """Markdown table of memory."""
    yield "| features | updates | RSS (MiB) |"
    yield "|---|---|---|"
    for one in memories:
        for number, mib in zip(one.updates, one.rss_mib, strict=True):
            yield f"| {one.features} | {number} | {mib:.1f} |"


def limit_lines(
    runs: Sequence[dict[str, Any]], memories: Sequence[Memory]
) -> Iterator[tuple[str, bool]]:
    """Each limit, and whether it is kept."""
    for run in runs:
        (row,) = (row for row in run["timings"] if row["what"] == UPDATE)
        for key in ("p50_ms", "p99_ms"):
            what = f"{run['threads']} thread(s): {key[:3]} {row[key]:.2f} ms, limit {LIMIT_MS:g} ms"
            yield what, row[key] <= LIMIT_MS
    for one in memories:
        what = f"memory, {one.features} features: {one.growth_mib:+.1f} MiB from "
        what += f"{one.updates[0]} to {one.updates[-1]} updates, limit {MAX_GROWTH_MIB:g} MiB"
        yield what, one.growth_mib <= MAX_GROWTH_MIB


def write_up(facts: dict[str, Any], runs: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """Tables as Markdown, and whether every limit is kept."""
    memories = [Memory(**one) for run in runs for one in run["memory"]]
    limits = list(limit_lines(runs, memories))
    settings = "; ".join(f"{name}: {value}" for name, value in facts.items())
    levels = "; ".join(
        f"{run['threads']} thread(s): "
        + ", ".join(f"{count} {name}" for name, count in run["levels"].items())
        + f", load before and after {run['load']}"
        for run in runs
    )
    return (
        "\n".join([
            "# Time and memory of the monitor\n", f"{settings}.\n",
            *(f"- {what}: {'kept' if kept else 'EXCEEDED'}" for what, kept in limits), "",
            "Wall-clock time, and CPU time, which is less sensitive to other load; the parts "
            "alternate on the same frames. Levels of the verdicts, including warm-up: "
            f"{levels}.\n",
            *timing_lines(runs), "",
            "Memory of the process on one thread, with computed or cached features.\n",
            *memory_lines(memories),
        ]) + "\n",
        all(kept for _, kept in limits),
    )  # fmt: skip


def main() -> int:
    """Measure, print and write; exit code 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="tabletop", help="checkpoint folder or name")
    parser.add_argument("--quick", action="store_true", help="few updates; writes no file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--threads", type=int, help="measure in this process and print JSON")
    options = parser.parse_args()
    size = QUICK if options.quick else LatencySize()
    if options.threads:
        alone = options.threads == 1
        print(json.dumps(measure(options.model, size, options.threads, with_memory=alone)))
        return 0
    facts = {
        "checkpoint": options.model,
        "updates": size.updates,
        "episodes": f"{size.episodes} simulated, seed {SEED}",
        "cores": os.cpu_count(),
        "versions": versions("torch", "numpy", "scipy"),
        "commit": git_commit(),
        "date": today(),
    }
    runs = [in_process(options.model, threads, quick=options.quick) for threads in (2, 1)]
    facts["hardware"] = runs[0]["hardware"].split(",")[0]
    text, kept = write_up(facts, runs)
    print(text)
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "monitor_latency.md").write_text(text, encoding="utf-8")
        content = {**facts, "runs": runs}
        (options.out / "monitor_latency.json").write_text(
            json.dumps(content, indent=1) + "\n", encoding="utf-8"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
