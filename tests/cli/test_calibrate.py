"""`worldmodel calibrate`: which episodes it uses, what it writes and prints, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from worldmodel.cli import main
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.model import WorldModel
from worldmodel.monitors.recalibration import HorizonRecalibration
from worldmodel.trust import Trust

Refused = Callable[..., str]
UNTOUCHED = [f"train/{i}" for i in range(6, 10)]


def record(folder: Path) -> dict:
    return json.loads((folder / "calibration.json").read_text())


def test_the_training_store_gives_untouched_episodes_and_familiar_ones(calibrated: Path) -> None:
    made = record(calibrated / "monitor")
    assert made["calibration"] == UNTOUCHED
    assert made["reference"] == [f"train/{i}" for i in range(4)]
    assert made["alphas"] == {"notice": 0.2, "degrade": 0.2, "stop": 0.2}  # 1 / (4 + 1)
    trust = Trust.load(calibrated / "monitor", WorldModel.load(calibrated))
    assert trust.horizon == 4
    assert trust.monitor.judge_.num_calibration_ == 4
    assert trust.monitor.judge_.max_frames_ == 12
    thresholds = {level.name.lower(): t for level, t in trust.monitor.judge_.thresholds_.items()}
    assert made["thresholds"] == thresholds


def test_it_prints_its_tables_and_what_limits_them(
    model: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["calibrate", "--model", str(model), "--data", str(scenes), "--horizon", "9"]
    assert main([*argv, "--recalibration", "beta"]) == 0
    captured = capsys.readouterr()
    assert (
        "4 calibration episodes support an alarm rate of 0.2 at best; 0.05 needs 19."
        in captured.err
    )
    assert "has 12 frames, so rollouts reach horizon 8, not 9." in captured.err
    assert "was trained up to horizon 4, not 8" in captured.err
    assert "cross-fitted" in captured.out
    for stage in ("as stated", "recalibrated"):
        for horizon in (1, 4, 8):
            assert f"\n{stage}, horizon {horizon} " in captured.out
    assert "horizon 16" not in captured.out
    assert captured.out.endswith(f"\nMonitor: {model / 'monitor'}\n")
    curves = Trust.load(model / "monitor", WorldModel.load(model)).recalibration
    assert isinstance(curves, HorizonRecalibration)
    assert curves.method == "beta"
    check_trusted(captured.out, record(model / "monitor"))


def check_trusted(printed: str, made: dict) -> None:
    """4 episodes are too few for 0.05 and 0.1, and just enough for 0.2."""
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert lines["0.05"] == ["needs", "19", "episodes", "4", "n/a"]
    assert lines["0.1"] == ["needs", "9", "episodes", "4", "n/a"]
    assert made["recalibration"] == "beta"
    assert [row["alpha"] for row in made["trusted"]] == [0.05, 0.1, 0.2]
    assert made["trusted"][0]["threshold"] is None
    last = made["trusted"][2]
    assert (last["confidence"], last["epsilon"], last["num_episodes"]) == ("as stated", 0.5, 4)
    shown = "trust nothing" if last["threshold"] > 1 else f"{last['threshold']:.2f}"
    assert lines["0.2"] == [*shown.split(), "4", f"{last['share_trusted']:.3f}"]


def test_json_is_what_it_keeps(
    model: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elsewhere"
    argv = ["calibrate", "--model", model, "--data", scenes, "--horizon", "4", "--out", out]
    assert main([*map(str, argv), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("monitor") == str(out)
    assert printed == record(out)
    rows = {(row["confidence"], row["horizon"]): row for row in printed["table"]}
    assert set(rows) == {(s, h) for s in ("as stated", "recalibrated") for h in (1, 4)}
    # 2 stretches of 4 frames per episode (of 8), 10 levels, 2 channels of 4 x 4 positions
    assert rows["as stated", 4]["num_forecasts"] == 4 * 2 * 10 * 2 * 4 * 4
    assert not (model / "monitor").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_an_unknown_curve_is_refused(model: Path, scenes: Path, refused: Refused) -> None:
    message = refused("calibrate", "--model", model, "--data", scenes, "--recalibration", "plat")
    assert message == (
        "Recalibration `method` must be one of ['isotonic', 'platt', 'beta', 'temperature'], "
        "got 'plat'. Did you mean 'platt'?"
    )
    assert not (model / "monitor").exists()


def test_other_data_are_halved_and_a_second_run_replaces_the_first(
    model: Path, make_store: Callable[..., Path], make_scene: Callable[..., Trajectory]
) -> None:
    data = make_store("other.zarr", *(make_scene(f"o/{i}", 20 + i) for i in range(7)))
    (model / "monitor").mkdir()
    (model / "monitor" / "monitor.json").write_text("{}")
    (model / "monitor" / "leftover").write_text("of an earlier run")
    assert main(["calibrate", "--model", str(model), "--data", str(data), "--horizon", "4"]) == 0
    made = record(model / "monitor")
    assert made["calibration"] == ["o/1", "o/3", "o/5"]
    assert made["reference"] == ["o/0", "o/2", "o/4", "o/6"]
    assert not (model / "monitor" / "leftover").exists()
    curves = load_file(model / "monitor" / "recalibration.safetensors")
    assert {name.split("/")[0] for name in curves} == {"1", "2", "3", "4"}  # bands up to horizon 4


def test_a_reference_of_ones_own_is_used_whole(
    model: Path,
    scenes: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
) -> None:
    data = make_store("other.zarr", *(make_scene(f"o/{i}", 20 + i) for i in range(3)))
    argv = ["calibrate", "--model", model, "--data", data, "--reference", scenes, "--horizon", "4"]
    assert main(list(map(str, argv))) == 0
    made = record(model / "monitor")
    assert made["calibration"] == ["o/0", "o/1", "o/2"]
    assert made["reference"] == [f"train/{i}" for i in range(4)]  # what the dynamics learned from


def test_an_alpha_that_so_few_episodes_cannot_support_is_refused(
    model: Path, scenes: Path, refused: Refused
) -> None:
    message = refused("calibrate", "--model", model, "--data", scenes, "--alpha", "0.05")
    assert message == (
        "`alpha`=0.05 needs 19 calibration episodes, got 4, which support 0.2 at best."
    )
    assert not (model / "monitor").exists()


def test_wrong_input_is_refused_and_nothing_written(
    model: Path,
    scenes: Path,
    tmp_path: Path,
    refused: Refused,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
) -> None:
    (tmp_path / "empty").mkdir()
    learned = make_store("scenes.zarr", *(make_scene(f"train/{i}", i) for i in range(6)))
    single = make_store("single.zarr", make_scene("a", 1))
    brief = make_store("brief.zarr", *(make_scene(f"b/{i}", i, num_frames=4) for i in range(3)))
    before = sorted(tmp_path.rglob("*"))
    start = ("calibrate", "--model", model, "--data")
    assert "nowhere does not exist" in refused(*start, tmp_path / "nowhere")
    assert "empty is empty" in refused(*start, tmp_path / "empty")
    assert "holds no episode that the model was not trained on" in refused(*start, learned)
    assert "at least 2 familiar episodes" in refused(*start, single)
    assert "has more than 4 frames: nothing to imagine" in refused(*start, brief)
    assert "must hold other episodes" in refused(*start, single, "--reference", single)
    assert "is no monitor" in refused(*start, scenes, "--out", model)
    assert "at least 1 frame" in refused(*start, scenes, "--horizon", "0")
    assert "No checkpoint in" in refused("calibrate", "--model", tmp_path, "--data", scenes)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json"])
def test_a_corrupt_checkpoint_is_refused(
    file: str, model: Path, scenes: Path, refused: Refused
) -> None:
    content = (model / file).read_bytes()
    (model / file).write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refused("calibrate", "--model", model, "--data", scenes)
    assert not (model / "monitor").exists()


def test_data_of_another_rate_are_refused_with_both_specs(
    slow_model: Path, scenes: Path, refused: Refused
) -> None:
    message = refused("calibrate", "--model", slow_model, "--data", scenes)
    assert message.startswith("No lossless conversion of actions from ActionSpec(")
    assert "rate_hz=5.0" in message
    assert "rate_hz=15.0" in message
