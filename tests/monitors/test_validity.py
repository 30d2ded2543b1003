"""Provenance and expiry: other uses are refused, calibrations expire, damaged files are refused."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from worldmodel.monitors import (
    EpisodeSignals,
    Level,
    MonitorConfig,
    RuntimeMonitor,
)
from worldmodel.monitors.replay import RecordedStep, replay
from worldmodel.monitors.storage import MAXIMA, _json_hash
from worldmodel.monitors.validity import MonitorMetadata

SHAPE = (8, 8, 3)
CREATED = datetime(2030, 1, 1, 12, tzinfo=UTC)
EXPIRES = CREATED + timedelta(days=180)
SPEC = {"name": "ours", "rate_hz": 5.0, "scale": (1.0, 2.0)}
ARTEFACT = MonitorMetadata(expires=EXPIRES, model_hash="abc", action_spec=SPEC, data_hash="def")
CONFIG = MonitorConfig(alpha_notice=0.2, alpha_degrade=0.1, alpha_stop=0.05, calm_steps=2)


class Brightness:
    """Features with a name of their own."""

    def __init__(self, name: str = "brightness") -> None:
        self.name = name

    def __call__(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        patches = frame.reshape(2, 4, 2, 4, 3).mean(axis=(1, 3)).astype(np.float32)
        return np.concatenate([patches.mean(axis=(0, 1)), patches.std(axis=(0, 1))]), patches


def draw_frame(seed: int, bright: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(100 + bright, 25, SHAPE)
    return noise.clip(0, 255).astype(np.uint8)


def draw_episode(seed: int) -> EpisodeSignals:
    frames = [draw_frame(1000 * seed + t) for t in range(6)]
    pooled, positions = zip(*map(Brightness(), frames), strict=True)
    return EpisodeSignals(pooled=np.stack(pooled), positions=np.stack(positions))


CALIBRATION = [draw_episode(seed) for seed in range(1, 20)]


def fit(today: Callable[[], datetime] = lambda: CREATED) -> RuntimeMonitor:
    return RuntimeMonitor(CONFIG, features=Brightness(), today=today).fit(
        CALIBRATION,
        reference=[draw_episode(seed) for seed in range(50, 58)],
        frame_shape=SHAPE,
        metadata=ARTEFACT,
    )


@pytest.fixture
def monitor() -> RuntimeMonitor:
    return fit()


def calm_frames(monitor: RuntimeMonitor, number: int) -> list[np.ndarray]:
    """Frames that alone raise no level."""
    found = []
    for seed in range(9000, 9100):
        frame = draw_frame(seed)
        pooled, positions = Brightness()(frame)
        one = EpisodeSignals(pooled=pooled[None], positions=positions[None])
        if monitor.watch(one).levels[0] == Level.TRUST:
            found.append(frame)
    return found[:number]


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    """Change a saved monitor as one who knows its checksums could."""
    import hashlib

    fields = json.loads((folder / "monitor.json").read_text())
    arrays = load_file(folder / "monitor.safetensors")
    change(fields, arrays)
    blob = save(arrays)
    fields["arrays_sha256"] = hashlib.sha256(blob).hexdigest()
    del fields["json_sha256"]
    fields["json_sha256"] = _json_hash(fields)
    (folder / "monitor.safetensors").write_bytes(blob)
    (folder / "monitor.json").write_text(json.dumps(fields))


def test_metadata_round_trips(monitor: RuntimeMonitor, tmp_path: Path) -> None:
    monitor.save(tmp_path)
    fields = json.loads((tmp_path / "monitor.json").read_text())
    assert fields["created"] == "2030-01-01T12:00:00+00:00"
    assert fields["expires"] == "2030-06-30T12:00:00+00:00"
    assert (fields["num_calibration"], fields["num_reference"]) == (19, 8)
    assert fields["smallest_alpha"] == 0.05
    assert (fields["model_hash"], fields["data_hash"]) == ("abc", "def")
    assert fields["features"] == "brightness"
    assert fields["action_spec"] == {"name": "ours", "rate_hz": 5.0, "scale": [1.0, 2.0]}
    loaded = RuntimeMonitor.load(tmp_path)
    spec = fields["action_spec"]
    expected = replace(
        ARTEFACT, created=CREATED, features="brightness", action_spec=spec, nuisances=[]
    )
    assert loaded.metadata_ == expected


def test_stored_maxima_reproduce_the_thresholds(monitor: RuntimeMonitor, tmp_path: Path) -> None:
    monitor.save(tmp_path)
    judge = RuntimeMonitor.load(tmp_path).alarm_rule_
    assert judge.maxima_ is not None
    expected = [monitor.watch(episode).alarm_score.max() for episode in CALIBRATION]
    np.testing.assert_array_equal(judge.maxima_, expected)
    ranked = np.sort(expected)  # of 19: the 16th, 18th and 19th keep 0.2, 0.1 and 0.05
    assert list(judge.thresholds_.values()) == [ranked[15], ranked[17], ranked[18]]


@pytest.mark.parametrize("version", [1, 2])
def test_no_field_escapes_the_hashes_by_claiming_an_earlier_format(
    monitor: RuntimeMonitor, tmp_path: Path, version: int
) -> None:
    def age(fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        fields["format"] = version
        fields["expires"] = None

    monitor.save(tmp_path)
    rewrite(tmp_path, age)
    message = rf"its format is {version}; this version reads 3\); calibrate it again\.$"
    with pytest.raises(ValueError, match=message):
        RuntimeMonitor.load(tmp_path)
    path = tmp_path / "monitor.json"
    fields = json.loads(path.read_text())
    del fields["json_sha256"]
    path.write_text(json.dumps({**fields, "format": 3}))
    with pytest.raises(ValueError, match=r"field `json_sha256`\); calibrate it again"):
        RuntimeMonitor.load(tmp_path)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ({"model_hash": "xyz"}, r"was fitted for the model 'abc', not for 'xyz'; load the monitor"),
        (
            {"features": Brightness("colour")},
            "was fitted for the features 'brightness', not for 'colour'; load the monitor",
        ),
        (
            {"action_spec": {**SPEC, "rate_hz": 15.0}},
            r"for actions whose `rate_hz` is 5\.0, not 15\.0; load the monitor of this action spec",
        ),
        ({"action_spec": {**SPEC, "frame": "base"}}, "whose `frame` is None, not 'base'"),
    ],
)
def test_other_uses_are_refused(
    monitor: RuntimeMonitor, tmp_path: Path, use: dict[str, Any], message: str
) -> None:
    monitor.save(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        RuntimeMonitor.load(tmp_path, **use)
    assert str(caught.value).startswith(f"The monitor in {tmp_path} was fitted for ")
    assert "\n" not in str(caught.value)


def test_the_same_use_and_an_unknown_one_are_accepted(
    monitor: RuntimeMonitor, tmp_path: Path
) -> None:
    """What actions are called is for people, and JSON knows no tuples."""
    monitor.save(tmp_path)
    same = {"name": "theirs", "rate_hz": 5.0, "scale": [1.0, 2.0]}
    RuntimeMonitor.load(tmp_path, features=Brightness(), model_hash="abc", action_spec=same)
    RuntimeMonitor.load(tmp_path, features=lambda frame: Brightness()(frame))  # has no name
    for unknown in ({"model_hash": None}, {"action_spec": None}):
        again = RuntimeMonitor.load(tmp_path)
        again.metadata_ = replace(again.metadata_, **unknown)
        again.save(tmp_path / "less")
        other = {name: "xyz" if name == "model_hash" else {"rate_hz": 1.0} for name in unknown}
        loaded = RuntimeMonitor.load(tmp_path / "less", **other)
        assert loaded.alarm_rule_.thresholds_ == monitor.alarm_rule_.thresholds_


def test_expired_monitor_gives_at_least_degrade(monitor: RuntimeMonitor) -> None:
    calm, strange = calm_frames(monitor, 1)[0], draw_frame(1, bright=120.0)
    monitor.today = lambda: EXPIRES
    monitor.reset()
    fresh = monitor.update(calm, None)
    assert (fresh.level, fresh.causes) == (Level.TRUST, ())
    monitor.today = lambda: EXPIRES + timedelta(days=12, hours=12)
    monitor.reset()
    stale = monitor.update(calm, None)
    assert (stale.level, stale.causes) == (Level.DEGRADE, ("monitor.stale_calibration",))
    found = stale.evidence["monitor.stale_calibration"]
    assert (found.score, found.threshold) == (12.5, 0.0)
    assert found.note == "the calibration expired on 2030-06-30, 12 days ago; calibrate again."
    assert stale.evidence["appearance"] == fresh.evidence["appearance"]
    worse = monitor.update(strange, None)
    assert worse.level == Level.STOP
    assert worse.causes[-1] == "monitor.stale_calibration"
    assert set(worse.causes) & {"appearance", "region"}
    broken = monitor.update(None, None)
    assert broken.level == Level.STOP
    assert broken.causes == ("sensor.dropped", "monitor.stale_calibration")


def test_a_calibration_without_expiry_never_goes_stale(monitor: RuntimeMonitor) -> None:
    monitor.metadata_ = replace(monitor.metadata_, expires=None)
    calm = calm_frames(monitor, 1)[0]
    for today in (datetime(9999, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)):
        monitor.today = lambda today=today: today
        monitor.reset()
        assert monitor.update(calm, None).level == Level.TRUST


def test_clock_before_the_calibration_counts_as_stale(
    monitor: RuntimeMonitor,
) -> None:
    """A machine without a clock of its own wakes up in 1970; a day's difference is let pass."""
    calm = calm_frames(monitor, 1)[0]
    monitor.today = lambda: CREATED - timedelta(hours=23)
    monitor.reset()
    assert monitor.update(calm, None).level == Level.TRUST
    monitor.today = lambda: datetime(1970, 1, 1, tzinfo=UTC)
    monitor.reset()
    verdict = monitor.update(calm, None)
    assert (verdict.level, verdict.causes) == (Level.DEGRADE, ("monitor.stale_calibration",))
    assert verdict.evidence["monitor.stale_calibration"].note.endswith("set the clock.")


