"""`worldmodel imagine`: what it logs and prints, going on after a kill, what it refuses."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from worldmodel.calibration.calibrated import Calibration
from worldmodel.cli import main
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.model import WorldModel
from worldmodel.rollouts.log import RECALIBRATED

Refused = Callable[..., str]


DECODED = ("--pictures", "decoded")


def imagine(model: Path, data: Path, out: Path, *options: str) -> int:
    argv = ["imagine", "--model", model, "--data", data, "--out", out, "--horizon", "5"]
    return main([*map(str, argv), *options])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def assert_same(log: RolloutLog, other: RolloutLog) -> None:
    assert log.rollouts() == other.rollouts()
    for name in log.rollouts():
        read, expected = log.read(name), other.read(name)
        assert list(read) == list(expected)
        for signal_name, values in expected.items():
            np.testing.assert_array_equal(read[signal_name], values)


def test_every_frame_is_logged(untrained: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "log.zarr"
    assert imagine(untrained, scenes, out, "--only", "train/[67]", *DECODED) == 0
    log, store, model = RolloutLog.open(out), ClipStore.open(scenes), WorldModel.load(untrained)
    assert log.rollouts() == ("train/6", "train/7")
    assert log.attributes["confidence"] == "as stated"
    assert log.attributes["pictures"] == "decoded"
    assert log.attributes_of("train/6") == {"instruction": "move the square", "num_frames": 12}
    for name in log.rollouts():
        read, episode = log.read(name), store.episode(name)
        np.testing.assert_array_equal(read["frame"][:, 0], episode.frames["front"][:])
        known = np.where(episode.action_valid[:, None], episode.actions, np.nan)
        np.testing.assert_array_equal(read["action"], known)
        assert read["horizon"].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 1, 2, 3]
        assert (read["error"][:4] == 0).all()
        assert (read["error"][4:] > 0).any(axis=(1, 2, 3, 4)).all()
        assert (np.diff(read["confidence"].astype(float), axis=-1) >= 0).all()
        round_trip = model.decode(model.encode(torch.from_numpy(read["frame"][:4])))
        gap = np.abs(round_trip.numpy().astype(int) - read["imagined"][:4].astype(int))
        assert gap.max() <= 1  # latents are kept in half precision


def test_pictures_are_composed_with_the_last_real_frame_unless_told_otherwise(
    untrained: Path, scenes: Path, tmp_path: Path
) -> None:
    for name, words in {"composed": (), "decoded": DECODED}.items():
        assert imagine(untrained, scenes, tmp_path / name, "--only", "train/6", *words) == 0
    logs = {name: RolloutLog.open(tmp_path / name) for name in ("composed", "decoded")}
    composed, decoded = (log.read("train/6") for log in logs.values())
    assert [log.attributes["pictures"] for log in logs.values()] == ["composed", "decoded"]
    context = composed["horizon"] == 0
    np.testing.assert_array_equal(composed["imagined"][context], composed["frame"][context])
    np.testing.assert_array_equal(composed["confidence"], decoded["confidence"])
    np.testing.assert_array_equal(composed["error"], decoded["error"])
    assert (composed["imagined"] != decoded["imagined"]).any()


def test_an_unknown_kind_of_picture_is_refused(
    untrained: Path, scenes: Path, tmp_path: Path, refused: Refused
) -> None:
    argv = ["imagine", "--model", untrained, "--data", scenes, "--out", tmp_path / "log"]
    message = refused(*map(str, argv), "--pictures", "painted")
    assert "must be one of composed, decoded, got 'painted'" in message


def test_what_it_prints_is_what_the_log_holds(
    untrained: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "log.zarr"
    assert imagine(untrained, scenes, out, "--episodes", "3", "--json") == 0
    assert "3 of these 3 episodes were used to train the model" in caplog.text
    printed = json.loads(capsys.readouterr().out)
    assert (printed["rollouts"], printed["recalibrated"]) == (3, False)
    rows = {row["horizon"]: row for row in printed["table"]}
    assert list(rows) == [1, 4, 5]
    log = RolloutLog.open(out)
    for horizon, frames in ((1, (4, 9)), (4, (7,)), (5, (8,))):
        imagined, copied = [], []
        for name in log.rollouts():
            read = log.read(name)
            real = read["frame"][list(frames)]
            imagined.append(psnr(read["imagined"][list(frames)], real))
            copied.append(psnr(read["frame"][[t - horizon for t in frames]], real))
        row = rows[horizon]
        assert row["num_episodes"] == 3
        assert row["imagined_db"] == pytest.approx(np.mean(imagined), abs=1e-3)
        assert row["copy_db"] == pytest.approx(np.mean(copied), abs=1e-3)
        gain = np.subtract(imagined, copied)
        assert row["gain_db"] == pytest.approx(gain.mean(), abs=1e-3)
        low, high = row["gain_interval"]
        assert gain.min() - 1e-3 <= low <= row["gain_db"] <= high <= gain.max() + 1e-3
        assert row["num_forecasts"] == 3 * len(frames) * 10 * 2 * 4 * 4


def test_a_monitor_recalibrates(
    calibrated: Path, untrained: Path, scenes: Path, tmp_path: Path
) -> None:
    for name, model in (("raw", untrained), ("curved", calibrated)):
        assert imagine(model, scenes, tmp_path / name, "--only", "train/8") == 0
    raw, curved = (RolloutLog.open(tmp_path / n).read("train/8") for n in ("raw", "curved"))
    np.testing.assert_array_equal(raw["imagined"], curved["imagined"])
    curves = Calibration.load(calibrated / "monitor", WorldModel.load(calibrated)).recalibration
    for t, horizon in enumerate(raw["horizon"]):
        stated = np.moveaxis(raw["confidence"][t].astype(np.float32), -1, 0)
        expected = curves.predict(stated, horizon=int(horizon)) if horizon else stated
        seen = np.moveaxis(curved["confidence"][t], -1, 0)
        np.testing.assert_allclose(seen, expected, atol=1e-3)
    assert RolloutLog.open(tmp_path / "curved").attributes["confidence"] == RECALIBRATED


def test_a_rollout_depends_on_the_seed_and_on_no_other_episode(
    untrained: Path, scenes: Path, tmp_path: Path
) -> None:
    options = {"all": ["--only", "train/[78]"], "alone": ["--only", "train/8"]}
    options["other seed"] = ["--only", "train/8", "--seed", "1"]
    for name, words in options.items():
        assert imagine(untrained, scenes, tmp_path / name, *words) == 0
    first, alone, other = (RolloutLog.open(tmp_path / n).read("train/8") for n in options)
    np.testing.assert_allclose(first["error"], alone["error"], atol=1e-5)
    assert np.abs(other["error"] - alone["error"])[4:].max() > 0.01


KILLED = """
import os, signal, sys
from worldmodel.datasets.rollout_log import RolloutWriter

