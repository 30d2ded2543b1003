"""`worldmodel train` as a command: what it says, and how it stops and goes on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState

from worldmodel.cli import main
from worldmodel.model import WorldModel

Trajectories = Callable[..., object]

PRESET = (
    "from dataclasses import replace\n"
    "from worldmodel.training.presets import PRESETS, SMOKE\n"
    "from worldmodel.training.config import LoopConfig\n"
    "loop = LoopConfig(steps=12, batch_size=2, checkpoint_every=5)\n"
    "names = ('tokenizer', 'dynamics', 'rollout', 'confidence', 'judge')\n"
    "PRESETS['brief'] = replace(SMOKE, image_height=16, clip_frames=4, horizon=3,\n"
    "    longest_start=2, **{name + '_loop': loop for name in names})\n"
)
"""A recipe of twelve steps a stage."""


@pytest.fixture(autouse=True)
def fresh_processes() -> object:
    yield
    PartialState._reset_state()


@pytest.fixture
def data(make_store: Callable[..., Path], make_scene: Callable[..., object]) -> Path:
    return make_store("data.zarr", *(make_scene(f"train/{i}", i) for i in range(6)))


def command(data: Path, out: Path, *options: str) -> list[str]:
    return ["train", "--data", str(data), "--preset", "brief", "--out", str(out), *options]


def launch(arguments: list[str]) -> subprocess.Popen[str]:
    code = PRESET + "import sys\nfrom worldmodel.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no {path} after a minute"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_stopped_twice_ends_where_a_run_in_one_go_does(data: Path, tmp_path: Path) -> None:
    """SIGTERM while the dynamics train, kill -9 while the confidence head does."""
    whole = launch(command(data, tmp_path / "whole"))
    assert whole.communicate(timeout=120)[0].startswith("Model: ")

    stopped = launch(command(data, tmp_path / "stopped"))
    wait_for(tmp_path / "stopped" / "dynamics" / "events", stopped)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 0, err
    assert out.startswith("Stopped at SIGTERM, after step ")
    assert out.endswith("; run the same command to resume.\n")

    killed = launch(command(data, tmp_path / "stopped"))
    wait_for(tmp_path / "stopped" / "confidence" / "step-5", killed)
    killed.kill()
    killed.communicate()
    last = launch(command(data, tmp_path / "stopped"))
    assert last.communicate(timeout=120)[0].startswith("Model: ")
    one, other = (WorldModel.load(tmp_path / name / "model") for name in ("whole", "stopped"))
    expected = one.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_no_hours_left_is_no_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["train", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*options, "--max-hours", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == str(tmp_path / "run" / "model")
    assert result["stopped"].startswith("Stopped after `--max-hours 0`, after step 0 of 60 of ")


def test_negative_hours_are_refused(
    data: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    options = ["train", "--data", data, "--out", tmp_path / "run", "--max-hours", "-1"]
    assert refused(*options) == "`max_hours` must not be negative, got -1.0."
    assert not (tmp_path / "run").exists()