def test_expiry_is_checked_once_per_episode(monitor: RuntimeMonitor) -> None:
    now = [EXPIRES - timedelta(minutes=1)]
    monitor.today = lambda: now[0]
    calm = calm_frames(monitor, 3)
    monitor.reset()
    monitor.update(calm[0], None)
    now[0] += timedelta(minutes=2)
    assert monitor.update(calm[1], None).level == Level.TRUST
    assert monitor.sibling().update(calm[2], None).level == Level.DEGRADE  # begins its own
    monitor.reset()
    assert monitor.update(calm[2], None).level == Level.DEGRADE


def test_session_replays_with_its_own_date(monitor: RuntimeMonitor, tmp_path: Path) -> None:
    days = (CREATED + timedelta(days=3, microseconds=1), EXPIRES + timedelta(days=3.3))
    frames = [*calm_frames(monitor, 3), draw_frame(1, bright=120.0)]
    monitor.save(tmp_path)
    later = RuntimeMonitor.load(tmp_path, features=Brightness())
    later.today = lambda: EXPIRES + timedelta(days=1000)
    live: dict[datetime, list[Any]] = {}
    for day in days:
        monitor.today = lambda day=day: day
        monitor.reset()
        live[day] = [monitor.update(frame, None) for frame in frames]
    steps = [RecordedStep(observation=frame, action=None) for frame in frames]
    for day in days:
        written = datetime.fromisoformat(day.isoformat())
        assert list(replay(later, steps, today=written)) == live[day]
    assert live[days[0]] != live[days[1]]
    assert list(replay(later, steps)) != live[days[1]]  # other days past
    assert later.today() == EXPIRES + timedelta(days=1000)


