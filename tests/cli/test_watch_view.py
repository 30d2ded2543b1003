"""`worldmodel watch --view`: one file per episode, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.cli import main
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.monitors.verdict import Level
from worldmodel.report import watch_view as live_view
from worldmodel.report.strip import BAR, LEFT, LEVEL_COLORS

Refused = Callable[..., str]


def levels_of(path: Path, num_frames: int) -> list[int]:
    """The level of every frame, read from the middle of its part of the bar of levels."""
    with Image.open(path) as image:
        picture = np.asarray(image)
    colors = np.array(LEVEL_COLORS)
    known = (picture[:, LEFT:, None] == colors).all(axis=-1)  # [row, column, level]
    bars = np.flatnonzero(known.any(axis=-1).sum(axis=1) >= 720)
    row = known[bars[-BAR // 2]]
    width = np.flatnonzero(row.any(axis=-1))[-1] + 1
    middles = ((np.arange(num_frames) + 0.5) * width / num_frames).astype(int)
    return row[middles].argmax(axis=-1).tolist()


def test_a_picture_of_each_episode_shows_the_levels_of_the_log(
    calibrated: Path,
    tmp_path: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second episode turns odd at frame 5; the third loses its camera at frame 6."""
    monkeypatch.setattr(live_view, "has_rerun", lambda: False)
    odd, dark = make_scene("val/odd", 0), make_scene("val/dark", 3)
    odd.frames["front"].pixels[5:] = 255 - odd.frames["front"].pixels[5:]
    dark.frames["front"].pixels[6:] = 0
    data = make_store("mixed.zarr", make_scene("plain", 0), odd, dark)
    view, out = tmp_path / "views", tmp_path / "log.zarr"
    argv = ["watch", "--model", calibrated, "--data", data, "--view", view, "--out", out]
    assert main([str(word) for word in argv]) == 1
    files = {"plain": "plain.png", "val/odd": "val/odd.png", "val/dark": "val/dark.png"}
    assert {p for p in view.rglob("*") if p.is_file()} == {view / f for f in files.values()}
    for name, file in files.items():
        logged = [Level[str(level).upper()] for level in RolloutLog.open(out).read(name)["level"]]
        assert levels_of(view / file, len(logged)) == logged
    assert levels_of(view / "val/dark.png", 12)[5:7] == [Level.TRUST, Level.STOP]


def test_recordings_where_rerun_is_installed(
    calibrated: Path, scenes: Path, tmp_path: Path
) -> None:
    chunks = pytest.importorskip("rerun.chunk")
    argv = ["watch", "--model", calibrated, "--data", scenes, "--only", "train/[01]"]
    assert main([str(word) for word in (*argv, "--view", tmp_path / "views")]) == 0
    files = sorted(path for path in (tmp_path / "views").rglob("*") if path.is_file())
    assert files == [tmp_path / "views" / "train" / f"{i}.rrd" for i in (0, 1)]
    for path in files:
        entities = {chunk.entity_path for chunk in chunks.RrdReader(path).stream()}
        assert {"/camera/front", "/trust/front", "/level", "/ratio/appearance"} <= entities


def test_the_shipped_monitor_shows_a_change_of_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_view, "has_rerun", lambda: False)
    data, view = tmp_path / "shifted.zarr", tmp_path / "views"
    argv = ["data", "collect", str(data), "--episodes", "1", "--renderer", "ray"]
    shift = ["--factor", "background", "--severity", "3", "--onset", "6", "--num-steps", "12"]
    assert main(argv + shift) == 0
    out = tmp_path / "log.zarr"
    argv = ["watch", "--model", "tabletop", "--data", str(data), "--view", str(view)]
    assert main([*argv, "--out", str(out)]) == 1
    (path,) = view.iterdir()
    levels = levels_of(path, 12)
    logged = RolloutLog.open(out).read(path.stem)["level"]
    assert [Level(level).name.lower() for level in levels] == logged.tolist()
    assert levels[:6] == [Level.TRUST] * 6
    assert min(levels[6:]) > Level.TRUST


def test_a_view_is_refused_where_something_is(
    calibrated: Path, scenes: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    argv = ("watch", "--model", calibrated, "--data", scenes, "--view")
    full = refused(*argv, tmp_path / "full")
    assert full.startswith("`--view` must be a new or empty folder, but")
    assert "already exists" in refused(*argv, tmp_path / "full" / "notes.txt")
    log = tmp_path / "log"
    assert "must not contain each other" in refused(*argv, log / "view", "--out", log)
    assert "must not contain each other" in refused(*argv, log, "--out", log)
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["full", "notes.txt"]
