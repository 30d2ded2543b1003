"""`worldmodel calibrate`: which episodes it uses, what it writes and prints, what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from worldmodel.calibration.calibrated import (
    Calibration,
    Checkpoint,
    save_calibration,
)
from worldmodel.calibration.features import FrameFeatures
from worldmodel.calibration.gate import Gate
from worldmodel.checkpoint import fingerprint
from worldmodel.cli import main
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.model import WorldModel
from worldmodel.monitors.nuisances import DEFAULTS, declared
from worldmodel.monitors.reliability.recalibration import HorizonRecalibration

Refused = Callable[..., str]
UNTOUCHED = [f"train/{i}" for i in range(6, 10)]


def record(folder: Path) -> dict:
    return json.loads((folder / "calibration.json").read_text())


def test_the_training_store_gives_untouched_episodes_and_familiar_ones(calibrated: Path) -> None:
    made = record(calibrated / "monitor")
    assert made["calibration"] == UNTOUCHED
    assert made["reference"] == [f"train/{i}" for i in range(4)]
    assert made["alphas"] == {"notice": 0.2, "degrade": 0.2, "stop": 0.2}  # 1 / (4 + 1)
    calibration = Calibration.load(calibrated / "monitor", WorldModel.load(calibrated))
    assert calibration.horizon == 4
    assert calibration.monitor.alarm_rule_.num_calibration_ == 4
    assert calibration.monitor.alarm_rule_.max_frames_ == 12
    thresholds = {
        level.name.lower(): t for level, t in calibration.monitor.alarm_rule_.thresholds_.items()
    }
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
    assert "They hold under each of these alone, too: jpeg:75, scale:0.75," in captured.out
    for stage in ("as stated", "recalibrated"):
        for horizon in (1, 4, 8):
            assert f"\n{stage}, horizon {horizon} " in captured.out
    assert "horizon 16" not in captured.out
    expires = record(model / "monitor")["expires"]
    assert captured.out.endswith(f"\nValid until: {expires[:10]}\n\nMonitor: {model / 'monitor'}\n")
    curves = Calibration.load(model / "monitor", WorldModel.load(model)).recalibration
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
    argv += ["--nuisance", "none"]
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


def test_wrong_nuisances_are_refused_before_anything_is_read(
    model: Path, scenes: Path, refused: Refused
) -> None:
    start = ("calibrate", "--model", model, "--data", scenes, "--nuisance")
    assert "Unknown nuisance 'fog'" in refused(*start, "fog")
    assert "needs a number from 1 to 100" in refused(*start, "noise:3", "jpeg:700")
    assert not (model / "monitor").exists()


def test_other_data_are_halved_and_a_second_run_replaces_the_first(
    model: Path, make_store: Callable[..., Path], make_scene: Callable[..., Trajectory]
) -> None:
    data = make_store("other.zarr", *(make_scene(f"o/{i}", 20 + i) for i in range(7)))
    (model / "monitor").mkdir()
    (model / "monitor" / "monitor.json").write_text("{}")
    (model / "monitor" / "leftover").write_text("of an earlier run")
    argv = ["calibrate", "--model", model, "--data", data, "--horizon", "4", "--nuisance", "none"]
    assert main(list(map(str, argv))) == 0
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
    argv += ["--nuisance", "none"]
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


def test_delta_asks_for_more_episodes_or_raises_the_rates(
    model: Path, scenes: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 4 episodes the largest keeps alpha but for a share (1 - alpha)^4 of calibration sets."""
    start = ("calibrate", "--model", model, "--data", scenes, "--nuisance", "none")
    assert refused(*start, "--alpha", "0.05", "--delta", "0.05") == (
        "`alpha`=0.05 with `delta`=0.05 needs 59 calibration episodes, got 4, which support 0.527 "
        "at best."
    )
    assert "`delta` must lie in (0, 1)" in refused(*start, "--delta", "1.5")
    assert not (model / "monitor").exists()
    assert main([*map(str, start), "--horizon", "4", "--delta", "0.2"]) == 0
    captured = capsys.readouterr()
    least = 1 - 0.2**0.25
    assert f"support an alarm rate of {least:.3g} at best with `--delta 0.2`; 0.05 needs 32." in (
        captured.err
    )
    assert "hold for at least a share 0.8 of calibration sets." in captured.out
    made = record(model / "monitor")
    assert made["delta"] == 0.2
    assert made["alphas"] == pytest.approx(dict.fromkeys(made["alphas"], least))
    config = Calibration.load(model / "monitor", WorldModel.load(model)).monitor.config
    assert (config.delta, config.alpha_stop) == (0.2, pytest.approx(least))


