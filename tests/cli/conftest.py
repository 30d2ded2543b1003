"""A small world: scenes on disk, a model with random weights, and a monitor calibrated on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.frames import moving_square_on_noise
from tests.model_fixtures import (
    SMALL_CONFIDENCE,
    SMALL_DYNAMICS,
    SMALL_TOKENIZER,
    draw_weights,
)
from worldmodel.cli import main
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import ArrayFrames, Trajectory
from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig
from worldmodel.networks.tokenizer import Tokenizer

NUM_FRAMES = 12
SPLIT = {
    "dynamics": ["train/0", "train/1", "train/2", "train/3"],
    "confidence": ["train/4", "train/5"],
    "untouched": [],
}
"""Of the ten scenes, the last four are left to calibrate on."""


def scene(name: str, seed: int, *, num_frames: int = NUM_FRAMES, odd: bool = False) -> Trajectory:
    """A square that wanders over a grained ground; `odd`: the same in inverted colours."""
    frames, actions = moving_square_on_noise(num_frames, seed)
    return Trajectory(
        episode_id=name,
        source="made by a test",
        frames={"front": ArrayFrames(255 - frames if odd else frames)},
        actions=actions,
        action_valid=np.arange(num_frames) < num_frames - 1,
        states=None,
        action_spec=CANONICAL,
        instruction="move the square",
        rate_hz=5.0,
        success=None,
    )


@pytest.fixture
def make_scene() -> Callable[..., Trajectory]:
    """`make_scene(name, seed, num_frames=..., odd=...)`."""
    return scene


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """`make_store(name, *trajectories)`: a clip store of them."""

    def make(name: str, *trajectories: Trajectory) -> Path:
        store = ClipStore.create(
            tmp_path / name, cameras=("front",), action_spec=CANONICAL, rate_hz=5.0, encoding="raw"
        )
        for trajectory in trajectories:
            store.add(trajectory)
        return store.path

    return make


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes, of which `SPLIT` says what trained the model. Not to be written to."""
    path = tmp_path_factory.mktemp("data") / "scenes.zarr"
    store = ClipStore.create(
        path, cameras=("front",), action_spec=CANONICAL, rate_hz=5.0, encoding="raw"
    )
    for index in range(10):
        store.add(scene(f"train/{index}", index))
    return path


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights that claims to come from `scenes`. Not to be written to."""
    config = ModelConfig(
        dynamics=SMALL_DYNAMICS,
        confidence=SMALL_CONFIDENCE,
        image_size=(16, 16),
        cameras=("front",),
        action_spec=CANONICAL,
        trained_horizon=4,
        provenance={"data": "scenes.zarr", "split": SPLIT},
    )
    model = WorldModel(config, Tokenizer.from_config(SMALL_TOKENIZER))
    draw_weights(model)
    folder = tmp_path_factory.mktemp("models") / "model"
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def calibrated(untrained: Path, scenes: Path) -> Path:
    """The same checkpoint with a monitor. Not to be written to."""
    folder = untrained.parent / "calibrated"
    shutil.copytree(untrained, folder)
    assert main(["calibrate", "--model", str(folder), "--data", str(scenes), "--horizon", "4"]) == 0
    return folder


@pytest.fixture
def model(untrained: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be written to."""
    return Path(shutil.copytree(untrained, tmp_path / "model"))


@pytest.fixture
def slow_model(untrained: Path, tmp_path: Path) -> Path:
    """A checkpoint made for 15 Hz."""
    loaded = WorldModel.load(untrained)
    loaded.config = replace(loaded.config, action_spec=replace(CANONICAL, rate_hz=15.0))
    loaded.save(tmp_path / "slow")
    return tmp_path / "slow"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(*argv)`: run a command that must exit with 2; its one line on standard error."""

    def run(*argv: str | Path) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")

    return run
