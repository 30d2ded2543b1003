"""`worldmodel watch --listen`: serves until SIGTERM, and refuses what it cannot promise."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from worldmodel.cli import main
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.model import WorldModel
from worldmodel.monitor_client import Level, MonitorClient, Verdict
from worldmodel.trust import Trust

Refused = Callable[..., str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def patient_client(port: int) -> MonitorClient:
    """A client of a server that is about to start."""
    while True:
        try:
            return MonitorClient(f"ws://127.0.0.1:{port}", timeout_s=60.0)
        except ConnectionRefusedError:
            threading.Event().wait(0.02)


def test_a_robot_gets_the_monitors_verdicts_until_sigterm(
    calibrated: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, shown, told = free_port(), list[Verdict](), dict[str, object]()
    frames = np.asarray(open_dataset(scenes).episode("train/7").frames["front"][:6]).copy()
    action = np.zeros(7, np.float32)

    def robot() -> None:
        try:
            with patient_client(port) as client:
                told.update(client.metadata)
                shown.extend(client.update({"front": frame}, action) for frame in frames)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=robot)
    thread.start()
    out = tmp_path / "log"
    command = ["watch", "--model", str(calibrated), "--listen", f"127.0.0.1:{port}"]
    assert main([*command, "--out", str(out)]) == 0
    thread.join()
    assert capsys.readouterr().out.startswith(f"Listening at ws://127.0.0.1:{port}; ")
    assert told["cameras"] == ["front"]
    assert told["frame_shape"] == [1, 16, 16, 3]
    monitor = Trust.load(calibrated / "monitor", WorldModel.load(calibrated)).monitor
    wanted = [monitor.update(frame[None], action) for frame in frames]
    assert [(v.level, v.causes) for v in shown] == [(v.level, v.causes) for v in wanted]
    assert any(verdict.level == Level.TRUST for verdict in shown)
    assert len(next(out.glob("session-*.jsonl")).read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "Give either `--data` with episodes to watch, or `--listen` HOST:PORT."),
        (["--data", "x", "--listen", "127.0.0.1:0"], "Give either `--data`"),
        (["--listen", "127.0.0.1:0", "--json"], "`--only` and `--json` go with `--data`"),
        (["--listen", "127.0.0.1"], "`listen` must be HOST:PORT"),
        (["--listen", "0.0.0.0:0"], "an API key is required: set WORLDMODEL_API_KEY"),
        (["--listen", "127.0.0.1:0", "--max-sessions", "0"], "`max_sessions` must be at least 1"),
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
    assert text in refused("watch", "--model", calibrated, *options)


def test_a_port_in_use_is_refused(calibrated: Path, refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "address already in use" in refused(
            "watch", "--model", calibrated, "--listen", f"127.0.0.1:{port}"
        )
