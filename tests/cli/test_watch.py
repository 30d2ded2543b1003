"""`worldmodel watch`: alarms and exit codes, what it logs, what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from worldmodel.calibration.calibrated import Calibration
from worldmodel.calibration.features import FrameFeatures, signals
from worldmodel.cli import main
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.load import load_episodes
from worldmodel.model import WorldModel
from worldmodel.monitors.causes.edits import EDITS
from worldmodel.monitors.replay import replay
from worldmodel.monitors.verdict import Level
from worldmodel.rollouts.log import RECALIBRATED
from worldmodel.runtime.watch import logged_steps, summarize_watch

Refused = Callable[..., str]


def watch(model: Path, data: Path, *options: str | Path) -> int:
    return main(["watch", "--model", str(model), "--data", str(data), *map(str, options)])


def test_nominal_episodes_raise_no_alarm(
    calibrated: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Episodes that the channels were fitted on are as familiar as can be."""
    assert watch(calibrated, scenes, "--only", "train/[0-2]") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0 of 3 episodes raised an alarm.")
    assert [line.split()[:6] for line in lines[-5:-2]] == [
        [f"train/{i}", "12", "no", "-", "-", "trust"] for i in range(3)
    ]
    assert lines[-1].startswith("Fleet drift: not detected in 3 episodes (evidence ")


