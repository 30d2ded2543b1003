"""The examples of README.md run exactly as printed, and do what the text says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.envs.collect import Collection, collect

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
NUM_STEPS = 40


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stores that the examples open: a mixed, a good and a useless policy."""
    folder = tmp_path_factory.mktemp("readme")
    for name, policy, episodes in [
        ("tabletop", "clean", 1),
        ("mine", "clean", 2),
        ("yours", "frozen", 2),
    ]:
        collection = Collection(policy=policy, seed=7, renderer="ray", num_steps=NUM_STEPS)
        collect(folder / "runs" / f"{name}.zarr", collection, episodes=episodes)
    return folder


def run(block: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names that a printed example leaves behind."""
    exec(block, names)
    return names


def test_readme_has_three_examples_of_at_most_six_lines() -> None:
    assert len(BLOCKS) == 3
    assert all(sum(bool(line) for line in block.splitlines()) <= 6 for block in BLOCKS)


def test_examples_use_the_public_face_only() -> None:
    import worldmodel

    used = set(re.findall(r"worldmodel\.(\w+)", "\n".join(BLOCKS)))
    for names in re.findall(r"from worldmodel import (.*)", "\n".join(BLOCKS)):
        used |= set(names.split(", "))
    assert used
    assert used <= set(worldmodel.__all__)
    assert "from worldmodel." not in "\n".join(BLOCKS)


def test_imagining_beats_copying_and_its_confidence_comes_true(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    names = run(BLOCKS[0], {})
    episode, video = names["episode"], names["video"]
    real = episode.frames[4 : 4 + video.shape[1]].float()
    assert video.shape == (1, 9, *episode.frames.shape[1:])

    def squared_error(frames: torch.Tensor) -> float:
        return float((frames.float() - real).square().mean())

    assert squared_error(video[0]) < squared_error(episode.frames[3]) / 2  # 3 dB
    truth = episode.batch.latents[:, 4:13].float()
    came_true = (names["imagined"].latents - truth).abs() <= 0.5
    stated = names["confidence"].mean().item()
    assert stated == pytest.approx(came_true.float().mean().item(), abs=0.1)


def test_the_monitored_robot_hands_over_when_the_camera_goes_black(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    recorded = open_dataset("runs/tabletop.zarr").episode(0)
    frames = np.asarray(recorded.frames[next(iter(recorded.frames))][0:12])
    black_from = 8

    def pictures() -> Iterator[np.ndarray]:
        yield from frames[:black_from]
        yield from np.zeros_like(frames[black_from:])

    picture, action = pictures(), iter(recorded.actions)
    executed: list[np.ndarray] = []
    handed_over: list[tuple[str, ...]] = []
    run(
        BLOCKS[1],
        {
            "camera": lambda: next(picture),
            "policy": lambda: next(action),
            "step_robot": executed.append,
            "fallback": handed_over.append,
        },
    )
    assert len(executed) == black_from
    assert [causes[0] for causes in handed_over] == ["sensor.black"]


def test_comparing_policies_tells_a_good_one_from_a_useless_one(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    printed: list[object] = []
    result = run(BLOCKS[2], {"print": lambda *values: printed.extend(values)})["result"]
    mine, yours = result.policies
    assert (mine.name, mine.true.value, mine.imagined.value) == ("mine", 1.0, 1.0)
    assert (yours.name, yours.true.value, yours.imagined.value) == ("yours", 0.0, 0.0)
    assert printed == [mine.bounds, result.imagined]
    assert result.imagined.mean_absolute_error == 0
    assert result.imagined.pearson.value is None  # two policies