def test_a_calibration_says_how_long_it_is_good(
    model: Path, scenes: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("calibrate", "--model", model, "--data", scenes, "--nuisance", "none")
    for days in ("0", "-1", "3651"):
        assert refused(*start, "--valid-days", days) == (
            f"`--valid-days` must be 1 to 3650 days, or None for no expiry, got {days}."
        )
    assert not (model / "monitor").exists()
    assert main([*map(str, start), "--horizon", "4", "--valid-days", "None"]) == 0
    assert "\nValid until: no expiry\n" in capsys.readouterr().out
    made = Calibration.load(model / "monitor", WorldModel.load(model)).monitor.metadata_
    assert (made.expires, record(model / "monitor")["expires"]) == (None, None)


def test_what_it_was_made_of_is_kept_with_the_monitor_and_the_gate(calibrated: Path) -> None:
    model, folder = WorldModel.load(calibrated), calibrated / "monitor"
    made = Calibration.load(folder, model).monitor.metadata_
    assert made.created is not None
    assert made.expires is not None
    assert timedelta(days=179.9) < made.expires - made.created <= timedelta(days=180)
    assert abs(datetime.now(UTC) - made.created) < timedelta(hours=1)
    assert made.model_hash == fingerprint(calibrated) == record(folder)["model"]
    assert made.action_spec == CANONICAL.as_dict()
    assert made.features == FrameFeatures(model).name
    assert made.data_hash is not None
    gate = Gate.load(folder / "gate", model_hash=made.model_hash).monitor.metadata_
    assert replace(gate, created=made.created) == replace(made, features=None, nuisances=[])
    assert made.nuisances == [nuisance.name for nuisance in declared(DEFAULTS)]
    assert record(folder)["nuisances"] == list(DEFAULTS)
    with pytest.raises(ValueError, match=r"gate was fitted for the model .*, not for 'other'"):
        Gate.load(folder / "gate", model_hash="other")


def test_a_trust_of_another_model_or_action_spec_is_refused(
    calibrated: Path, slow_model: Path, model: Path
) -> None:
    """Even where nobody says which checkpoint the model came from."""
    with pytest.raises(ValueError, match=r"actions whose `rate_hz` is 5\.0, not 15\.0; load"):
        Calibration.load(calibrated / "monitor", WorldModel.load(slow_model))
    other = WorldModel.load(model)
    with torch.no_grad():
        other.tokenizer.std.mul_(2)
    with pytest.raises(ValueError, match="was fitted for the features 'FrameFeatures "):
        Calibration.load(calibrated / "monitor", other)
    shutil.copytree(calibrated / "monitor", model / "monitor")
    assert Checkpoint.load(model).calibration.horizon == 4
    config = model / "config.json"
    config.write_text(config.read_text().replace('"num_steps": 1', '"num_steps": 2'))
    with pytest.raises(ValueError, match="was fitted for the model"):
        Checkpoint.load(model)


def test_an_interrupted_save_leaves_the_old_monitor_whole(
    calibrated: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(calibrated / "monitor", model / "monitor"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    calibration, gate = Calibration.load(folder, WorldModel.load(model)), Gate.load(folder / "gate")

    def interrupted(gate: Gate, folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gate, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_calibration(replace(calibration, horizon=3), gate, folder, {})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(model.glob("monitor.*"))
    save_calibration(replace(calibration, horizon=3), gate, folder, {})
    assert Calibration.load(folder, WorldModel.load(model)).horizon == 3
    assert not list(model.glob("monitor.*"))


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
    assert "holds no held-out episode" in refused(*start, learned)
    assert "`reference` needs at least 2 episodes" in refused(*start, single)
    assert "has more than 4 frames, so there is nothing" in refused(*start, brief)
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
