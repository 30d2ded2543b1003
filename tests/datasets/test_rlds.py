"""Bridge RLDS: bit for bit what TensorFlow reads, and small files broken in every way."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldmodel.datasets.actions import DeltaPose
from worldmodel.datasets.poses import PoseStates
from worldmodel.datasets.readers.rlds import SPEC, open_rlds
from worldmodel.datasets.trajectory import Trajectory

RECORDED = Path(__file__).with_name("rlds_hashes.json")
"""Written by `record_rlds_hashes.py` from TensorFlow 2.21."""
SHARD = "bridge_test-train.tfrecord-00000-of-00001"


def digest(values: np.ndarray | bytes) -> str:
    data = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def hashes(episode: Trajectory) -> dict[str, str]:
    """The same hashes of our reader's frames, actions, states and text."""
    frames = {camera: digest(frames[:]) for camera, frames in episode.frames.items()}
    action, state = episode.signals["action"], episode.signals["observation/state"]
    text = episode.instruction.encode()
    return {**frames, "action": digest(action), "state": digest(state), "text": digest(text)}


def test_every_episode_equals_tensorflow_bit_for_bit(real_data: Path) -> None:
    dataset = open_rlds(real_data / "bridge_rlds/1.0.0")
    assert {e.episode_id: hashes(e) for e in dataset} == json.loads(RECORDED.read_text())


def test_real_splits_lengths_and_cameras(real_data: Path) -> None:
    dataset = open_rlds(real_data / "bridge_rlds/1.0.0")
    expected = [f"{split}/{i:04d}" for split in ("train", "val") for i in range(25)]
    assert list(dataset.episode_ids) == expected
    assert {dataset.summary(key).num_frames for key in expected} == {10}
    assert dataset.cameras == ("image_0", "image_1", "image_2")  # image_3 is black
    assert dataset.rate_hz == 5.0
    assert dataset.summary(0).instruction == "put cup from counter or drying rack into sink"


def correlations(episodes: list[Trajectory], shift: int) -> np.ndarray:
    """Per axis, of commanded row t with the pose change from frame t + shift to t + shift + 1."""
    commanded, achieved = [], []
    for episode in episodes:
        poses = episode.signals["observation/state"].astype(np.float64)
        turns = Rotation.from_euler("xyz", poses[:, 3:6])
        turned = (turns[1:] * turns[:-1].inv()).as_rotvec()
        change = np.concatenate([np.diff(poses[:, :3], axis=0), turned], axis=1)
        rows = np.arange(2, 7)
        commanded.append(episode.actions[rows, :6])
        achieved.append(change[rows + shift])
    left, right = np.concatenate(commanded), np.concatenate(achieved)
    return np.array([np.corrcoef(left[:, i], right[:, i])[0, 1] for i in range(6)])


def test_row_t_commands_the_step_from_frame_t(real_data: Path) -> None:
    """125 rows; the arm follows half a step late, so the two steps after frame t share the motion.

    The gap between 0.8 and below 0.75 on every axis is over 2 standard errors of a correlation.
    """
    dataset = open_rlds(real_data / "bridge_rlds/1.0.0")
    episodes = [dataset.episode(f"train/{i:04d}") for i in range(25)]
    before, during, after = (correlations(episodes, shift) for shift in (-1, 0, 1))
    assert (during > before + 0.15).all()
    assert during.min() > 0.75
    assert np.abs(during - after).max() < 0.15


def test_real_rows_come_back_from_canonical_ones(real_data: Path) -> None:
    for episode in open_rlds(real_data / "bridge_rlds/1.0.0"):
        valid = episode.action_valid
        assert valid.tolist() == [False] + [True] * 8 + [False]
        stored = DeltaPose(SPEC).inverse(episode.actions[valid])
        np.testing.assert_allclose(stored, episode.signals["action"][valid], atol=1e-6)
        assert episode.states is not None
        poses = PoseStates(SPEC.gripper).inverse(episode.states)
        np.testing.assert_allclose(poses, episode.signals["observation/state"], atol=1e-6)


