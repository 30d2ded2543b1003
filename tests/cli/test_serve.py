"""`worldmodel serve`: serves until SIGTERM, and refuses what it cannot promise."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from worldmodel.calibration.calibrated import Calibration
from worldmodel.cli import main
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.model import WorldModel
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Verdict
from worldmodel.runtime.client import MonitorClient, MonitorError
from worldmodel.runtime.live import online_monitor

Refused = Callable[..., str]
ACTION = np.zeros(7, np.float32)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def patient_client(port: int) -> MonitorClient:
    """A client of a server that is about to start."""
    for _ in range(3000):
        try:
            return MonitorClient(f"ws://127.0.0.1:{port}", timeout_s=60.0)
        except MonitorError:
            threading.Event().wait(0.02)
    raise TimeoutError("the server did not start within a minute")


def serve_robot(
    frames: np.ndarray, *options: str
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """What a robot is told of its frames, and of the service, which then gets a SIGTERM."""
    port, shown, told = free_port(), list[dict[str, object]](), dict[str, object]()

    def robot() -> None:
        try:
            with patient_client(port) as client:
                told.update(client.metadata)
                shown.extend(client.update({"front": frame}, ACTION) for frame in frames)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=robot)
    thread.start()
    assert main(["serve", "--listen", f"127.0.0.1:{port}", *options]) == 0
    thread.join()
    return shown, told


def judged(monitor: RuntimeMonitor, frames: np.ndarray) -> list[Verdict]:
    return [monitor.update(frame[None], ACTION) for frame in frames]


def test_a_robot_gets_the_monitors_verdicts_until_sigterm(
    calibrated: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = np.asarray(open_dataset(scenes).episode("train/7").frames["front"][:6]).copy()
    out = tmp_path / "log"
    options = ("--model", str(calibrated), "--out", str(out))
    shown, told = serve_robot(frames, *options)
    assert capsys.readouterr().out.startswith("Listening at ws://127.0.0.1:")
    assert told["cameras"] == ["front"]
    assert told["frame_shape"] == [1, 16, 16, 3]
    assert told["deadline_s"] is None
    assert told["imagines"] is True
    model = WorldModel.load(calibrated)
    calibration = Calibration.load(calibrated / "monitor", model)
    wanted = judged(online_monitor(model, calibration), frames)
    assert [Verdict.from_dict(verdict) for verdict in shown] == wanted
    assert wanted[-1].evidence["surprise"].score is not None
    assert any(verdict["level"] == "trust" for verdict in shown)
    assert len(next(out.glob("session-*.jsonl")).read_text().splitlines()) == 6


def test_it_serves_without_imagining(calibrated: Path, scenes: Path) -> None:
    frames = np.asarray(open_dataset(scenes).episode("train/7").frames["front"][:3]).copy()
    shown, told = serve_robot(frames, "--model", str(calibrated), "--no-imagine")
    assert told["imagines"] is False
    monitor = Calibration.load(calibrated / "monitor", WorldModel.load(calibrated)).monitor
    assert [Verdict.from_dict(verdict) for verdict in shown] == judged(monitor, frames)


def test_a_verdict_past_the_deadline_is_a_stop(calibrated: Path, scenes: Path) -> None:
    """No monitor takes less than a microsecond."""
    frames = np.asarray(open_dataset(scenes).episode("train/7").frames["front"][:2]).copy()
    shown, told = serve_robot(frames, "--model", str(calibrated), "--deadline-ms", "0.001")
    assert told["deadline_s"] == 1e-6
    assert [verdict["level"] for verdict in shown] == ["stop", "stop"]
    assert all("monitor.deadline" in verdict["causes"] for verdict in shown)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--listen", "127.0.0.1:0", "--deadline-ms", "0"], "`deadline_ms` must be above 0"),
        (["--listen", "127.0.0.1:0", "--deadline-ms", "nan"], "`deadline_ms` must be above 0"),
        (["--listen", "127.0.0.1"], "`listen` must be HOST:PORT"),
        (["--listen", "0.0.0.0:0"], "an API key is required: set WORLDMODEL_API_KEY"),
        (["--listen", "127.0.0.1:0", "--max-sessions", "0"], "`max_sessions` must be at least 1"),
        (
            ["--listen", "127.0.0.1:0", "--max-sessions-per-address", "0"],
            "`max_sessions_per_address` must be at least 1",
        ),
        (
            ["--listen", "127.0.0.1:0", "--tls-cert", "cert.pem"],
            "`tls_cert` and `tls_key` must be given together",
        ),
        (
            ["--listen", "127.0.0.1:0", "--tls-cert", "none.pem", "--tls-key", "none.pem"],
            "`tls_cert` must be a PEM file, but there is none at none.pem",
        ),
    ],
)
def test_what_it_refuses(
    calibrated: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    text: str,
) -> None:
    monkeypatch.delenv("WORLDMODEL_API_KEY", raising=False)
    assert text in refused("serve", "--model", calibrated, *options)


def test_watch_listen_points_to_serve(refused: Refused) -> None:
    said = refused("watch", "--model", "tabletop", "--listen", "127.0.0.1:0")
    assert "`worldmodel serve --listen HOST:PORT`" in said


def test_a_port_in_use_is_refused(calibrated: Path, refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "address already in use" in refused(
            "serve", "--model", calibrated, "--listen", f"127.0.0.1:{port}"
        )