def test_another_look_raises_an_alarm_of_looks(
    calibrated: Path,
    tmp_path: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second episode turns odd at frame 5, that is after one second."""
    plain, odd = make_scene("b", 0), make_scene("b", 0, odd=True)
    pixels = np.concatenate((plain.frames["front"][:5], odd.frames["front"][5:12]))
    plain.frames["front"].pixels[:] = pixels
    data = make_store("odd.zarr", make_scene("a", 1, odd=True), plain)
    out = tmp_path / "log.zarr"
    assert watch(calibrated, data, "--out", out, "--json") == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["log"] == str(out)
    first, second = printed["episodes"]
    assert (first["first_alarm"], second["first_alarm"]) == (0, 5)
    assert (first["first_alarm_s"], second["first_alarm_s"]) == (0.0, 1.0)
    for episode in (first, second):
        assert episode["num_frames"] == 12
        assert episode["causes"][0] in (*EDITS, "unknown", "appearance")
        assert not any(cause.startswith(("sensor", "monitor")) for cause in episode["causes"])
    levels = RolloutLog.open(out).read("b")["level"]
    assert (levels[:5] == "trust").all()
    assert (levels[5:] != "trust").all()


def test_frame_by_frame_is_what_the_monitor_says_of_the_whole(
    calibrated: Path, scenes: Path, tmp_path: Path
) -> None:
    """`RuntimeMonitor.watch` judges an episode at once and shares no loop with `update`."""
    out = tmp_path / "log.zarr"
    watch(calibrated, scenes, "--only", "train/[78]", "--out", out)
    model = WorldModel.load(calibrated)
    calibration = Calibration.load(calibrated / "monitor", model)
    log = RolloutLog.open(out)
    for episode in load_episodes(model, open_dataset(scenes), only="train/[78]"):
        (rollouts,) = calibration.claims(model, [episode.batch], seed=0)
        whole = calibration.monitor.watch(signals(FrameFeatures(model), episode, rollouts))
        read = log.read(episode.name)
        assert [Level[str(name).upper()] for name in read["level"]] == whole.levels.tolist()
        for name, scores in whole.scores.items():
            np.testing.assert_allclose(read[f"score.{name}"], scores, atol=1e-4)
        assert (read["latency_s"] > 0).all()
        assert ((read["trust_map"] >= 0) & (read["trust_map"] <= 1)).all()
        assert read["horizon"].tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]


def test_the_log_shows_the_confidence_of_imagine_and_keeps_the_monitors_input(
    calibrated: Path, scenes: Path, tmp_path: Path
) -> None:
    out, name = tmp_path / "log.zarr", "train/7"
    watch(calibrated, scenes, "--only", name, "--out", out)
    log, model = RolloutLog.open(out), WorldModel.load(calibrated)
    calibration = Calibration.load(calibrated / "monitor", model)
    (episode,) = load_episodes(model, open_dataset(scenes), only=name)
    (rollouts,) = calibration.claims(model, [episode.batch], seed=0)
    shown = calibration.shown(model, episode, rollouts).confidence
    read = log.read(name)
    np.testing.assert_allclose(read["stated_confidence"], rollouts.confidence, atol=2e-3)
    np.testing.assert_allclose(read["confidence"], shown, atol=2e-3)
    assert np.abs(read["confidence"] - read["stated_confidence"]).max() > 0.01
    assert log.attributes["confidence"] == RECALIBRATED


def test_a_broken_camera_is_a_fault_of_the_sensor(
    calibrated: Path,
    tmp_path: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
) -> None:
    scene = make_scene("dark", 3)
    scene.frames["front"].pixels[6:] = 0
    data = make_store("dark.zarr", scene)
    assert watch(calibrated, data, "--out", tmp_path / "log.zarr") == 1
    read = RolloutLog.open(tmp_path / "log.zarr").read("dark")
    assert read["causes"][6] == ("sensor.black",)
    assert (read["level"][6:] == "stop").all()
    assert np.isnan(read["trust_map"][6:]).all()


def test_longer_episodes_than_the_promise_covers_are_said(
    calibrated: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_store("long.zarr", make_scene("short", 1), make_scene("long", 0, num_frames=13))
    watch(calibrated, data)
    assert "1 of 2 episodes are longer than the 12 frames" in capsys.readouterr().err


def test_a_monitor_of_other_weights_is_refused(
    calibrated: Path, model: Path, scenes: Path, tmp_path: Path, refused: Refused
) -> None:
    """A copy of the checkpoint is the same model, whatever lies beside its weights."""
    (model / "notes.txt").write_text("of no consequence")
    monitor = ("--monitor", calibrated / "monitor")
    assert watch(model, scenes, "--only", "train/0", *monitor) == 0
    config = model / "config.json"
    config.write_text(config.read_text().replace('"num_steps": 1', '"num_steps": 2'))
    out = tmp_path / "log.zarr"
    for command in ("watch", "imagine"):
        argv = (command, "--model", model, "--data", scenes, "--out", out)
        message = refused(*argv, *monitor)
        assert message.startswith(f"The monitor in {calibrated / 'monitor'} was fitted for the ")
        assert message.endswith("; load the monitor of this model, or calibrate one.")
    assert not out.exists()


def test_a_stale_monitor_degrades_every_frame_and_says_so_once(
    calibrated: Path, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says when it was watched, so that the verdicts can be had again."""
    model, expires = WorldModel.load(calibrated), datetime(2020, 1, 31, 12, tzinfo=UTC)
    calibration = Calibration.load(calibrated / "monitor", model)
    metadata = replace(
        calibration.monitor.metadata_, created=expires - timedelta(9), expires=expires
    )
    calibration.monitor.metadata_ = metadata
    calibration.save(tmp_path / "stale")
    out = tmp_path / "log.zarr"
    options = ("--monitor", tmp_path / "stale", "--only", "train/[01]", "--out", out)
    assert watch(calibrated, scenes, *options) == 1
    stale = [record.message for record in caplog.records if "stale" in record.message]
    (note,) = stale
    assert note.startswith(f"note: the monitor in {tmp_path / 'stale'} is stale: the calibration ")
    assert "expired on 2020-01-31, " in note
    log = RolloutLog.open(out)
    assert (log.read("train/0")["level"] == "degrade").all()
    assert set(log.read("train/1")["causes"]) == {("monitor.stale_calibration",)}
    again = Calibration.load(tmp_path / "stale", model).monitor
    day, steps = datetime.fromisoformat(log.attributes["watched_at"]), log.read("train/0")
    for verdict in replay(again, logged_steps(steps), today=day):
        found = verdict.evidence["monitor.stale_calibration"]
        assert found.score == (day - expires) / timedelta(days=1)
    fresh = replay(again, logged_steps(steps), today=expires)
    assert {verdict.level for verdict in fresh} == {Level.TRUST}


def test_drift_of_a_fleet_is_found_and_changes_no_exit_code(
    calibrated: Path,
    tmp_path: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a monitor whose thresholds nothing exceeds any more."""
    calibration = Calibration.load(calibrated / "monitor", WorldModel.load(calibrated))
    judge = calibration.monitor.alarm_rule_
    judge.thresholds_ = dict.fromkeys(judge.thresholds_, 1e9)
    judge.config = replace(judge.config, alpha_notice=0.5)
    calibration.save(tmp_path / "deaf")
    odd = [make_scene(f"odd/{i}", i, num_frames=5, odd=True) for i in range(5)]
    data = make_store("odd.zarr", *odd)
    assert watch(calibrated, data, "--monitor", tmp_path / "deaf", "--json") == 0
    drift = json.loads(capsys.readouterr().out)["drift"]
    assert (drift["alpha"], drift["num_left_out"]) == (0.5, 0)
    assert drift["capital"] >= 2
    assert drift["found_after"] == f"odd/{drift['num_episodes'] - 1}"
    assert drift["num_episodes"] < 5
    judge.maxima_ = None
    calibration.save(tmp_path / "old")
    options = ("--monitor", tmp_path / "old", "--only", "odd/0")
    watch(calibrated, data, *options)
    assert capsys.readouterr().out.endswith(
        "\nFleet drift: not tested, because this monitor has no alarm scores of its calibration "
        "set; calibrate it again.\n"
    )
    watch(calibrated, data, *options, "--json")
    assert json.loads(capsys.readouterr().out)["drift"] is None


def test_wrong_input_is_refused_and_nothing_written(
    calibrated: Path, model: Path, scenes: Path, tmp_path: Path, refused: Refused
) -> None:
    torn = Path(shutil.copytree(calibrated / "monitor", tmp_path / "torn"))
    content = (torn / "monitor.safetensors").read_bytes()
    (torn / "monitor.safetensors").write_bytes(content[: len(content) // 2])
    before = sorted(tmp_path.rglob("*"))
    argv = ("watch", "--model", calibrated, "--data")
    out = ("--out", tmp_path / "log.zarr")
    assert "run `worldmodel calibrate`" in refused("watch", "--model", model, "--data", scenes)
    assert "monitor.safetensors was edited" in refused(*argv, scenes, "--monitor", torn, *out)
    assert "does not exist" in refused(*argv, tmp_path / "nowhere", *out)
    assert "matches 'x'; it holds 10" in refused(*argv, scenes, "--only", "x", *out)
    assert "already exists" in refused(*argv, scenes, "--out", torn)
    assert "already exists" in refused(*argv, scenes, "--out", torn / "monitor.json")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_calm_episode_has_no_first_alarm() -> None:
    summary = summarize_watch(level=["trust"] * 2, causes=[(), ()], latency_s=[0.1, 0.3])
    assert (summary.first_alarm, summary.causes, summary.level) == (None, (), Level.TRUST)
    assert summary.latency_s == pytest.approx(0.2)
