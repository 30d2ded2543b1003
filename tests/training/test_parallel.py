import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from worldmodel.training.parallel import own_share, whole

SCRIPT = Path(__file__).with_name("parallel_run.py")
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "fsdp.yaml"
# Where there is no GPU, "multi_gpu" starts as many processes, which talk over gloo.
DDP = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
FSDP = ["--config_file", str(RECIPE)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parallel_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(
    options: list[str], out: Path, *, stop_after: int = 0, precision: str = "no"
) -> list[dict[str, Any]]:
    """Run the script by `accelerate launch` on two processes; what each of them wrote."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2",
        "--main_process_port", str(free_port()),
        str(SCRIPT), str(out), str(stop_after), precision,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"result-{rank}.pt", weights_only=True) for rank in (0, 1)]


def losses(folder: Path) -> list[float]:
    found = EventAccumulator(str(folder / "events")).Reload()
    return [event.value for event in found.Scalars("loss")]


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=atol, rtol=0, msg=name)


def test_two_processes_reach_the_loss_of_one(script: ModuleType, tmp_path: Path) -> None:
    """By `accelerate launch`: the same global batch, draws and losses; rounding differs."""
    expected = script.train(tmp_path / "one")
    first, second = launch(DDP, tmp_path)
    assert first["processes"] == 2
    assert not first["sharded"]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    assert_close(first["weights"], second["weights"], atol=0.0)
    # Muon rounds to bfloat16: equal up to a few of its steps.
    assert_close(first["weights"], expected, atol=0.02)


@pytest.mark.slow
def test_sharded_training_stops_resumes_and_ends_like_that_of_one_process(
    script: ModuleType, tmp_path: Path
) -> None:
    """FSDP on two processes over gloo: stopped after 5 steps, then continued from the file."""
    expected = script.train(tmp_path / "one")
    first, second = launch(FSDP, tmp_path, stop_after=5)
    assert first["sharded"]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    assert_close(first["weights"], second["weights"], atol=0.0)
    assert_close(first["weights"], expected, atol=0.02)
    # The checkpoint holds whole tensors: one process goes on from it, or could.
    stored = torch.load(tmp_path / "run" / "step-11" / "state.pt", weights_only=True)
    one = torch.load(tmp_path / "one" / "step-11" / "state.pt", weights_only=True)
    assert_close(stored["average"], one["average"], atol=0.02)
    shapes = [
        [tuple(value.shape) for state in optimizer["state"].values() for value in state.values()]
        for optimizer in (stored["optimizers"][0], one["optimizers"][0])
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_sharded_training_in_bf16_follows_that_of_one_process(
    script: ModuleType, tmp_path: Path
) -> None:
    """bfloat16 has 8 bits: losses near 1.5 agree to 2%."""
    script.train(tmp_path / "one", precision="bf16")
    launch(FSDP, tmp_path, precision="bf16")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=0.02)


def test_whole_gathers_nested_tensors_and_leaves_the_rest() -> None:
    tree = {"a": torch.arange(3.0), "b": [{"c": torch.ones(2), "lr": 0.1}]}
    copy = whole(tree)
    tree["a"] += 1  # type: ignore[operator]
    assert copy["a"].tolist() == [0.0, 1.0, 2.0]
    assert copy["b"][0]["lr"] == 0.1
    assert whole(tree, keep=False) == {"a": None, "b": [{"c": None, "lr": 0.1}]}
    assert torch.equal(own_share(torch.ones(2), torch.zeros(2)), torch.ones(2))
