"""`worldmodel report`: one page from a log, whole or cut off, and nothing from anything else."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from worldmodel.cli import main
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.report.rollout_page import log_sections

Refused = Callable[..., str]


@pytest.fixture(scope="session")
def imagined(untrained: Path, scenes: Path) -> Path:
    """A log of nine imagined rollouts. Not to be written to."""
    out = untrained.parent / "imagined.zarr"
    argv = ["imagine", "--model", untrained, "--data", scenes, "--out", out, "--horizon", "5"]
    assert main([*map(str, argv), "--episodes", "9"]) == 0
    return out


def cells(page: str, heading: str) -> list[str]:
    """The cells of the row that a heading begins."""
    row = re.search(rf'<th scope="row">{re.escape(heading)}</th>(.*?)</tr>', page)
    assert row is not None, heading
    return re.findall(r"<td[^>]*>(.*?)</td>", row[1])


def test_a_log_of_imagined_rollouts(
    imagined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report.html"
    assert main(["report", str(imagined), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Provenance", "Calibration", "Accuracy", "Videos",
    ]  # fmt: skip
    assert cells(page, "command") == ["imagine"]
    assert cells(page, "rollouts") == ["9 (0 incomplete)"]
    assert cells(page, "model hash") == [RolloutLog.open(imagined).attributes["model_hash"]]
    assert page.count("<video") == 8
    assert "8 of 9 rollouts" in page


def test_its_numbers_are_those_that_imagine_prints(
    imagined: Path,
    untrained: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["imagine", "--model", untrained, "--data", scenes, "--out", imagined, "--horizon", "5"]
    assert main([*map(str, argv), "--episodes", "9", "--json"]) == 0  # all there: it only prints
    printed = json.loads(capsys.readouterr().out)
    assert main(["report", str(imagined), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    for row in printed["table"]:
        if row["horizon"] in (1, 4):
            low, high = row["ece_interval"]
            ece = f"{row['ece']:.3f} [{low:.3f}, {high:.3f}]"
            low, high = row["gain_interval"]
            gain = f"{row['gain_db']:+.1f} [{low:+.1f}, {high:+.1f}]"
            expected = ["9", ece, gain, f"{row['per_video_ece']:.3f}", f"{row['mce']:.3f}"]
            assert cells(page, str(row["horizon"]))[:5] == expected
            assert f"{row['gain_db']:+.1f} dB at horizon {row['horizon']}" in page


def test_a_log_of_watched_rollouts_whose_last_was_cut_off(
    calibrated: Path,
    tmp_path: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
) -> None:
    data = make_store("d.zarr", make_scene("calm", 0), make_scene("odd & new", 1, odd=True))
    argv = ["watch", "--model", calibrated, "--data", data, "--out", tmp_path / "log.zarr"]
    assert main(list(map(str, argv))) == 1
    log = RolloutLog.open(tmp_path / "log.zarr")
    watched = log.read("calm")
    rollout = log.begin("cut", {"instruction": "", "num_frames": 12})
    for t in range(6):
        rollout.append({
            name: list(values[t]) if name == "causes" else values[t]
            for name, values in watched.items()
        })  # fmt: skip
    log.begin("never begun", {})
    assert main(["report", str(log.path), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert cells(page, "rollouts") == ["3 (1 incomplete)"]
    assert cells(page, "calm") == ["12", "-", "trust", "-"]
    assert cells(page, "cut") == ["6 of 12", "-", "trust", "-"]
    frames, alarm, level, causes = cells(page, "odd &amp; new")
    assert (frames, alarm) == ("12", "0 (0.0 s)")
    assert level in ("notice", "degrade", "stop")
    assert causes not in ("", "-")
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)[-3:]
    assert captions[0].startswith("odd &amp; new: move the square. Alarm at frame 0: ")
    assert captions[2] == "cut: no instruction. Incomplete: 6 of 12 frames."


def test_panels_of_a_video(imagined: Path) -> None:
    (videos,) = [s for s in log_sections(RolloutLog.open(imagined)) if s.title == "Videos"]
    video = videos.blocks[-1]
    read = RolloutLog.open(imagined).read("train/7")  # the eighth
    assert list(video.panels) == ["real", "imagined", "confidence"]
    np.testing.assert_array_equal(video.panels["real"], read["frame"][:, 0])
    np.testing.assert_array_equal(video.panels["imagined"], read["imagined"][:, 0])
    certain = video.panels["confidence"][0].astype(int)  # a context frame, hence all yellow
    assert (certain[..., 0] - certain[..., 2]).min() > 50
    doubtful = video.panels["confidence"][4].astype(int)
    assert (doubtful[..., 0] - doubtful[..., 2]).max() < 50
    assert video.rate_hz == 5.0


def test_wrong_input_is_refused_and_nothing_written(
    imagined: Path, scenes: Path, tmp_path: Path, refused: Refused
) -> None:
    out = ("--out", tmp_path / "report.html")
    RolloutLog.create(tmp_path / "empty.zarr", attributes={})
    foreign = RolloutLog.create(tmp_path / "foreign.zarr", attributes={"rate_hz": 5.0})
    with foreign.begin("a") as rollout:
        rollout.append({"temperature": 20.0})
    assert "no zarr.json" in refused("report", tmp_path / "nowhere", *out)
    assert "must be a rollout-log" in refused("report", scenes, *out)
    assert "holds no step of any rollout" in refused("report", tmp_path / "empty.zarr", *out)
    assert "is no log of `worldmodel imagine`" in refused("report", foreign.path, *out)
    assert "is a folder" in refused("report", imagined, "--out", tmp_path)
    assert not list(tmp_path.glob("*.html"))
