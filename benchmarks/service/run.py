"""Test the monitor service under load and abuse: no answer lost or mixed up, no leak, no hang.

    OMP_NUM_THREADS=1 python -m benchmarks.service.run          # fifteen minutes on two cores
    OMP_NUM_THREADS=1 python -m benchmarks.service.run --quick  # two minutes; writes no file

Starts `worldmodel serve` in a separate process; one robot and then five send 100 steps each. Then
restarts it with `--no-imagine`:
1. One robot sends 500 steps as fast as it can.
2. 20 robots send 500 steps each at once, with different frames. Every answer must carry the step's
   number and equal the verdict of the same monitor called directly.
3. 1,000 robots connect, send one step and disconnect; 1,000 more disconnect without closing. Twice.
4. All misbehaving peers connect at once, next to one well-behaved robot. Peers with large messages
   repeat sixty times, because memory may grow before it settles.
5. The process is killed (SIGKILL) while five robots are connected: every verdict that a robot
   received must be in its log, and every robot must get an error at once.

Every wait has a timeout. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
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
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil

from benchmarks.provenance import RESULTS, git_commit, hardware, today, versions
from benchmarks.service.abuse import ACTION, HEAVY, PEERS, SLOW, Outcome, abuse, upgrade
from benchmarks.service.flooder import KEY
from benchmarks.service.tables import Check, Latency, ServiceReport, Usage, leaks, usage
from worldmodel.calibration.calibrated import load_calibration
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.model import WorldModel
from worldmodel.monitors.alert_log import read_alerts
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Verdict
from worldmodel.runtime.client import MonitorClient, MonitorError
from worldmodel.runtime.live import online_monitor

PATIENCE_S = 60.0
"""Timeout of any answer."""
NUM_PICTURES = 8
"""Distinct frames per robot."""
NUM_KILLED = 5
"""Robots connected when the service is killed."""
ONE_ADDRESS = ("--max-sessions-per-address", "32", "--max-connects-per-minute", "1000000")
"""All peers are on this machine."""


@dataclass(frozen=True, kw_only=True)
class LoadSize:
    """Size of the load test."""

    robots: int = 20
    steps: int = 500
    visits: int = 1000
    rounds: int = 20
    limit_s: int = 3000
    """Timeout of the whole run."""


@dataclass
class RobotRun:
    """Verdicts that one robot received, and its waiting times."""

    verdicts: list[dict[str, Any]]
    waits_s: list[float]
    failure: str = ""
    failed_after_s: float = 0.0


@contextmanager
def service(model: str, out: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start the service on a free port; yields its address and process."""
    command = [sys.executable, "-m", "worldmodel", "serve", "--model", model, *ONE_ADDRESS]
    command += ["--listen", "127.0.0.1:0", "--out", str(out), *options]
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


def noisy_frames(robot: int, shape: tuple[int, ...]) -> np.ndarray:
    """Frames of a robot: noise around a brightness of its own."""
    rng = np.random.default_rng(robot)
    return rng.normal(40 + 8 * robot, 12, (NUM_PICTURES, *shape)).clip(0, 255).astype(np.uint8)


def drive(
    client: MonitorClient, robot: int, more: Callable[[int], bool], *, gap_s: float = 0.0
) -> RobotRun:
    """Send steps while `more(step)`, until an error."""
    frames = noisy_frames(robot, tuple(client.metadata["frame_shape"]))
    run, step = RobotRun([], []), 0
    while more(step):
        started = time.perf_counter()
        try:
            verdict = client.update(frames[step % NUM_PICTURES], ACTION)
        except MonitorError as error:
            run.failure, run.failed_after_s = str(error), time.perf_counter() - started
            break
        run.waits_s.append(time.perf_counter() - started)
        run.verdicts.append(verdict)
        step += 1
        time.sleep(gap_s)
    return run


def count_wrong(monitor: RuntimeMonitor, robot: int, run: RobotRun) -> tuple[int, int]:
    """Count answers with a wrong number, and answers that differ from the monitor's verdict."""
    local, frames = monitor.sibling(), noisy_frames(robot, monitor.frame_shape_)
    misnumbered, mixed = 0, 0
    for step, verdict in enumerate(run.verdicts):
        misnumbered += (verdict["step"], verdict["id"]) != (step, step + 1)
        expected = local.update(frames[step % NUM_PICTURES], ACTION)
        mixed += Verdict.from_dict(verdict) != expected
    return misnumbered, mixed