@pytest.mark.parametrize(
    "change", [{"expires": None}, {"num_calibration": 99}, {"model_hash": "xyz"}]
)
def test_a_monitor_changed_by_hand_is_refused(
    monitor: RuntimeMonitor, tmp_path: Path, change: dict[str, Any]
) -> None:
    monitor.save(tmp_path)
    path = tmp_path / "monitor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"monitor\.json was changed after it was written\); cali"):
        RuntimeMonitor.load(tmp_path)


@pytest.mark.parametrize("maxima", [np.zeros(18), np.full(19, np.nan)])
def test_broken_maxima_are_refused(
    monitor: RuntimeMonitor, tmp_path: Path, maxima: np.ndarray
) -> None:
    monitor.save(tmp_path)
    rewrite(tmp_path, lambda fields, arrays: arrays.update({MAXIMA: maxima}))
    with pytest.raises(ValueError, match=r"maxim.* of .*calibration episodes?"):
        RuntimeMonitor.load(tmp_path)


@pytest.mark.parametrize("failing", [1, 2])
def test_an_interrupted_save_leaves_the_old_monitor_whole(
    monitor: RuntimeMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    monitor.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    syncs = []

    def interrupted(descriptor: int) -> None:
        syncs.append(descriptor)
        if len(syncs) == failing:
            raise KeyboardInterrupt

    other = fit(today=lambda: CREATED + timedelta(days=1))
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert RuntimeMonitor.load(tmp_path).metadata_.created == CREATED


@pytest.mark.parametrize("moved", [0, 1])
def test_save_killed_before_or_between_its_moves_keeps_one_version(
    monitor: RuntimeMonitor, tmp_path: Path, moved: int
) -> None:
    """Also if another save follows."""
    other = RuntimeMonitor(CONFIG, today=lambda: CREATED + timedelta(days=1)).fit(
        CALIBRATION[::-1], reference=CALIBRATION[:6], frame_shape=SHAPE
    )
    monitor.save(tmp_path / "here")
    other.save(tmp_path / "new")
    for name in ("monitor.safetensors", "monitor.json"):
        shutil.copy(tmp_path / "new" / name, tmp_path / "here" / f"{name}.part")
    for name in ("monitor.safetensors", "monitor.json")[:moved]:
        os.replace(tmp_path / "here" / f"{name}.part", tmp_path / "here" / name)
    made = RuntimeMonitor.load(tmp_path / "here").metadata_.created
    assert made == CREATED + timedelta(days=moved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            monitor.save(tmp_path / "here")
    assert RuntimeMonitor.load(tmp_path / "here").metadata_.created == made


def fail(descriptor: int) -> None:
    raise OSError("No space left on device")


def test_files_of_two_monitors_are_refused(monitor: RuntimeMonitor, tmp_path: Path) -> None:
    monitor.save(tmp_path / "old")
    other = RuntimeMonitor(CONFIG).fit(
        CALIBRATION[::-1], reference=CALIBRATION[:6], frame_shape=SHAPE
    )
    other.save(tmp_path / "new")
    new = (tmp_path / "new" / "monitor.safetensors").read_bytes()
    (tmp_path / "old" / "monitor.safetensors").write_bytes(new)
    with pytest.raises(ValueError, match=r"does not match the checksum in monitor\.json"):
        RuntimeMonitor.load(tmp_path / "old")


def test_a_date_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="`expires` must have a time zone, got 2030-01-01"):
        MonitorMetadata(expires=datetime(2030, 1, 1))


def test_a_missing_monitor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"monitor\.json is missing; run `worldmodel cal"):
        RuntimeMonitor.load(tmp_path)
