"""Views of a watched episode: what their files hold, and that they are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.datasets.file_names import safe_path
from worldmodel.monitors.heatmaps import overlay
from worldmodel.monitors.verdict import Evidence, Level, Verdict
from worldmodel.report import watch_view as live_view
from worldmodel.report.strip import BAR, GAP, LEFT, LEVEL_COLORS, MIN_WIDTH, NO_MAP, level_bar
from worldmodel.report.timeline import (
    MAX_SPREAD,
    Keyframe,
    KeyframeChoice,
    VerdictTimeline,
    between,
    ratio,
)
from worldmodel.report.watch_view import open_view

ONSET, FAULT, NUM_FRAMES = 12, 20, 30
"""First frame with an alarm, first with a broken sensor, and how many there are."""
CAMERAS = ("front", "left/wrist")
RATE_HZ = 5.0


def make_frame(t: int) -> np.ndarray:
    """Two views [2, 16, 16, 3] of colours that no drawing uses, different for every frame."""
    frame = np.full((2, 16, 16, 3), (90, 20, 160), np.uint8)
    frame[1, ..., 1] = 40 + t
    return frame


def make_verdict(t: int) -> Verdict:
    """Calm, then appearance alarms, then a camera is black and no channel runs."""
    if t >= FAULT:
        fault = {"sensor.black": Evidence(None, None, "the camera is black.")}
        return Verdict(Level.STOP, ("sensor.black",), fault)
    alarm = t >= ONSET
    evidence = {
        "appearance": Evidence(6.0 if alarm else 1.0, 2.0),
        "confidence": Evidence(0.25, 0.5) if t % 4 else Evidence(None, 0.5, "did not run."),
        "signed": Evidence(-3.0, -1.0),
    }
    trust_map = np.full((2, 4, 4), 0.25 if alarm else 1.0)
    level = Level.DEGRADE if alarm else Level.TRUST
    return Verdict(level, ("appearance",) if alarm else (), evidence, trust_map)


def show_episode(folder: Path, name: str, num_frames: int = NUM_FRAMES) -> None:
    with open_view(folder, name, cameras=CAMERAS, rate_hz=RATE_HZ) as show:
        for t in range(num_frames):
            show(make_frame(t), make_verdict(t))


@pytest.fixture
def without_rerun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_view, "has_rerun", lambda: False)


@pytest.fixture
def draw(tmp_path: Path, without_rerun: None) -> Callable[..., np.ndarray]:
    """`draw(num_frames)`: the picture of the made-up episode, read back."""

    def make(num_frames: int = NUM_FRAMES) -> np.ndarray:
        show_episode(tmp_path / "views", "a/b", num_frames)
        with Image.open(tmp_path / "views" / "a" / "b.png") as picture:
            return np.asarray(picture)

    return make


def rows_of(picture: np.ndarray, color: tuple[int, int, int], column: int) -> np.ndarray:
    """Where a column of the picture has exactly this colour."""
    return np.flatnonzero((picture[:, column] == color).all(axis=-1))


def bar_of(picture: np.ndarray) -> np.ndarray:
    """A line of the bar of levels: the lowest `BAR` rows that begin in the colour of trust."""
    rows = rows_of(picture, LEVEL_COLORS[Level.TRUST], LEFT)[-BAR:]
    assert len(rows) == BAR
    assert rows[-1] - rows[0] == BAR - 1
    return picture[rows[BAR // 2], LEFT:]


def test_the_bar_has_the_colours_of_the_levels_in_time(draw: Callable[..., np.ndarray]) -> None:
    bar = bar_of(draw())
    ends = [
        np.flatnonzero((bar == LEVEL_COLORS[level]).all(axis=-1))[[0, -1]]
        for level in (Level.TRUST, Level.DEGRADE, Level.STOP)
    ]
    assert ends[0][0] == 0
    width = ends[2][1] + 1
    for (_, end), (start, _), t in zip(ends, ends[1:], (ONSET, FAULT), strict=False):
        assert start == end + 1
        assert start == np.ceil(t * width / NUM_FRAMES)


def test_the_frame_of_the_alarm_and_its_trust_are_shown(draw: Callable[..., np.ndarray]) -> None:
    """Frames 16 pixels wide are enlarged eight times; the columns are all of one width."""
    picture = draw()
    step = 128 + GAP
    front, wrist = make_frame(ONSET)
    color = tuple(overlay(front, np.full((4, 4), 0.25))[0, 0])
    alarm_columns = [
        column
        for column in range(12)
        if len(rows_of(picture, tuple(wrist[0, 0]), LEFT + column * step + 64)) == 128
    ]
    assert len(alarm_columns) == 1
    left = LEFT + alarm_columns[0] * step
    assert len(rows_of(picture, tuple(front[0, 0]), left + 64)) == 128
    assert len(rows_of(picture, color, left)) == 128
    assert len(rows_of(picture, LEVEL_COLORS[Level.DEGRADE], left - 1)) >= 4 * 128
    before = left - step
    calm = tuple(overlay(front, np.ones((4, 4)))[0, 0])
    assert len(rows_of(picture, tuple(make_frame(ONSET - 1)[1, 0, 0]), before + 64)) == 128
    assert len(rows_of(picture, calm, before)) == 128
    assert len(rows_of(picture, LEVEL_COLORS[Level.DEGRADE], before - 1)) < 128


def test_a_verdict_without_a_map_is_grey(draw: Callable[..., np.ndarray]) -> None:
    picture = draw()
    last = LEFT + 11 * (128 + GAP) + 64
    assert len(rows_of(picture, tuple(make_frame(NUM_FRAMES - 1)[1, 0, 0]), last)) == 128
    assert len(rows_of(picture, (NO_MAP,) * 3, last)) >= 2 * 128


@pytest.mark.parametrize("num_frames", [1, 2])
def test_short_episodes_and_episodes_without_scores(
    tmp_path: Path, without_rerun: None, num_frames: int
) -> None:
    """The bar is black from end to end."""
    with open_view(tmp_path, "short", cameras=CAMERAS, rate_hz=RATE_HZ) as show:
        for t in range(num_frames):
            show(make_frame(t), make_verdict(FAULT + t))
    with Image.open(tmp_path / "short.png") as picture:
        black = (np.asarray(picture)[:, LEFT:] == 0).all(axis=-1).sum(axis=1)
    full = np.flatnonzero(black >= MIN_WIDTH)[-BAR:]
    assert np.diff(full).tolist() == [1] * (BAR - 1)


def test_a_short_alarm_in_a_long_episode_keeps_its_pixel() -> None:
    levels = np.zeros(5000, dtype=int)
    levels[3333] = Level.STOP
    bar = level_bar(levels, 100)
    assert np.flatnonzero((bar == LEVEL_COLORS[Level.STOP]).all(axis=-1)).tolist() == [66]


def interrupt(folder: Path) -> None:
    """Begin to show an episode."""
    with open_view(folder, "a", cameras=CAMERAS, rate_hz=RATE_HZ) as show:
        show(make_frame(0), make_verdict(0))
        raise KeyboardInterrupt


def test_an_error_leaves_no_file(tmp_path: Path, without_rerun: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_stay_inside_the_folder_and_apart(tmp_path: Path) -> None:
    names = ["a", "a/b", "../a", "/a", "..", "a/../../b", "", "/", ".hidden", "%2E", "a\\b", "a:b"]
    names += ["x" * 300, "x" * 301, "é" * 150, "nul\0", "train/0"]
    paths = [safe_path(tmp_path, name, ".png") for name in names]
    assert len(set(paths)) == len(names)
    for path in paths:
        assert path.resolve().is_relative_to(tmp_path.resolve())
        assert not any(part.startswith(".") for part in path.relative_to(tmp_path).parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.part").write_bytes(b"")
    assert paths[-1] == tmp_path / "train" / "0.png"


@pytest.mark.parametrize("alarm", [None, 0, 1, 700, 998, 999])
def test_chosen_frames_hold_ends_and_alarm_in_little_memory(alarm: int | None) -> None:
    choice = KeyframeChoice()
    for t in range(1000):
        level = Level.TRUST if alarm is None or t < alarm else Level.NOTICE
        choice.add(t, Keyframe(make_frame(0), None, level))
        assert len(choice._spread) <= MAX_SPREAD
    chosen = choice.chosen(12)
    around = [] if alarm is None else [alarm - 1, alarm, alarm + 1]
    assert {0, 999, *(t for t in around if 0 <= t < 1000)} <= chosen.keys()
    assert 10 <= len(chosen) <= 12
    assert list(chosen) == sorted(chosen)
    assert np.diff(list(chosen)).max() < 200


def test_all_frames_of_a_short_episode_are_chosen() -> None:
    choice = KeyframeChoice()
    for t in range(9):
        choice.add(t, Keyframe(make_frame(t), None, Level.NOTICE if t > 6 else Level.TRUST))
    assert list(choice.chosen(12)) == list(range(9))


def test_points_between_are_even() -> None:
    assert between([0, 40], 3) == [10, 20, 30]
    assert between([0, 1, 2], 5) == []
    assert between([7], 3) == []


def test_a_ratio_needs_a_score_and_a_threshold_above_zero() -> None:
    assert ratio(Evidence(3.0, 2.0)) == 1.5
    none = [(None, 1.0), (1.0, None), (1.0, 0.0), (1.0, -2.0), (np.nan, 1.0), (np.inf, 1.0)]
    assert all(np.isnan(ratio(Evidence(score, threshold))) for score, threshold in none)


def test_the_timeline_tells_changes_and_keeps_channels_in_step() -> None:
    timeline = VerdictTimeline()
    for t in range(NUM_FRAMES):
        timeline.add(make_verdict(t))
    assert timeline.changes == [
        (0, "trust"), (ONSET, "degrade: appearance"), (FAULT, "stop: sensor.black"),
    ]  # fmt: skip
    assert (timeline.first_alarm, timeline.reasons) == (ONSET, "appearance: score 6, threshold 2")
    assert timeline.undrawn == {"signed"}
    assert {name: len(values) for name, values in timeline.ratios.items()} == {
        "appearance": NUM_FRAMES,
        "confidence": NUM_FRAMES,
    }
    assert timeline.ratios["appearance"][:FAULT] == [0.5] * ONSET + [3.0] * (FAULT - ONSET)
    missing = np.flatnonzero(np.isnan(timeline.ratios["confidence"])).tolist()
    assert missing == [*range(0, FAULT, 4), *range(FAULT, NUM_FRAMES)]


def read_entity(path: Path, entity: str, component: str) -> dict[int, tuple[float, object]]:
    """Frame -> second and value of an entity's component, from a recording."""
    chunks = pytest.importorskip("rerun.chunk")
    found = {}
    for chunk in chunks.RrdReader(path).stream():
        batch = chunk.to_record_batch()
        if chunk.entity_path == entity and component in batch.schema.names:
            frames, values = (batch.column(name).to_pylist() for name in ("frame", component))
            seconds = np.array(batch.column("time").cast("int64")) / 1e9
            assert all(len(value) == 1 for value in values)
            rows = zip(frames, seconds, values, strict=True)
            found.update({t: (second, value[0]) for t, second, value in rows})
    return dict(sorted(found.items()))


