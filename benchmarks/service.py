"""The monitor as a service under load and abuse: nothing lost, mixed up, leaked or hung.

Starts `worldmodel watch --listen` in a process of its own, then
1. 20 robots send 500 steps each at once, as fast as they can. Every robot's frames are of its own
   colour, and the answer of step t must be that of the same monitor called directly on that frame;
2. 1,000 robots connect, ask once and leave;
3. peers misbehave in every way; each must be answered or closed;
4. the process is killed (SIGKILL); every answered verdict must be in its log.

Prints the service's file descriptors and memory between the parts. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from worldmodel.calibration import load_trust
from worldmodel.model import WorldModel, checkpoint_folder
from worldmodel.monitor_client import MonitorClient, Verdict, pack, unpack
from worldmodel.monitors.alerts import read_alerts
from worldmodel.monitors.monitor import RuntimeMonitor

KEY = "benchmark"
ACTION = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
PATIENCE_S = 120.0
"""A peer that is neither answered nor closed for so long has found a hang."""
NUM_PICTURES = 8
"""Different frames per robot."""


@contextmanager
def service(model: str, out: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The service on a free port; its address and process."""
    command = [sys.executable, "-m", "worldmodel", "watch", "--model", model]
    command += ["--listen", "127.0.0.1:0", "--out", str(out)]
    environment = {**os.environ, "WORLDMODEL_API_KEY": KEY}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield line.removeprefix("Listening at ").split(";")[0], psutil.Process(process.pid)
        finally:
            process.kill()


def usage(process: psutil.Process) -> str:
    """File descriptors, threads and memory of the service."""
    memory = process.memory_info().rss / 2**20
    return (
        f"{process.num_fds()} file descriptors, {process.num_threads()} threads, {memory:.0f} MiB"
    )


def pictures(robot: int, shape: tuple[int, ...]) -> np.ndarray:
    """A robot's frames: grain of its own brightness."""
    rng = np.random.default_rng(robot)
    return rng.normal(40 + 8 * robot, 12, (NUM_PICTURES, *shape)).clip(0, 255).astype(np.uint8)


def ride(client: MonitorClient, robot: int, num_steps: int) -> list[Verdict]:
    """The verdicts on a robot's steps."""
    frames = pictures(robot, tuple(client.metadata["frame_shape"]))
    return [client.update(frames[step % NUM_PICTURES], ACTION) for step in range(num_steps)]


def count_wrong(monitor: RuntimeMonitor, robot: int, shown: list[Verdict]) -> tuple[int, int]:
    """Verdicts lost, and verdicts that are not those of the monitor called directly."""
    local, frames = monitor.sibling(), pictures(robot, monitor.frame_shape_)
    lost = sum(verdict.step != step for step, verdict in enumerate(shown))
    mixed = 0
    for step, verdict in enumerate(shown):
        wanted = local.update(frames[step % NUM_PICTURES], ACTION)
        mixed += not (
            (verdict.level, verdict.causes) == (wanted.level, wanted.causes)
            and verdict.evidence == {name: vars(found) for name, found in wanted.evidence.items()}
            and np.array_equal(verdict.trust_map, wanted.trust_map)
        )
    return lost, mixed


