"""The monitor as a service under load and abuse: nothing lost, mixed up, leaked or hung.

    OMP_NUM_THREADS=1 python -m benchmarks.service.run          # about fifteen minutes on two cores
    OMP_NUM_THREADS=1 python -m benchmarks.service.run --quick  # two minutes; writes no file

Starts `worldmodel serve` in a process of its own, lets one robot and then five send 100
steps each, and starts it again with `--no-imagine`. Then
1. one robot sends 500 steps, as fast as it can;
2. 20 robots send 500 steps each at once. Every robot's frames are its own, and the answer to each
   step must carry its number and be that of the same monitor called directly on that frame;
3. 1,000 robots connect, ask once and leave, and 1,000 more leave without a word; twice;
4. peers misbehave in every way at once, while a well-behaved robot is watched beside them; those
   that send much do it sixty times more, as memory may grow before it stays the same;
5. the process is killed (SIGKILL) while five robots are watched: every verdict that one of them got
   must be in its log, and all must be told at once.

Every wait has a limit. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil

from benchmarks.provenance import RESULTS, git_commit, hardware
from benchmarks.service.abuse import ACTION, HEAVY, PEERS, SLOW, Outcome, abuse, upgrade
from benchmarks.service.tables import Check, Latency, Report, Usage, leaks, usage
from worldmodel.calibration.calibrated import load_calibration
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.model import WorldModel
from worldmodel.monitors.alert_log import read_alerts
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Verdict
from worldmodel.runtime.client import MonitorClient, MonitorError
from worldmodel.runtime.live import online_monitor

KEY = "benchmark"
PATIENCE_S = 60.0
"""Longest wait for any answer."""
NUM_PICTURES = 8
"""Different frames per robot."""
NUM_KILLED = 5
"""Robots watched when the service is killed."""


@dataclass(frozen=True, kw_only=True)
class LoadSize:
    """How much is asked of the service."""

    robots: int = 20
    steps: int = 500
    visits: int = 1000
    rounds: int = 20
    limit_s: int = 3000
    """The whole run is given up after so long."""


@dataclass
class Ride:
    """One robot's verdicts, and how long it waited for each."""

    shown: list[dict[str, Any]]
    waits_s: list[float]
    failure: str = ""
    failed_after_s: float = 0.0


