"""The validator: every check fires on what it is for, and on nothing else."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.validate import Finding, validate

Make = Callable[..., Trajectory]


def dataset_of(*episodes: Trajectory) -> FileDataset:
    """Episodes in memory, as a dataset."""
    by_id = {episode.episode_id: episode for episode in episodes}
    return FileDataset(
        form="memory",
        path=Path(),
        cameras=tuple(episodes[0].frames),
        action_spec=episodes[0].action_spec,
        episode_ids=tuple(by_id),
        load=by_id.__getitem__,
        summarize=lambda name: EpisodeSummary(num_frames=12, instruction="", success=None),
    )


def findings(*episodes: Trajectory) -> list[tuple[str, str, str]]:
    """Id, check and severity of everything found."""
    found = [finding for found in validate(dataset_of(*episodes)) for finding in found]
    return [(finding.episode_id, finding.check, finding.severity) for finding in found]


def with_view(trajectory: Trajectory, change: Callable[[np.ndarray], np.ndarray]) -> Trajectory:
    """The episode with its front camera changed."""
    front = trajectory.frames["front"]
    frames = {**trajectory.frames, "front": type(front)(change(front[0:12].copy()))}
    return replace(trajectory, frames=frames)


def hold(first: int, last: int) -> Callable[[np.ndarray], np.ndarray]:
    """Repeat frame `first` up to and including frame `last`."""

    def change(pixels: np.ndarray) -> np.ndarray:
        pixels[first : last + 1] = pixels[first]
        return pixels

    return change


def blacken(pixels: np.ndarray) -> np.ndarray:
    pixels[3:5] = 0
    return pixels


def test_a_good_episode_has_no_findings(make_trajectory: Make) -> None:
    assert findings(make_trajectory("a"), make_trajectory("b", seed=1)) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (blacken, [("a", "black-view", "warning")]),
        (lambda pixels: pixels // 200, [("a", "black-view", "warning")]),
        (hold(0, 11), [("a", "frozen-view", "error")]),
        (hold(2, 7), [("a", "frozen-view", "warning")]),
        (hold(2, 6), []),
    ],
)
def test_views(
    make_trajectory: Make, change: Callable[[np.ndarray], np.ndarray], expected: list
) -> None:
    assert findings(with_view(make_trajectory("a"), change)) == expected


def test_a_view_may_stand_still_while_the_arm_does(make_trajectory: Make) -> None:
    trajectory = make_trajectory("a")
    actions = trajectory.actions.copy()
    actions[:, :3] *= 0.01
    assert findings(replace(with_view(trajectory, hold(0, 11)), actions=actions)) == []


def first_row_zero() -> np.ndarray:
    actions = np.full((12, 7), 0.01, np.float32)
    actions[0, :6] = 0
    return actions


def mostly_idle(moving: int) -> np.ndarray:
    actions = np.full((12, 7), 0.5, np.float32)
    actions[:, :6] = 1e-5
    actions[:moving, 0] = 0.02
    return actions


NAN_STATES = np.full((12, 10), np.nan, np.float32)
EULER = np.zeros((12, 7))
EULER[:, 3] = np.where(np.arange(12) % 4 < 2, 3.1, -3.1)  # five jumps


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"instruction": "  "}, [("a", "empty-language", "warning")]),
        ({"actions": first_row_zero()}, [("a", "zero-first-action", "warning")]),
        ({"action_valid": np.arange(12) > 0}, [("a", "zero-first-action", "info")]),
        ({"actions": mostly_idle(4)}, [("a", "idle", "warning")]),
        ({"actions": mostly_idle(6)}, []),
        ({"states": NAN_STATES}, [("a", "not-finite", "error")]),
        ({"signals": {"x": np.array([np.inf])}}, [("a", "not-finite", "warning")]),
        ({"signals": {"pose": EULER}}, []),
    ],
)
def test_rows(make_trajectory: Make, changes: dict[str, Any], expected: list) -> None:
    assert findings(make_trajectory("a", **changes)) == expected


def test_no_valid_action_is_an_error(make_trajectory: Make) -> None:
    found = findings(make_trajectory("a", action_valid=np.zeros(12, bool)))
    assert ("a", "no-action", "error") in found


def test_wrapped_euler_angles_are_counted(make_trajectory: Make) -> None:
    trajectory = make_trajectory("a", signals={"pose": EULER, "joints": np.tile(EULER, (1, 2))})
    euler = replace(trajectory, action_spec=replace(trajectory.action_spec, rotation="euler_xyz"))
    [[finding]] = validate(dataset_of(euler))
    assert (finding.check, finding.severity) == ("wrapped-rotation", "info")
    assert "`pose` 5 times;" in finding.message
    assert "joints" not in finding.message


def test_a_twin_is_found_across_splits(make_trajectory: Make) -> None:
    twins = [make_trajectory("train/0"), make_trajectory("val/7"), make_trajectory("c", seed=1)]
    assert findings(*twins) == [("val/7", "duplicate", "warning")]


def test_one_bad_episode_does_not_hide_the_others(
    droid_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotation = (droid_folder / "annotation/train/0.json").read_text()
    for name in ("1", "2"):
        shutil.copytree(droid_folder / "videos/train/0", droid_folder / f"videos/train/{name}")
        text = annotation.replace("videos/train/0", f"videos/train/{name}")
        (droid_folder / f"annotation/train/{name}.json").write_text(text)
    video = droid_folder / "videos/train/1/0.mp4"
    video.write_bytes(video.read_bytes()[:-600])
    (droid_folder / "annotation/train/2.json").write_text(annotation.replace('"success": 1,', ""))
    found = [one for found in validate(open_dataset(droid_folder)) for one in found]
    worst = [(one.episode_id, one.check) for one in found if one.severity == "error"]
    assert worst[0][0] == "train/1"
    assert worst[0][1] in ("unreadable", "undecodable")
    assert worst[1:] == [("train/2", "unreadable")]
    assert any("missing required field `success`" in one.message for one in found)
    assert "train/0" in {one.episode_id for one in found}


def test_a_rate_tag_that_contradicts_the_data_is_named(droid_folder: Path) -> None:
    [found] = validate(open_dataset(droid_folder))
    assert [one for one in found if one.check == "rate-tag"] == [
        Finding(
            "train/0",
            "rate-tag",
            "warning",
            f"{camera}: the video says 20 frames per second, the data are 5.",
        )
        for camera in ("exterior_1_left", "exterior_2_left", "wrist_left")
    ]


def test_real_bridge_holds_out_what_it_trains_on(real_data: Path) -> None:
    found = [
        finding
        for found in validate(open_dataset(real_data / "bridge_rlds/1.0.0"))
        for finding in found
        if finding.check == "duplicate"
    ]
    assert len(found) == 25
    assert all(finding.episode_id.startswith("val/") for finding in found)
    assert all("equals train/" in finding.message for finding in found)
