"""Public users' inputs, each read with its right value; needs the folder of cases."""

import os
from pathlib import Path

import numpy as np
import pytest

from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.trajectory import Frames, Trajectory

SPEC = 'columns = ["observation.state"]\ngripper = "closed_is_one"\n'
"""The meaning of cases whose columns have no names."""
NUMBERS = [0, 1, 1, 2, 4, 4, 5, 7, 8, 8, 9, 11, 11, 12, 14, 15, 15, 16, 18, 19]
"""Numbers that the first twenty frames of an episode carry."""


@pytest.fixture(scope="module")
def cases() -> Path:
    """The folder of cases."""
    default = Path(__file__).resolve().parents[3] / "shared" / "cases"
    folder = Path(os.environ.get("WORLDMODEL_CASES", default))
    if not folder.is_dir():
        pytest.skip(f"no cases in {folder}; set WORLDMODEL_CASES to their folder")
    return folder


def numbers(frames: Frames) -> list[int]:
    """The number that each frame carries as the grey level of its upper left block."""
    return [round((frame[:32, :32].mean() - 8) / 2) for frame in frames[:]]


def opening(episode: Trajectory) -> float:
    assert episode.states is not None
    return float(episode.states[0, 9])


def test_joints_are_never_taken_for_poses(cases: Path) -> None:
    dataset = open_dataset(cases / "lerobot_seven_joints")
    assert "joint_0.pos" in str(getattr(dataset, "undeclared", ""))
    assert not dataset.episode(0).action_valid.any()
    assert dataset.episode(0).states is None


def test_a_declared_gripper_sense_is_kept(cases: Path) -> None:
    episode = open_dataset(cases / "lerobot_open_is_one").episode(0)
    assert episode.actions[0, 6] == pytest.approx(0.205, abs=1e-3)


def test_joined_videos_are_cut_at_their_time_stamps(cases: Path, tmp_path: Path) -> None:
    """The numbers run on over all 24 episodes, except for the wrap at 120."""
    file = tmp_path / "spec.toml"
    file.write_text(SPEC)
    dataset = open_dataset(cases / "lerobot_true_pts_1ms", action_spec=file)
    runs = [numbers(episode.frames["front"]) for episode in dataset]
    steps = np.diff(np.concatenate(runs))
    assert len(runs) == 24
    assert set(steps[steps > -60]) <= {0, 1, 2}
    assert runs[18][0] == 98 - 1  # the level is rounded
    assert [len(run) for run in runs][:4] == [16, 14, 12, 9]


def test_the_published_droid_port(cases: Path) -> None:
    dataset = open_dataset(cases / "lerobot_droid_port")
    assert dataset.rate_hz == 15.0
    assert len(dataset.cameras) == 3
    episode = dataset.episode(0)
    assert episode.states is not None
    np.testing.assert_allclose(episode.states[0, :3], [0.443, 0.139, 0.511], atol=1e-3)
    assert opening(episode) == 1.0


def test_lerobot_before_v3(cases: Path, tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(SPEC)
    dataset = open_dataset(cases / "lerobot_v21", action_spec=file)
    assert [len(episode) for episode in dataset] == [20, 20]
    assert numbers(dataset.episode(1).frames["front"]) == NUMBERS
    assert dataset.episode(0).action_valid.sum() == 19


def test_episodes_outside_every_split_are_kept(cases: Path) -> None:
    dataset = open_dataset(cases / "lerobot_split_short")
    assert dataset.episode_ids[-1] == "other/4"
    assert len(dataset) == 5
    assert "in no split" in " ".join(getattr(dataset, "notes", ()))


def test_depth_is_no_grey_camera(cases: Path) -> None:
    dataset = open_dataset(cases / "lerobot_depth_stream")
    assert dataset.cameras == ("front",)
    assert "front_depth" in " ".join(getattr(dataset, "notes", ()))


def test_droid_as_rlds(cases: Path) -> None:
    dataset = open_dataset(cases / "rlds_droid")
    assert (len(dataset), dataset.rate_hz, dataset.summary(0).success) == (2, 15.0, True)
    assert dataset.action_spec.space == "absolute_pose"
    assert opening(dataset.episode(0)) == 1.0


def test_png_images(cases: Path) -> None:
    png = open_dataset(cases / "rlds_bridge_png").episode(0)
    assert png.frames["image_0"][:].std() > 10


def test_a_camera_lit_later_is_missing_before(cases: Path) -> None:
    dataset = open_dataset(cases / "rlds_late_camera")
    assert "image_3" in dataset.cameras
    lit = ["image_3" in episode.frames for episode in dataset]
    assert lit == [False] * 8 + [True] * 4


def test_the_shards_that_are_there_are_read(cases: Path) -> None:
    dataset = open_dataset(cases / "rlds_some_shards")
    assert len([*dataset]) == 6
    assert "shards 3 of 4 are missing" in " ".join(getattr(dataset, "notes", ()))


def test_bridge_as_irasim(cases: Path) -> None:
    episode = open_dataset(cases / "irasim_bridge").episode(0)
    assert len(episode) == 10
    assert episode.action_valid.sum() == 9
    assert opening(episode) == pytest.approx(1.0008, abs=1e-4)
    assert episode.signals["action"].shape == (9, 7)


@pytest.mark.parametrize("name", ["worldgym_jitter", "worldgym_pause"])
def test_frames_are_counted_and_not_timed(cases: Path, name: str) -> None:
    frames = open_dataset(cases / name).episode(0).frames["image"]
    assert numbers(frames)[:20] == NUMBERS
    assert [numbers(frames)[i] for i in (25, 39)] == [25, 39]
    parts = [frames[i : i + 1] for i in range(40)]
    np.testing.assert_array_equal(np.concatenate(parts), frames[:])


@pytest.mark.parametrize(("name", "length"), [("more", 20), ("less", 19)])
def test_one_frame_more_or_fewer(cases: Path, name: str, length: int) -> None:
    episode = open_dataset(cases / f"droid_one_frame_{name}").episode(0)
    assert len(episode) == length
    assert "is dropped" in episode.notes[0]
    assert numbers(episode.frames["wrist_left"]) == NUMBERS[:length]


def test_an_episode_without_its_wrist_camera(cases: Path) -> None:
    whole, part = open_dataset(cases / "droid_wrist_missing_in_one")
    assert "wrist_left" in whole.frames
    assert list(part.frames) == ["exterior_1_left", "exterior_2_left"]


def test_droid_as_recorded(cases: Path) -> None:
    dataset = open_dataset(cases / "droid_raw")
    assert dataset.summary(0).success is True
    episode = dataset.episode(0)
    assert (len(episode), episode.rate_hz) == (20, 15.0)
    assert numbers(episode.frames["10000001"]) == NUMBERS