def test_a_small_episode(rlds_folder: Path, rlds_features: dict[str, Any]) -> None:
    dataset = open_rlds(rlds_folder)
    assert dataset.episode_ids == ("train/0000", "train/0001")
    assert dataset.cameras == ("image_0",)
    episode = dataset.episode(1)
    assert episode.action_valid.tolist() == [False, True, True, False]
    assert episode.signals["is_first"].tolist() == [True, False, False, False]
    np.testing.assert_array_equal(episode.signals["action"], rlds_features["steps/action"])
    assert episode.frames["image_0"][1:3].shape == (2, 32, 48, 3)


def rewrite(folder: Path, record: bytes) -> None:
    (folder / SHARD).write_bytes(record * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f["steps/action"][2].fill(np.nan),
            "record 0: `actions` holds NaN .* row 2 of 4",
        ),
        (lambda f: f["steps/observation/state"][1].fill(np.inf), "`observation/state` holds NaN"),
        (
            lambda f: f.update({"steps/action": f["steps/action"][:3]}),
            r"record 0: `steps/action` holds 21 values, expected shape \(4, 7\)",
        ),
        (
            lambda f: f.update({"steps/observation/image_0": f["steps/observation/image_0"][:3]}),
            "camera image_0 hold 3 frames, but there are 4 actions",
        ),
        (lambda f: f.pop("steps/is_first"), "record 0: `steps/is_first` holds 0 values"),
        (lambda f: f.pop("steps/language_instruction"), "has no text `steps/language_instruction`"),
    ],
)
def test_a_record_at_odds_with_itself_is_refused(
    rlds_folder: Path,
    rlds_features: dict[str, Any],
    encode: Callable[[dict[str, Any]], bytes],
    framed: Callable[[bytes], bytes],
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    features = {k: v.copy() for k, v in rlds_features.items()}
    change(features)
    rewrite(rlds_folder, framed(encode(features)))
    with pytest.raises(ValueError, match=message) as caught:
        open_rlds(rlds_folder).episode(0)
    assert str(rlds_folder) in str(caught.value)


def test_a_record_that_is_no_example_is_refused(
    rlds_folder: Path, framed: Callable[[bytes], bytes]
) -> None:
    rewrite(rlds_folder, framed(b"\x0a\x05\x0a"))
    with pytest.raises(ValueError, match=rf"{SHARD}, record 0 is no tf\.train\.Example"):
        open_rlds(rlds_folder)


def test_a_flipped_bit_is_refused(rlds_folder: Path) -> None:
    shard = rlds_folder / SHARD
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{SHARD} is damaged: .* fails its checksum"):
        open_rlds(rlds_folder)


def test_a_truncated_shard_is_refused(rlds_folder: Path) -> None:
    shard = rlds_folder / SHARD
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{SHARD} ends inside record 1; it is truncated\."):
        open_rlds(rlds_folder)


def test_a_lost_record_is_refused(rlds_folder: Path) -> None:
    shard = rlds_folder / SHARD
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"holds 1 records, but dataset_info\.json declares 2\."):
        open_rlds(rlds_folder)


def test_a_missing_shard_is_refused(rlds_folder: Path) -> None:
    (rlds_folder / SHARD).unlink()
    with pytest.raises(ValueError, match=r"holds none of its shards: .*shards 0 of 1 are missing"):
        open_rlds(rlds_folder)


def test_another_dataset_is_refused_since_its_actions_are_unknown(rlds_folder: Path) -> None:
    file = rlds_folder / "dataset_info.json"
    file.write_text(file.read_text().replace("bridge_test", "kitchen"))
    (rlds_folder / SHARD).rename(rlds_folder / SHARD.replace("bridge_test", "kitchen"))
    with pytest.raises(ValueError, match=r"holds `kitchen`, but RLDS does not declare what an"):
        open_rlds(rlds_folder)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"splits": 3, "name": "bridge"}'])
def test_broken_descriptions_are_refused(rlds_folder: Path, name: str, text: str) -> None:
    (rlds_folder / name).write_text(text)
    message = "is not valid JSON|expected `object`|missing required field|`splits`|RLDS does not"
    with pytest.raises(ValueError, match=message):
        open_rlds(rlds_folder)


def test_another_file_format_is_refused_with_the_way_out(rlds_folder: Path) -> None:
    file = rlds_folder / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": "array_record"}))
    with pytest.raises(ValueError, match=r"stored as 'array_record', .*--file_format=tfrecord"):
        open_rlds(rlds_folder)
