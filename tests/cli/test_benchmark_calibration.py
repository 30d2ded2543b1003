"""Command line of `python -m benchmarks.calibration`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import PartialState

from benchmarks.calibration.__main__ import main
from worldmodel.training.config import LoopConfig
from worldmodel.training.presets import PRESETS, SMOKE


@pytest.fixture(autouse=True)
def fresh_processes() -> object:
    yield
    PartialState._reset_state()


@pytest.fixture
def data(
    make_store: Callable[..., Path],
    make_scene: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Six scenes, a preset of two steps per stage, and few bootstrap resamples."""
    monkeypatch.setattr("benchmarks.calibration.measures.NUM_RESAMPLES", 5)
    loop = LoopConfig(steps=2, batch_size=2)
    names = ("tokenizer", "dynamics", "rollout", "confidence", "judge")
    loops = {f"{name}_loop": loop for name in names}
    brief = replace(SMOKE, image_height=16, clip_frames=4, horizon=3, longest_start=2, **loops)
    monkeypatch.setitem(PRESETS, "brief", brief)
    return make_store("data.zarr", *(make_scene(f"train/{i}", i) for i in range(6)))


def command(data: Path, out: Path, *options: str) -> list[str]:
    words = ["--data", str(data), "--preset", "brief", "--folds", "2", "--steps", "2"]
    only = ["--only", "own head", "base rate"]
    return [*words, "--out", str(out), *only, *options]


@pytest.mark.slow  # trains two models; the parts have tests in tests/benchmarks and tests/training
def test_left_out_episodes_are_judged_and_the_run_is_not_repeated(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(data, out)) == 0
    text = capsys.readouterr().out
    assert "left out" in text
    assert "the model's own head, isotonic" in text
    results = json.loads((out / "results.json").read_text())
    assert [r["rows"][0]["num_episodes"] for r in results] == [6] * 6
    assert (out / "errors.png").stat().st_size > 10_000
    assert (out / "reliability.png").stat().st_size > 10_000
    trained = (out / "folds" / "fold-0" / "run" / "model" / "config.json").stat().st_mtime_ns
    assert main(command(data, out, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == results
    again = (out / "folds" / "fold-0" / "run" / "model" / "config.json").stat().st_mtime_ns
    assert again == trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1"], "`--steps` and `--marked` must be at least 2"),
        (["--learn", "5"], "`--learn` must be at least 20"),
        (["--folds", "9"], "`folds` must be from 2 to 3"),
        (["--model", "nowhere"], "No checkpoint in 'nowhere'"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    words = command(data, tmp_path / "out", *options)
    if options[0] == "--model":
        words = [*options, "--out", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said


def test_results_of_other_settings_are_not_mixed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text("{}\n")
    assert main(command(data, out)) == 2
    assert "holds results of other settings" in capsys.readouterr().err
    assert (out / "settings.json").read_text() == "{}\n"
