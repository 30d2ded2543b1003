"""Heatmaps of a log as files: what each cell shows, and that videos can be read back."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from worldmodel.cli import main
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.monitors.heatmaps import LEGEND_WIDTH, heatmap, overlay, palette
from worldmodel.report.heatmap_files import (
    CELL_HEIGHT,
    GAP,
    LABEL_WIDTH,
    LINE,
    NOT_IMAGINED,
    confidence_panels,
    grid,
)
from worldmodel.rollouts.log import read_rollouts
from worldmodel.rollouts.open_loop import EPSILONS

Refused = Callable[..., str]
SCALE = 8
"""Frames of 16 pixels are enlarged to 128."""


@pytest.fixture(scope="module")
def imagined(untrained: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rollouts of 12 frames: 4 real ones, two stretches of 5 and 3."""
    out = tmp_path_factory.mktemp("logs") / "log.zarr"
    argv = ["imagine", "--model", untrained, "--data", scenes, "--out", out, "--horizon", "5"]
    assert main([*map(str, argv), "--episodes", "2"]) == 0
    return out


@pytest.fixture(scope="module")
def written(imagined: Path) -> Path:
    """The folder of their heatmaps."""
    folder = imagined.parent / "maps"
    argv = ["report", imagined, "--out", imagined.parent / "report.html", "--heatmaps", folder]
    assert main(list(map(str, argv))) == 0
    return folder


def cell(picture: np.ndarray, row: int, column: int, *, left: int = LABEL_WIDTH) -> np.ndarray:
    """One of the pictures of a grid, at its own size."""
    top, start = LINE + row * (CELL_HEIGHT + GAP), left + column * (CELL_HEIGHT + GAP)
    enlarged = picture[top : top + CELL_HEIGHT, start : start + CELL_HEIGHT]
    small = enlarged[::SCALE, ::SCALE]
    np.testing.assert_array_equal(small.repeat(SCALE, 0).repeat(SCALE, 1), enlarged)
    return small


def test_every_rollout_has_a_sheet_and_a_video(
    written: Path, imagined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{i:04d}-train-{i}.{kind}" for i in range(2) for kind in ("mp4", "png")]
    assert sorted(path.name for path in written.iterdir()) == names
    argv = ["report", imagined, "--out", imagined.parent / "r.html", "--heatmaps", written]
    assert main(list(map(str, argv))) == 0  # again, in their place
    assert f"2 contact sheets and videos in {written}" in capsys.readouterr().out


def test_a_sheet_shows_real_imagined_and_confident_over_time(written: Path, imagined: Path) -> None:
    sheet = np.asarray(Image.open(written / "0000-train-0.png"))
    rollout = read_rollouts(RolloutLog.open(imagined))[0]
    confidence = rollout.confidence[..., EPSILONS.index(0.5)].float().numpy()
    columns = [3, 4, 5, 6, 7, 8]  # the last real frame and the first segment
    for column, t in enumerate(columns):
        np.testing.assert_array_equal(cell(sheet, 0, column), rollout.frames[t, 0])
    for row in (1, 2, 3):
        assert (cell(sheet, row, 0) == NOT_IMAGINED).all()
    for column, t in enumerate(columns[1:], start=1):
        np.testing.assert_array_equal(cell(sheet, 1, column), rollout.imagined[t, 0])
        over = overlay(rollout.imagined[t, 0], confidence[t, 0])
        np.testing.assert_array_equal(cell(sheet, 2, column), over)
        np.testing.assert_array_equal(cell(sheet, 3, column), heatmap(confidence[t, 0], 16, 16))
    legend = sheet[:, -LEGEND_WIDTH:]
    for end in (0, 255):  # the colours of certainly wrong and certainly right
        assert (legend == palette()[end]).all(axis=-1).sum() >= 12
    assert sheet.shape[:2] == (3 * LINE + 4 * 132, LABEL_WIDTH + 6 * 132 + LEGEND_WIDTH)


def test_a_video_has_every_frame_at_the_rate_of_the_source(written: Path, imagined: Path) -> None:
    with av.open(written / "0001-train-1.mp4") as container:
        assert container.streams.video[0].average_rate == 5
        video = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert video.shape == (12, 2 * LINE + 132, GAP + 4 * 132 + LEGEND_WIDTH, 3)
    rollout = read_rollouts(RolloutLog.open(imagined))[1]
    for t in range(12):
        top, left = LINE, GAP
        shown = video[t, top : top + CELL_HEIGHT, left : left + CELL_HEIGHT].astype(float)
        truth = rollout.frames[t, 0].repeat(SCALE, 0).repeat(SCALE, 1)
        assert np.abs(shown - truth).mean() < 8  # what compression costs
    grey = video[:, LINE + 40, GAP + 3 * 132 + 64].astype(int)
    assert (np.abs(grey - NOT_IMAGINED).max(axis=-1) < 8).tolist() == [True] * 4 + [False] * 8


def test_a_watched_log_shows_the_monitors_trust_too(
    calibrated: Path,
    tmp_path: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
) -> None:
    data = make_store("d.zarr", make_scene("calm", 0))
    argv = ["watch", "--model", calibrated, "--data", data, "--out", tmp_path / "log.zarr"]
    assert main(list(map(str, argv))) in (0, 1)
    (rollout,) = read_rollouts(RolloutLog.open(tmp_path / "log.zarr"))
    assert list(confidence_panels(rollout)) == [
        "real", "imagined", "confidence\noverlay", "confidence", "monitor's\ntrust",
    ]  # fmt: skip


def test_sides_of_a_grid_are_even() -> None:
    pictures = [[np.zeros((100, 101, 3), np.uint8)] * 3]
    sheet = grid(pictures, rows=[""], columns=["a", "b", "c"], caption="")
    assert [side % 2 for side in sheet.shape[:2]] == [0, 0]


def test_what_cannot_be_shown_is_refused(imagined: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").touch()
    argv = ("report", imagined, "--out", tmp_path / "r.html", "--heatmaps", tmp_path / "file")
    assert "is a file" in refused(*argv)
    assert not (tmp_path / "r.html").exists()
    read = RolloutLog.open(imagined).read("train/0")
    attributes = RolloutLog.open(imagined).attributes
    still = RolloutLog.create(tmp_path / "still.zarr", attributes={
        name: value for name, value in attributes.items()
        if name not in ("worldmodel_form", "format_version", "package_version")
    })  # fmt: skip
    with still.begin("a", {"instruction": "", "num_frames": 1}) as rollout:
        rollout.append({name: rows[0] for name, rows in read.items()})
    argv = ("report", still.path, "--out", tmp_path / "r.html", "--heatmaps", tmp_path / "maps")
    assert "holds no imagined frame, so it has no confidence" in refused(*argv)
    assert not (tmp_path / "r.html").exists()
