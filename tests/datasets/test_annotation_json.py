"""DROID annotations: the real ones, and small ones broken in every way."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldmodel.datasets.poses import AchievedActions
from worldmodel.datasets.readers.annotation_json import CAMERAS, SPEC, open_annotation_json

LENGTHS = {
    "train/0": 56,
    "train/1": 89,
    "train/2": 137,
    "train/3": 80,
    "train/4": 124,
    "train/5": 62,
    "train/6": 39,
    "val/199": 33,
    "val/899": 121,
    "val/1799": 41,
    "val/18599": 72,
}


def test_real_episodes_are_all_found_with_their_lengths(real_data: Path) -> None:
    dataset = open_annotation_json(real_data / "droid")
    found = {key: dataset.summary(key).num_frames for key in dataset.episode_ids}
    assert found == LENGTHS
    assert list(found) == list(LENGTHS)
    assert dataset.rate_hz == 5.0
    assert dataset.cameras == CAMERAS


def test_real_instructions_and_outcomes(real_data: Path) -> None:
    dataset = open_annotation_json(real_data / "droid")
    episode, summary = dataset.episode("val/199"), dataset.summary("val/199")
    assert episode.instruction == "Move the green towel to the right of the lid"
    assert summary.instruction == episode.instruction
    assert episode.success is summary.success is False
    assert dataset.summary("train/0").success is True


def test_real_actions_carry_each_pose_to_the_next(real_data: Path) -> None:
    """The check multiplies matrices; no Euler angle is subtracted, here or there."""
    episode = open_annotation_json(real_data / "droid").episode("train/1")
    source = episode.signals["states"]
    matrices = Rotation.from_euler("xyz", source[:, 3:6]).as_matrix()
    turns = Rotation.from_rotvec(episode.actions[:-1, 3:6]).as_matrix()
    np.testing.assert_allclose(turns @ matrices[:-1], matrices[1:], atol=1e-6)
    moved = source[:-1, :3] + episode.actions[:-1, :3]
    np.testing.assert_allclose(moved, source[1:, :3], atol=1e-6)
    np.testing.assert_allclose(episode.actions[:-1, 6], 1 - source[1:, 6], atol=1e-6)
    assert np.abs(np.diff(source[:, 3])).max() > 6  # this episode does wrap
    assert np.abs(episode.actions[:, 3:6]).max() < 0.5


def test_real_actions_lead_back_to_the_stored_poses(real_data: Path) -> None:
    episode = open_annotation_json(real_data / "droid").episode("val/18599")
    source = episode.signals["states"]
    poses = AchievedActions(SPEC.gripper).inverse(episode.actions.astype(np.float64), source[0])
    np.testing.assert_allclose(poses[:, [0, 1, 2, 6]], source[:, [0, 1, 2, 6]], atol=1e-5)
    turns = [Rotation.from_euler("xyz", rows[:, 3:6]) for rows in (poses, source)]
    assert (turns[0] * turns[1].inv()).magnitude().max() < 1e-5


def test_the_raw_recording_stays_beside_the_canonical_arrays(real_data: Path) -> None:
    episode = open_annotation_json(real_data / "droid").episode("val/199")
    assert episode.signals["action.cartesian_position"].shape == (97, 6)
    raw = episode.signals["observation.state.cartesian_position"]
    np.testing.assert_array_equal(episode.signals["states"][:, :6], raw[::3])


def test_every_real_camera_shows_every_frame(real_data: Path) -> None:
    episode = open_annotation_json(real_data / "droid").episode("val/199")
    shown = [episode.frames[camera][:] for camera in CAMERAS]
    for frames in shown:
        assert frames.shape == (33, 192, 320, 3)
        assert (
            np.abs(np.diff(frames[[0, 16, 32]].astype(float), axis=0)).mean(axis=(1, 2, 3)).min()
            > 1
        )
    for camera, other in itertools.combinations(shown, 2):
        assert np.abs(camera.astype(float) - other).mean() > 10  # different views of the scene


def test_a_small_episode(droid_folder: Path) -> None:
    episode = open_annotation_json(droid_folder).episode(0)
    assert (episode.episode_id, len(episode), episode.success) == ("train/0", 12, True)
    assert episode.action_valid.tolist() == [True] * 11 + [False]
    assert episode.signals["action.gripper_position"].shape == (35,)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "annotation/train/0.json"
    annotation = json.loads(file.read_text())
    change(annotation)
    file.write_text(json.dumps(annotation))


@pytest.mark.parametrize("key", ["texts", "success", "video_length", "videos", "states"])
def test_a_missing_key_is_named(droid_folder: Path, key: str) -> None:
    edit(droid_folder, lambda annotation: annotation.pop(key))
    with pytest.raises(ValueError, match=rf"0\.json: object missing required field `{key}`"):
        open_annotation_json(droid_folder)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '"text"', "\xff"])
def test_what_is_no_annotation_is_refused(droid_folder: Path, text: str) -> None:
    (droid_folder / "annotation/train/0.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"0\.json(: expected `object`, got| is not valid JSON)"):
        open_annotation_json(droid_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["states"].pop(), r"0\.json: 11 `states` for 12 frames\."),
        (lambda a: a["states"][3].pop(), r"0\.json: `states` is not an array of numbers"),
        (
            lambda a: [row.pop() for row in a["states"]],
            r"rows of 7 numbers, got .* shape \(12, 6\)",
        ),
        (
            lambda a: a["states"][5].__setitem__(2, float("nan")),
            "infinity, after `states`",
        ),
        (lambda a: a["videos"].append(a["videos"][0]), r"0\.json lists the videos 0\.mp4, 1\.mp4"),
        (
            lambda a: a["videos"].__setitem__(0, {}),
            r"`videos\[0\]`: .* `video_path`",
        ),
        (lambda a: a.update({"action.x": ["a"]}), "`action.x` is not an array of numbers"),
        (
            lambda a: a.update(video_length=9, states=a["states"][:9]),
            r"0\.json: camera exterior_1_left has 12 frames for 9 rows\.",
        ),
    ],
)
def test_an_annotation_at_odds_with_itself_or_its_video_is_refused(
    droid_folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(droid_folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        open_annotation_json(droid_folder).episode(0)
    assert str(droid_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_video_is_refused_when_the_episode_opens(droid_folder: Path) -> None:
    mp4 = droid_folder / "videos/train/0/1.mp4"
    mp4.write_bytes(mp4.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"1\.mp4 is not a readable video"):
        open_annotation_json(droid_folder).episode("train/0")


def test_a_missing_video_is_a_missing_camera(droid_folder: Path) -> None:
    (droid_folder / "videos/train/0/2.mp4").unlink()
    episode = open_annotation_json(droid_folder).episode("train/0")
    assert list(episode.frames) == ["exterior_1_left", "exterior_2_left"]
    assert episode.notes == ("wrist_left is missing: its video does not exist.",)


def test_without_any_video_an_episode_is_refused(droid_folder: Path) -> None:
    for file in (droid_folder / "videos/train/0").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"0\.json: none of its videos exists"):
        open_annotation_json(droid_folder).episode("train/0")


def test_annotations_of_another_robot_are_refused(real_data: Path) -> None:
    with pytest.raises(ValueError, match=r"example\.json: .*`texts`.* 7-number pose per frame"):
        open_annotation_json(real_data / "extra/languagetable_irasim")