def crowd(address: str, monitor: RuntimeMonitor, num_robots: int, num_steps: int) -> bool:
    """All robots at once; whether every answer came and was the right one."""
    shown: dict[int, list[Verdict]] = {}
    waits: dict[int, np.ndarray] = {}

    def robot(number: int) -> None:
        with MonitorClient(address, api_key=KEY, timeout_s=PATIENCE_S) as client:
            update, times = client.update, []

            def timed(frames: np.ndarray, action: np.ndarray) -> Verdict:
                started = time.perf_counter()
                verdict = update(frames, action)
                times.append(time.perf_counter() - started)
                return verdict

            client.update = timed  # type: ignore[method-assign]
            shown[number] = ride(client, number, num_steps)
            waits[number] = np.array(times)

    started = time.perf_counter()
    threads = [threading.Thread(target=robot, args=(number,)) for number in range(num_robots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    wrong = [count_wrong(monitor, number, shown.get(number, [])) for number in range(num_robots)]
    answered = sum(map(len, shown.values()))
    lost = num_robots * num_steps - answered + sum(lost for lost, _ in wrong)
    mixed = sum(mixed for _, mixed in wrong)
    wait = 1000 * np.concatenate(list(waits.values()))
    inside = 1000 * np.array([v.latency_s for verdicts in shown.values() for v in verdicts])
    print(
        f"{num_robots} robots x {num_steps} steps: {answered} answers in {seconds:.1f} s, {lost} "
        f"lost, {mixed} mixed up; a robot waited {np.median(wait):.1f} ms (p50), "
        f"{np.quantile(wait, 0.99):.1f} ms (p99); monitor alone {np.median(inside):.1f} ms (p50), "
        f"{np.quantile(inside, 0.99):.1f} ms (p99)"
    )
    return lost == mixed == 0


def come_and_go(address: str, num_robots: int) -> bool:
    """Connect, ask once and leave; whether everyone was answered."""
    answered = 0
    for number in range(num_robots):
        with MonitorClient(address, api_key=KEY, timeout_s=PATIENCE_S) as client:
            answered += ride(client, number % 20, 1)[0].step == 0
    print(f"{num_robots} connects and disconnects: {answered} answered")
    return answered == num_robots


def says(send: Callable[[ClientConnection], None]) -> Callable[[str], str]:
    """What the service does about a peer that sends something."""

    def outcome(address: str) -> str:
        headers = {"Authorization": f"Api-Key {KEY}"}
        with connect(
            address, additional_headers=headers, compression=None, close_timeout=5
        ) as peer:
            peer.recv(timeout=PATIENCE_S)
            try:
                send(peer)
                reply = unpack(bytes(peer.recv(timeout=PATIENCE_S)))
            except ConnectionClosed as ending:
                return "no goodbye" if ending.rcvd is None else str(ending.rcvd)
            return f"answer: {reply.get('error') or reply['causes']}"

    return outcome


def wrong_key(address: str) -> str:
    """What the service says to a peer with another key."""
    try:
        with MonitorClient(address, api_key="wrong"):
            return "let in"
    except InvalidStatus as refused:
        return f"refused: HTTP {refused.response.status_code}"


def raw(data: bytes, *, half_close: bool) -> Callable[[str], str]:
    """What becomes of a bare TCP connection that sends `data`, and then nothing."""

    def outcome(address: str) -> str:
        host, port = address.removeprefix("ws://").split(":")
        started = time.perf_counter()
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as peer:
            peer.sendall(data)
            if half_close:
                peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
        return f"closed after {time.perf_counter() - started:.1f} s"

    return outcome


def upgrade() -> bytes:
    """A websocket's opening request."""
    return (
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Api-Key {KEY}\r\n\r\n"
    ).encode()


OBJECTS = {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}
ABUSES: dict[str, Callable[[str], str]] = {
    "wrong key": wrong_key,
    "text": says(lambda peer: peer.send("hello")),
    "no msgpack": says(lambda peer: peer.send(b"\xc1" * 100)),
    "cut off msgpack": says(lambda peer: peer.send(pack({"observation": ACTION})[:-3])),
    "no observation": says(lambda peer: peer.send(pack({"obs": 1}))),
    "array of objects": says(lambda peer: peer.send(pack({"observation": OBJECTS}))),
    "frame of NaN": says(lambda peer: peer.send(pack({"observation": ACTION * np.nan}))),
    "17 MiB": says(lambda peer: peer.send(bytes(17 * 2**20))),
    "no HTTP": raw(b"\x00" * 1000, half_close=False),
    "half-closed before the handshake": raw(b"GET / HT", half_close=True),
    "half-closed after the handshake": raw(upgrade(), half_close=True),
    "half-closed within a message": raw(upgrade() + b"\x82\xfe\xff", half_close=True),
    "silent before the handshake": raw(b"", half_close=False),
    "silent within a message": raw(upgrade() + b"\x82\xfe\xff", half_close=False),
}
"""What peers get wrong -> what the service does about it."""
SLOW = ("silent before the handshake", "silent within a message")
"""Abuses that end only when the service's own patience does: 10 s and about 40 s."""


def abuse(address: str, *, quick: bool) -> bool:
    """Every abuse at once; whether each was answered or closed."""
    outcomes: dict[str, str] = {}

    def one(name: str) -> None:
        try:
            outcomes[name] = ABUSES[name](address)
        except ConnectionResetError:
            outcomes[name] = "closed"
        except TimeoutError:
            outcomes[name] = "HANGS"

    names = [name for name in ABUSES if not (quick and name in SLOW)]
    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        print(f"  {name}: {outcomes.get(name, 'FAILED')}")
    return all(outcomes.get(name, "let in") not in ("HANGS", "let in") for name in names)


def killed(address: str, process: psutil.Process, out: Path) -> bool:
    """Whether the log holds every verdict that a robot got before the service was killed."""
    before = set(out.glob("*.jsonl"))
    with MonitorClient(address, api_key=KEY, timeout_s=PATIENCE_S) as client:
        shown = ride(client, 0, 50)
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = client.update(pictures(0, tuple(client.metadata["frame_shape"]))[0], ACTION)
    (file,) = set(out.glob("*.jsonl")) - before
    kept = [alert.verdict.level for alert in read_alerts(file)]
    print(
        f"kill -9 after 50 answers: {len(kept)} in the log; the robot was then told "
        f"{after.level.name.lower()}: {', '.join(after.causes)}"
    )
    return kept == [verdict.level for verdict in shown] and after.level.name == "STOP"


def main() -> int:
    """Run all parts; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tabletop", help="checkpoint folder or name")
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, no slow peers")
    options = parser.parse_args()
    num_steps, num_visits = (50, 100) if options.quick else (500, 1000)
    folder = checkpoint_folder(options.model)
    model = WorldModel.load(folder)
    monitor = load_trust(model, folder).monitor
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, websockets {version('websockets')}, msgpack "
        f"{version('msgpack')}, torch {version('torch')}, OMP_NUM_THREADS="
        f"{os.environ.get('OMP_NUM_THREADS')}; model {options.model}, frames "
        f"{monitor.frame_shape_}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "log"
        with service(options.model, out) as (address, process):
            print(f"start: {usage(process)}")
            passed = [crowd(address, monitor, 20, num_steps)]
            print(f"after the crowd: {usage(process)}")
            for visits in (num_visits, num_visits):
                passed.append(come_and_go(address, visits))
                print(f"after the visits: {usage(process)}")
            passed.append(abuse(address, quick=options.quick))
            print(f"after the abuse: {usage(process)}")
            passed.append(killed(address, process, out))
    print("all checks passed" if all(passed) else "A CHECK FAILED")
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