append, steps = RolloutWriter.append, []
def append_or_die(self, step):
    append(self, step)
    steps.append(1)
    if len(steps) == 19:
        os.kill(os.getpid(), signal.SIGKILL)
RolloutWriter.append = append_or_die
from worldmodel.cli import main
main(sys.argv[1:])
"""


def test_after_a_kill_it_goes_on_where_it_stopped(
    untrained: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    argv = ["imagine", "--model", untrained, "--data", scenes, "--horizon", "5", "--episodes", "3"]
    command = [sys.executable, "-c", KILLED, *map(str, argv), "--out", str(killed)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    log = RolloutLog.open(killed)
    assert [log.is_closed(name) for name in log.rollouts()] == [True, False]
    assert len(log.read("train/1")["horizon"]) == 19 - 12
    for out in (killed, whole):
        assert imagine(untrained, scenes, out, "--episodes", "3") == 0
    err = capsys.readouterr().err
    assert f"note: {killed} already holds 1 complete rollouts; they are kept." in err
    assert "note: rollout 'train/1' is incomplete and continues after frame 7." in err
    assert_same(RolloutLog.open(killed), RolloutLog.open(whole))
    assert all(RolloutLog.open(killed).is_closed(f"train/{i}") for i in range(3))
    inode = (killed / "rollouts" / "000000" / "zarr.json").stat().st_ino
    assert imagine(untrained, scenes, killed, "--episodes", "4") == 0  # and further
    assert (killed / "rollouts" / "000000" / "zarr.json").stat().st_ino == inode
    assert len(RolloutLog.open(killed).rollouts()) == 4


def test_another_setting_does_not_continue_a_log(
    untrained: Path, scenes: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "log.zarr"
    assert imagine(untrained, scenes, out, "--episodes", "1") == 0
    argv = ("imagine", "--model", untrained, "--data", scenes, "--out", out, "--horizon", "5")
    assert "was written with `seed` 0, not 3; use another folder." in refused(*argv, "--seed", "3")
    assert "was written with `start` 4, not 5" in refused(*argv, "--start", "5")


def test_episodes_too_short_are_left_out_and_said(
    untrained: Path,
    tmp_path: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = make_store("d.zarr", *(make_scene(f"{n}", n, num_frames=n) for n in (5, 6, 10)))
    assert imagine(untrained, data, tmp_path / "log.zarr", "--start", "6") == 0
    assert "2 episodes of" in caplog.text
    assert "have 6 frames or fewer and are left out." in caplog.text
    log = RolloutLog.open(tmp_path / "log.zarr")
    assert log.rollouts() == ("10",)
    assert log.read("10")["horizon"].tolist() == [0] * 6 + [1, 2, 3, 4]  # no 5: the episode ends


def test_wrong_input_is_refused_and_nothing_written(
    untrained: Path, slow_model: Path, scenes: Path, tmp_path: Path, refused: Refused
) -> None:
    nan = Path(shutil.copytree(scenes, tmp_path / "nan.zarr"))
    actions = zarr.open_array(nan / "episodes" / "000000" / "action", mode="r+")
    actions[3, 2] = np.nan
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "log.zarr"

    def attempt(**changes: object) -> str:
        options = {"model": untrained, "data": scenes, "out": out} | changes
        return refused("imagine", *(w for k, v in options.items() for w in (f"--{k}", str(v))))

    assert "nowhere does not exist" in attempt(data=tmp_path / "nowhere")
    assert "is empty" in attempt(data=tmp_path / "empty")
    assert "has no known form" in attempt(data=untrained)
    assert "No checkpoint in" in attempt(model=tmp_path)
    assert "hold NaN or infinity in episode train/0" in attempt(data=nan)
    assert "must be a rollout-log" in attempt(out=scenes)
    assert "notes.txt is no Zarr v3 group" in attempt(out=notes)
    assert "matches 'val/*'; it holds 10" in attempt(only="val/*")
    assert "more than 12 frames, so there is nothing to imagine" in attempt(start=12)
    assert "must be at least 1" in attempt(start=0)
    assert "rate_hz=15.0" in attempt(model=slow_model)
    assert "No monitor in" in attempt(monitor=tmp_path / "none")
    assert sorted(tmp_path.rglob("*")) == before