def in_threads(task: Callable[[int], None], count: int, limit_s: float) -> None:
    """Run `task(0)`, `task(1)`, ... at once; threads beyond the limit are abandoned."""
    threads = [threading.Thread(target=task, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def crowd(
    address: str, monitor: RuntimeMonitor, num_robots: int, steps: int
) -> tuple[Check, Latency]:
    """Drive all robots at once; check that every answer arrives and is correct."""
    runs_by_robot: dict[int, RobotRun] = {}

    def robot(number: int) -> None:
        with MonitorClient(address, KEY, timeout_s=PATIENCE_S) as client:
            runs_by_robot[number] = drive(client, number, lambda step: step < steps)

    in_threads(robot, num_robots, limit_s=steps * PATIENCE_S / 20)
    runs = [runs_by_robot.get(number, RobotRun([], [])) for number in range(num_robots)]
    wrong = [count_wrong(monitor, number, run) for number, run in enumerate(runs)]
    lost = num_robots * steps - sum(len(run.verdicts) for run in runs)
    misnumbered, mixed = (sum(part) for part in zip(*wrong, strict=True))
    # If two robots had equal answers, a mix-up would go unnoticed.
    distinct = len({str(run.verdicts[0]["evidence"]) for run in runs if run.verdicts})
    wait = 1e3 * np.concatenate([run.waits_s for run in runs])
    inside = 1e3 * np.array([verdict["latency_s"] for run in runs for verdict in run.verdicts])
    imagines = monitor.claims is not None
    latency = Latency(
        imagines=imagines, robots=num_robots, updates=len(wait), load=round(os.getloadavg()[0], 1),
        p50_ms=float(np.median(wait)), p99_ms=float(np.quantile(wait, 0.99)),
        monitor_p50_ms=float(np.median(inside)), monitor_p99_ms=float(np.quantile(inside, 0.99)),
    )  # fmt: skip
    found = (
        f"{lost} lost, {misnumbered} misnumbered, {mixed} mixed up; {distinct} of {num_robots} "
        "robots distinguishable by their first answer"
    )
    kept = lost == misnumbered == mixed == 0 and distinct == num_robots
    what = f"{num_robots} concurrent robots x {steps} updates{', imagining' * imagines}"
    return Check(what=what, found=found, kept=kept), latency


def come_and_go(address: str, visits: int) -> Check:
    """Connect, send one step and disconnect; and connect and disconnect without closing."""
    host, port = address.removeprefix("ws://").split(":")
    answered = greeted = 0
    for number in range(visits):
        with MonitorClient(address, KEY, timeout_s=PATIENCE_S) as client:
            answered += drive(client, number % 20, lambda step: step < 1).verdicts[0]["step"] == 0
    for _ in range(visits):
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as peer:
            peer.sendall(upgrade(KEY))
            greeted += peer.recv(12) == b"HTTP/1.1 101"
            reset = struct.pack("ii", 1, 0)  # close with a reset, which is an error for the service
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    return Check(
        what=f"{visits} connections closed properly, and {visits} without closing",
        found=f"{answered} answered, {greeted} greeted",
        kept=answered == greeted == visits,
    )


def beside_abuse(
    address: str, monitor: RuntimeMonitor, *, quick: bool
) -> tuple[list[Check], list[Outcome]]:
    """Run all misbehaving peers at once next to one robot, which must not be affected."""
    over, runs = threading.Event(), list[RobotRun]()

    def bystander() -> None:
        with MonitorClient(address, KEY, timeout_s=PATIENCE_S) as client:
            runs.append(drive(client, 7, lambda _: not over.is_set(), gap_s=0.1))

    thread = threading.Thread(target=bystander, daemon=True)
    thread.start()
    names = [name for name in PEERS if not (quick and name in SLOW)]
    outcomes = abuse(address, KEY, names)
    over.set()
    thread.join(PATIENCE_S)
    run = runs[0] if runs else RobotRun([], [], "it hangs")
    wrong = sum(count_wrong(monitor, 7, run))
    found = f"{len(run.verdicts)} updates, {wrong} wrong, longest wait {max(run.waits_s):.2f} s"
    kept = not run.failure and wrong == 0
    return [
        check_outcomes(outcomes),
        Check(what="one robot next to them", found=f"{found} {run.failure}".strip(), kept=kept),
    ], outcomes


def heavy_rounds(
    address: str, process: psutil.Process, rounds: int, rest: int
) -> tuple[Check, Usage]:
    """Run peers with large messages repeatedly; returns the minimum memory after a round.

    The minimum: the number of concurrent 16 MiB messages is random, and the allocator frees late.
    """
    outcomes, rss = [], []
    for _ in range(rounds):
        outcomes += abuse(address, KEY, HEAVY)
        rss.append(process.memory_info().rss / 2**20)
    used = usage(process, f"after {rounds} rounds of large messages, minimum memory", at_most=rest)
    return check_outcomes(outcomes), replace(used, rss_mib=round(min(rss), 1))


def check_outcomes(outcomes: Sequence[Outcome]) -> Check:
    """Check that the service responded correctly to every peer."""
    correct = sum(outcome.kept for outcome in outcomes)
    found = f"{correct} of {len(outcomes)} answered or closed correctly"
    return Check(
        what=f"{len(outcomes)} misbehaving peers", found=found, kept=correct == len(outcomes)
    )


def killed(address: str, process: psutil.Process, out: Path, steps: int) -> list[Check]:
    """Kill the service; check that logs hold every verdict that robots received."""
    before, runs_by_robot = set(out.glob("*.jsonl")), dict[int, RobotRun]()
    clients = [MonitorClient(address, KEY, timeout_s=PATIENCE_S) for _ in range(NUM_KILLED)]

    def robot(number: int) -> None:
        runs_by_robot[number] = drive(clients[number], number, lambda _: True)

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
    runs = [runs_by_robot.get(number, RobotRun([], [])) for number in range(NUM_KILLED)]
    answers = [[Verdict.from_dict(verdict) for verdict in run.verdicts] for run in runs]
    missing = sum(
        len(received) - sum(a == b for a, b in zip(received, logged, strict=False))
        for received, logged in zip(answers, logs, strict=True)
    )
    unanswered = sum(
        len(logged) - len(received) for received, logged in zip(answers, logs, strict=True)
    )
    notified = sum("No connection" in run.failure for run in runs)
    slowest = max(run.failed_after_s for run in runs)
    return [
        Check(
            what=f"kill -9 with {NUM_KILLED} connected robots",
            found=f"{sum(map(len, answers))} answers, {missing} of them not in the logs; "
            f"{unanswered} more logged but not answered",
            kept=missing == 0 and sum(map(len, answers)) > NUM_KILLED and unanswered <= NUM_KILLED,
        ),
        Check(
            what="robots get an error",
            found=f"{notified} of {NUM_KILLED}, within {slowest:.2f} s of sending",
            kept=notified == NUM_KILLED,
        ),
    ]


def measure(name: str, size: LoadSize, facts: dict[str, Any], *, quick: bool) -> ServiceReport:
    """Run all parts of the test."""
    folder = checkpoint_folder(name)
    model = WorldModel.load(folder)
    calibration = load_calibration(model, folder)
    monitor = calibration.monitor
    report = ServiceReport({**facts, "frames": monitor.frame_shape_}, [], [], [], [])
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "log"

        def crowds(reference: RuntimeMonitor, robots: int, steps: int) -> None:
            for number in (1, robots):
                check, latency = crowd(address, reference, number, steps)
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
            heavy = [heavy_rounds(address, process, size.rounds, rest) for _ in range(3)]
            for check, used in heavy:
                report.checks.append(check)
                report.used.append(used)
            report.checks += leaks(report.used)
            report.checks += killed(address, process, out, size.steps // 10)
    return report


def give_up(*_: object) -> NoReturn:
    """Abort a run that exceeds its time limit."""
    raise TimeoutError("The run exceeded its time limit: something hangs.")


def main() -> int:
    """Run, print and write; exit code 1 if a check fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="tabletop", help="checkpoint folder or name")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the load, without slow peers"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    size = LoadSize(steps=50, visits=100, rounds=10, limit_s=600) if options.quick else LoadSize()
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(size.limit_s)
    facts = {
        "command": "`python -m benchmarks.service.run`",
        "checkpoint": options.model,
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "versions": versions("torch", "numpy", "websockets", "msgpack"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "commit": git_commit(),
        "date": today(),
    }
    report = measure(options.model, size, facts, quick=options.quick)
    print(report.text())
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "service.md").write_text(report.text(), encoding="utf-8")
        (options.out / "service.json").write_text(
            json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8"
        )
    kept = all(check.kept for check in report.checks)
    print("Every check passed." if kept else "A check FAILED.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