@contextmanager
def service(model: str, out: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """The service on a free port; its address and process."""
    command = [sys.executable, "-m", "worldmodel", "serve", "--model", model, *options]
    command += ["--listen", "127.0.0.1:0", "--out", str(out)]
    environment = {**os.environ, "WORLDMODEL_API_KEY": KEY}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(PATIENCE_S):
                    raise TimeoutError(f"The service did not start within {PATIENCE_S:g} s.")
            line = process.stdout.readline()
            yield line.removeprefix("Listening at ").split(";")[0], psutil.Process(process.pid)
        finally:
            process.kill()


def pictures(robot: int, shape: tuple[int, ...]) -> np.ndarray:
    """A robot's frames: grain of its own brightness."""
    rng = np.random.default_rng(robot)
    return rng.normal(40 + 8 * robot, 12, (NUM_PICTURES, *shape)).clip(0, 255).astype(np.uint8)


def ride(
    client: MonitorClient, robot: int, more: Callable[[int], bool], *, gap_s: float = 0.0
) -> Ride:
    """Ask step by step while `more(step)`, until something fails."""
    frames = pictures(robot, tuple(client.metadata["frame_shape"]))
    done, step = Ride([], []), 0
    while more(step):
        started = time.perf_counter()
        try:
            verdict = client.update(frames[step % NUM_PICTURES], ACTION)
        except MonitorError as error:
            done.failure, done.failed_after_s = str(error), time.perf_counter() - started
            break
        done.waits_s.append(time.perf_counter() - started)
        done.shown.append(verdict)
        step += 1
        time.sleep(gap_s)
    return done


def count_wrong(monitor: RuntimeMonitor, robot: int, done: Ride) -> tuple[int, int]:
    """Answers whose number is not that of the step, and those that are not the monitor's own."""
    local, frames = monitor.sibling(), pictures(robot, monitor.frame_shape_)
    numbered, mixed = 0, 0
    for step, verdict in enumerate(done.shown):
        numbered += (verdict["step"], verdict["id"]) != (step, step + 1)
        wanted = local.update(frames[step % NUM_PICTURES], ACTION)
        mixed += Verdict.from_dict(verdict) != wanted
    return numbered, mixed


def in_threads(task: Callable[[int], None], count: int, limit_s: float) -> None:
    """Run `task(0)`, `task(1)`, ... at once; whatever takes too long is left behind."""
    threads = [threading.Thread(target=task, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def crowd(
    address: str, monitor: RuntimeMonitor, num_robots: int, steps: int
) -> tuple[Check, Latency]:
    """All robots at once; whether every answer came and was the right one."""
    done: dict[int, Ride] = {}

    def robot(number: int) -> None:
        with MonitorClient(address, KEY, timeout_s=PATIENCE_S) as client:
            done[number] = ride(client, number, lambda step: step < steps)

    in_threads(robot, num_robots, limit_s=steps * PATIENCE_S / 20)
    rides = [done.get(number, Ride([], [])) for number in range(num_robots)]
    wrong = [count_wrong(monitor, number, one) for number, one in enumerate(rides)]
    lost = num_robots * steps - sum(len(one.shown) for one in rides)
    numbered, mixed = (sum(part) for part in zip(*wrong, strict=True))
    # Were the answers to two robots the same, a mix-up would go unseen.
    distinct = len({str(one.shown[0]["evidence"]) for one in rides if one.shown})
    wait = 1e3 * np.concatenate([one.waits_s for one in rides])
    inside = 1e3 * np.array([verdict["latency_s"] for one in rides for verdict in one.shown])
    imagines = monitor.claims is not None
    latency = Latency(
        imagines=imagines, robots=num_robots, updates=len(wait), load=round(os.getloadavg()[0], 1),
        p50_ms=float(np.median(wait)), p99_ms=float(np.quantile(wait, 0.99)),
        monitor_p50_ms=float(np.median(inside)), monitor_p99_ms=float(np.quantile(inside, 0.99)),
    )  # fmt: skip
    found = (
        f"{lost} lost, {numbered} misnumbered, {mixed} mixed up; {distinct} of {num_robots} robots "
        "told apart by their first answer"
    )
    kept = lost == numbered == mixed == 0 and distinct == num_robots
    what = f"{num_robots} robots x {steps} updates at once{', imagining' * imagines}"
    return Check(what=what, found=found, kept=kept), latency


def come_and_go(address: str, visits: int) -> Check:
    """Connect, ask once and leave; and connect and leave without a word."""
    host, port = address.removeprefix("ws://").split(":")
    answered = greeted = 0
    for number in range(visits):
        with MonitorClient(address, KEY, timeout_s=PATIENCE_S) as client:
            answered += ride(client, number % 20, lambda step: step < 1).shown[0]["step"] == 0
    for _ in range(visits):
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as peer:
            peer.sendall(upgrade(KEY))
            greeted += peer.recv(12) == b"HTTP/1.1 101"
            reset = struct.pack("ii", 1, 0)  # closes at once, and the other end gets an error
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    return Check(
        what=f"{visits} connects and disconnects, and {visits} without a goodbye",
        found=f"{answered} answered, {greeted} greeted",
        kept=answered == greeted == visits,
    )


def beside_abuse(
    address: str, monitor: RuntimeMonitor, *, quick: bool
) -> tuple[list[Check], list[Outcome]]:
    """Every abuse at once, and one robot beside them that must be served as if alone."""
    over, done = threading.Event(), list[Ride]()

    def bystander() -> None:
        with MonitorClient(address, KEY, timeout_s=PATIENCE_S) as client:
            done.append(ride(client, 7, lambda _: not over.is_set(), gap_s=0.1))

    thread = threading.Thread(target=bystander, daemon=True)
    thread.start()
    names = [name for name in PEERS if not (quick and name in SLOW)]
    outcomes = abuse(address, KEY, names)
    over.set()
    thread.join(PATIENCE_S)
    one = done[0] if done else Ride([], [], "it hangs")
    wrong = sum(count_wrong(monitor, 7, one))
    found = f"{len(one.shown)} updates, {wrong} wrong, longest wait {max(one.waits_s):.2f} s"
    kept = not one.failure and wrong == 0
    return [
        told_apart(outcomes),
        Check(what="a robot beside them", found=f"{found} {one.failure}".strip(), kept=kept),
    ], outcomes


def heavy_rounds(
    address: str, process: psutil.Process, rounds: int, rest: int
) -> tuple[Check, Usage]:
    """Peers that send much, over and over; and the least memory held after a round.

    How many messages of 16 MiB meet is chance, and the allocator keeps their space for a while.
    """
    outcomes, rss = [], []
    for _ in range(rounds):
        outcomes += abuse(address, KEY, HEAVY)
        rss.append(process.memory_info().rss / 2**20)
    used = usage(process, f"after {rounds} rounds of much, least memory held", at_most=rest)
    return told_apart(outcomes), replace(used, rss_mib=round(min(rss), 1))


def told_apart(outcomes: Sequence[Outcome]) -> Check:
    """Whether the service did what it must about every peer."""
    fine = sum(outcome.kept for outcome in outcomes)
    found = f"{fine} of {len(outcomes)} answered or closed as they must be"
    return Check(
        what=f"{len(outcomes)} peers that misbehave", found=found, kept=fine == len(outcomes)
    )


def killed(address: str, process: psutil.Process, out: Path, steps: int) -> list[Check]:
    """Whether the logs hold every verdict that robots got before the service was killed."""
    before, done = set(out.glob("*.jsonl")), dict[int, Ride]()
    clients = [MonitorClient(address, KEY, timeout_s=PATIENCE_S) for _ in range(NUM_KILLED)]

    def robot(number: int) -> None:
        done[number] = ride(clients[number], number, lambda _: True)

    def kill() -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and num_lines() < NUM_KILLED * steps:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)

    def num_lines() -> int:
        return sum(file.read_bytes().count(b"\n") for file in set(out.glob("*.jsonl")) - before)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    in_threads(robot, NUM_KILLED, limit_s=2 * PATIENCE_S)
    killer.join(PATIENCE_S)
    for client in clients:
        client.close()
    files = sorted(
        set(out.glob("*.jsonl")) - before, key=lambda file: int(file.stem.split("-")[-1])
    )
    logs = [[alert.verdict for alert in read_alerts(file)] for file in files]
    rides = [done.get(number, Ride([], [])) for number in range(NUM_KILLED)]
    answers = [[Verdict.from_dict(verdict) for verdict in one.shown] for one in rides]
    missing = sum(
        len(got) - sum(a == b for a, b in zip(got, kept, strict=False))
        for got, kept in zip(answers, logs, strict=True)
    )
    unasked = sum(len(kept) - len(got) for got, kept in zip(answers, logs, strict=True))
    told = sum("no connection" in one.failure for one in rides)
    slowest = max(one.failed_after_s for one in rides)
    return [
        Check(
            what=f"kill -9 while {NUM_KILLED} robots are watched",
            found=f"{sum(map(len, answers))} answers, {missing} of them not in the logs; "
            f"{unasked} more judged and logged, not yet answered",
            kept=missing == 0 and sum(map(len, answers)) > NUM_KILLED and unasked <= NUM_KILLED,
        ),
        Check(
            what="the robots are told",
            found=f"{told} of {NUM_KILLED} at most {slowest:.2f} s after asking",
            kept=told == NUM_KILLED,
        ),
    ]


def measure(name: str, size: LoadSize, facts: dict[str, Any], *, quick: bool) -> Report:
    """Run all parts."""
    folder = checkpoint_folder(name)
    model = WorldModel.load(folder)
    calibration = load_calibration(model, folder)
    monitor = calibration.monitor
    report = Report({**facts, "frames": monitor.frame_shape_}, [], [], [], [])
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "log"

        def crowds(watcher: RuntimeMonitor, robots: int, steps: int) -> None:
            for number in (1, robots):
                check, latency = crowd(address, watcher, number, steps)
                report.checks.append(check)
                report.latencies.append(latency)
                print(check, latency, flush=True)

        with service(name, out) as (address, _):
            crowds(online_monitor(model, calibration), size.robots // 4, size.steps // 5)
        with service(name, out, "--no-imagine") as (address, process):
            report.used.append(usage(process, "start"))
            rest = report.used[0].file_descriptors
            crowds(monitor, size.robots, size.steps)
            report.used.append(usage(process, "after the crowd", at_most=rest))
            for turn in ("first", "second"):
                report.checks.append(come_and_go(address, size.visits))
                when = f"after the {turn} {2 * size.visits} visitors"
                report.used.append(usage(process, when, at_most=rest))
            checks, report.outcomes = beside_abuse(address, monitor, quick=quick)
            report.checks += checks
            report.used.append(usage(process, "after the abuse", at_most=rest))
            weighed = [heavy_rounds(address, process, size.rounds, rest) for _ in range(3)]
            for check, used in weighed:
                report.checks.append(check)
                report.used.append(used)
            report.checks += leaks(report.used)
            report.checks += killed(address, process, out, size.steps // 10)
    return report


def give_up(*_: object) -> NoReturn:
    """End a run that takes too long."""
    raise TimeoutError("The whole run took too long: something hangs.")


def main() -> int:
    """Run, print, write; 1 if a check failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="tabletop", help="checkpoint folder or name")
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, no slow peers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    size = LoadSize(steps=50, visits=100, rounds=10, limit_s=600) if given.quick else LoadSize()
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(size.limit_s)
    names = ("torch", "numpy", "websockets", "msgpack")
    facts = {
        "checkpoint": given.model,
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in names),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    report = measure(given.model, size, facts, quick=given.quick)
    print(report.text())
    if not given.quick:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "service.md").write_text(report.text())
        (given.out / "service.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    kept = all(check.kept for check in report.checks)
    print("Every check passed." if kept else "A check FAILED.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