def read_scalars(path: Path, entity: str) -> dict[int, float]:
    """Frame -> scalar."""
    rows = read_entity(path, entity, "Scalars:scalars")
    return {t: float(str(value)) for t, (_, value) in rows.items()}


def test_a_recording_holds_frames_channels_and_verdicts(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    show_episode(tmp_path, "a/b")
    path = tmp_path / "a" / "b.rrd"
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]

    levels = read_entity(path, "/level", "Scalars:scalars")
    assert list(levels) == list(range(NUM_FRAMES))
    assert [second for second, _ in levels.values()] == pytest.approx(np.arange(30) / RATE_HZ)
    assert [value for _, value in levels.values()] == [0] * ONSET + [2] * 8 + [3] * 10

    scores = read_scalars(path, "/channel/appearance/score")
    assert scores == {t: 1.0 if t < ONSET else 6.0 for t in range(FAULT)}
    assert set(read_scalars(path, "/channel/appearance/threshold").values()) == {2.0}
    assert read_scalars(path, "/threshold") == dict.fromkeys(range(NUM_FRAMES), 1.0)
    assert read_scalars(path, "/ratio/confidence") == {t: 0.5 for t in range(FAULT) if t % 4}
    assert set(read_scalars(path, "/channel/signed/score").values()) == {-3.0}
    assert read_scalars(path, "/ratio/signed") == {}
    ends = read_entity(path, "/ratio/confidence", "Clear:is_recursive")
    assert list(ends) == [4, 8, 12, 16, FAULT]

    said = read_entity(path, "/verdict", "TextLog:text")
    assert {t: text for t, (_, text) in said.items()} == {
        0: "trust",
        ONSET: "degrade: appearance. appearance: score 6, threshold 2",
        FAULT: "stop: sensor.black. sensor.black: the camera is black.",
    }
    severities = read_entity(path, "/verdict", "TextLog:level").values()
    assert [value for _, value in severities] == ["INFO", "ERROR", "CRITICAL"]


def test_a_recording_holds_every_picture_of_every_camera(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    show_episode(tmp_path, "a")
    path = tmp_path / "a.rrd"
    for view, camera in enumerate(("front", "left\\/wrist")):
        images = read_entity(path, f"/camera/{camera}", "Image:buffer")
        calibration = read_entity(path, f"/trust/{camera}", "Image:buffer")
        assert list(images) == list(calibration) == list(range(NUM_FRAMES))
        for t in (0, ONSET, NUM_FRAMES - 1):
            frame, trust_map = make_frame(t)[view], make_verdict(t).trust_map
            grey = np.full_like(frame, NO_MAP)
            over = grey if trust_map is None else overlay(frame, trust_map[0])
            assert bytes(images[t][1]) == frame.tobytes()
            assert bytes(calibration[t][1]) == over.tobytes()


def test_an_error_leaves_no_recording(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path)
    assert list(tmp_path.iterdir()) == []
