"""`--skip-bad` of `watch`, `imagine` and `calibrate`: one bad episode never hides the others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from worldmodel.cli import main
from worldmodel.datasets.rollout_log import RolloutLog


@pytest.fixture
def damaged(scenes: Path, tmp_path: Path) -> Path:
    """The ten scenes; a byte of the last frame chunk of two of them is flipped."""
    copy = Path(shutil.copytree(scenes, tmp_path / "scenes.zarr"))
    for number in ("000002", "000008"):
        array = copy / "episodes" / number / "observation.images.front"
        chunk = max(path for path in array.rglob("c/**/*") if path.is_file())
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
    return copy


@pytest.mark.parametrize("command", ["watch", "imagine", "calibrate"])
def test_the_first_bad_episode_is_refused_by_name(
    command: str, calibrated: Path, damaged: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    argv = [command, "--model", calibrated, "--data", damaged, "--out", out]
    first = "train/8" if command == "calibrate" else "train/2"
    line = refused(*argv)
    assert line.startswith(f"Episode '{first}' cannot be used: ")
    assert "is damaged" in line
    assert line.endswith("`--skip-bad` leaves such episodes out.")
    if command == "calibrate":
        assert not out.exists()


@pytest.mark.parametrize("command", ["watch", "imagine"])
def test_bad_episodes_are_left_out_and_named(
    command: str,
    calibrated: Path,
    damaged: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out.zarr"
    argv = [
        command,
        "--model",
        calibrated,
        "--data",
        damaged,
        "--out",
        out,
        "--only",
        "train/[0-3]",
    ]
    assert main([*map(str, argv), "--skip-bad", "--json"]) in (0, 1)
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["left_out"]) == ["train/2"]
    assert "is damaged" in printed["left_out"]["train/2"]
    assert RolloutLog.open(out).rollouts() == ("train/0", "train/1", "train/3")
    assert "1 of 4 episodes" in caplog.text
    assert "left out train/2: " in caplog.text


def test_alarm_rates_are_those_that_readable_episodes_support(
    model: Path, damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """3 of the 4 calibration episodes are left, so the lowest alarm rate is 1 / (3 + 1)."""
    argv = ["calibrate", "--model", model, "--data", damaged, "--horizon", "4", "--skip-bad"]
    argv += ["--nuisance", "none"]
    assert main([str(word) for word in argv]) == 0
    record = json.loads((model / "monitor" / "calibration.json").read_text())
    assert record["calibration"] == ["train/6", "train/7", "train/9"]
    assert record["reference"] == ["train/0", "train/1", "train/3"]
    assert sorted(record["left_out"]) == ["train/2", "train/8"]
    assert record["alphas"]["notice"] == 0.25
    assert "left out train/8: " in caplog.text


@pytest.fixture
def unnamed(scenes: Path, tmp_path: Path) -> Path:
    """The ten scenes; the attributes of the third, its id among them, are cut short."""
    copy = Path(shutil.copytree(scenes, tmp_path / "scenes.zarr"))
    file = copy / "episodes" / "000002" / "zarr.json"
    file.write_text(file.read_text()[:40])
    return copy


@pytest.mark.parametrize("command", ["watch", "imagine", "calibrate"])
def test_an_episode_without_attributes_is_refused_by_its_folder(
    command: str, calibrated: Path, unnamed: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    argv = [command, "--model", calibrated, "--data", unnamed, "--out", tmp_path / "out"]
    line = refused(*argv)
    assert line.startswith("Episode 'episodes/000002' cannot be used: ")
    assert "zarr.json is not valid JSON" in line


def test_an_episode_without_attributes_is_left_out_and_named(
    calibrated: Path, unnamed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["watch", "--model", calibrated, "--data", unnamed, "--only", "*[0-3]", "--skip-bad"]
    assert main([*map(str, argv), "--out", str(tmp_path / "log.zarr"), "--json"]) in (0, 1)
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert list(left_out) == ["episodes/000002"]
    assert RolloutLog.open(tmp_path / "log.zarr").rollouts() == ("train/0", "train/1", "train/3")


def test_info_and_validate_name_it_beside_the_others(
    unnamed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "info", str(unnamed)]) == 1
    told = capsys.readouterr()
    assert "episodes  9 (train 9)" in told.out
    assert told.err.startswith("Episode 'episodes/000002' cannot be read: ")
    assert main(["data", "validate", str(unnamed)]) == 1
    assert "episodes/000002" in capsys.readouterr().out


def test_nothing_left_is_an_error(
    calibrated: Path, damaged: Path, refused: Callable[..., str]
) -> None:
    argv = ["watch", "--model", calibrated, "--data", damaged, "--only", "train/2", "--skip-bad"]
    assert refused(*argv).startswith("None of the 1 episodes of ")


def test_what_a_reader_drops_is_told(
    calibrated: Path,
    scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from dataclasses import replace

    from worldmodel.datasets.clip_store import ClipStore

    read = ClipStore.episode

    def with_note(store: ClipStore, key: str | int) -> object:
        return replace(read(store, key), notes=("the last frame is dropped.",))

    monkeypatch.setattr(ClipStore, "episode", with_note)
    argv = ["watch", "--model", calibrated, "--data", scenes, "--only", "train/0"]
    assert main([str(word) for word in argv]) in (0, 1)
    assert caplog.text.count("note: train/0: the last frame is dropped.") == 1
