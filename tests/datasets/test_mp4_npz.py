"""WorldGym's Bridge: the real episodes, and small ones broken in every way."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from worldmodel.datasets.actions import DeltaPose
from worldmodel.datasets.readers.mp4_npz import SPEC, open_mp4_npz


def test_real_episodes_are_all_found(real_data: Path) -> None:
    dataset = open_mp4_npz(real_data / "bridge_worldgym")
    lengths = [dataset.summary(key).num_frames for key in dataset.episode_ids]
    assert lengths == [22, 40, 41, 32, 23, 31, 41, 27, 49, 49]
    assert dataset.episode_ids[0] == "test/000000002"
    assert dataset.episode_ids[-1] == "train/000000009"
    assert all(dataset.summary(key).success is None for key in dataset.episode_ids)


def test_the_rate_is_that_of_bridge_whatever_the_video_says(real_data: Path) -> None:
    path = real_data / "bridge_worldgym"
    with av.open(str(path / "train/000000000.mp4")) as container:
        assert container.streams.video[0].average_rate == 20
    dataset = open_mp4_npz(path)
    assert dataset.rate_hz == dataset.episode(0).rate_hz == 5.0


def test_real_actions_are_metres_radians_and_opening(real_data: Path) -> None:
    episode = open_mp4_npz(real_data / "bridge_worldgym").episode("train/000000008")
    stored = episode.signals["arr_0"]
    valid = episode.action_valid
    np.testing.assert_allclose(episode.actions[valid, :3], stored[valid, :3] / 35, atol=1e-7)
    small = valid & (np.abs(stored[:, 3:6]).max(axis=1) < 0.1)  # nearly the rotation vector
    assert small.sum() > 5
    np.testing.assert_allclose(episode.actions[small, 3:6], stored[small, 3:6] / 5.6, atol=2e-4)
    np.testing.assert_array_equal(episode.actions[valid, 6], (1 - stored[valid, 6]) / 2)


def test_the_start_up_row_is_invalid_only_where_it_is_zero(real_data: Path) -> None:
    dataset = open_mp4_npz(real_data / "bridge_worldgym")
    moving = {key for key in dataset.episode_ids if dataset.episode(key).action_valid[0]}
    assert moving == {"train/000000008", "train/000000009"}
    for episode in dataset:
        assert episode.action_valid[1:-1].all()
        assert not episode.action_valid[-1]


def test_frames_stand_still_where_the_start_up_row_is_zero(real_data: Path) -> None:
    """The alignment: no motion from frame 0 to 1 under row 0, motion from 1 to 2 under row 1."""
    for episode in open_mp4_npz(real_data / "bridge_worldgym"):
        if not episode.action_valid[0]:
            frames = episode.frames["image"][:3].astype(np.float64)
            first, second = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
            assert second > 4 * first


def test_stored_rows_come_back_from_canonical_ones(real_data: Path) -> None:
    for episode in open_mp4_npz(real_data / "bridge_worldgym"):
        valid = episode.action_valid
        stored = DeltaPose(SPEC).inverse(episode.actions[valid])
        np.testing.assert_allclose(stored, episode.signals["arr_0"][valid], atol=2e-6)


def test_a_small_episode(worldgym_folder: Path) -> None:
    episode = open_mp4_npz(worldgym_folder).episode("train/000000000")
    np.testing.assert_allclose(episode.actions[2], [0.01, -0.02, 0, 0, 0, 0.1, 1], atol=1e-7)
    assert episode.action_valid.tolist() == [False, True, True, True, True, False]
    assert (episode.states, episode.instruction) == (None, "")
    assert episode.frames["image"][:].shape == (6, 32, 48, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:4], r"000\.npz: camera image has 6 frames for 4 rows\."),
        (lambda rows: rows[:, :7], r"000\.npz: `actions` must be rows of 10 numbers"),
        (lambda rows: rows[0], r"000\.npz: `arr_0` must be \[frames, 10\], got shape \(10,\)\."),
        (lambda rows: rows / np.where(np.arange(6) == 3, 0, 1)[:, None], "NaN or infinity.*row 3"),
        (lambda rows: rows + 1, "mobile base"),
        (lambda rows: rows.astype(object), "has no readable array `arr_0`"),
    ],
)
def test_actions_that_are_none_are_refused(
    worldgym_folder: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    file = worldgym_folder / "train/000000000.npz"
    with np.load(file) as archive, np.errstate(all="ignore"):
        np.savez(file, arr_0=change(archive["arr_0"]))
    with pytest.raises(ValueError, match=message) as caught:
        open_mp4_npz(worldgym_folder).episode(0)
    assert str(worldgym_folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive at all"])
def test_a_broken_archive_is_refused(worldgym_folder: Path, content: bytes) -> None:
    (worldgym_folder / "train/000000000.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"000\.npz has no readable array `arr_0`"):
        open_mp4_npz(worldgym_folder).summary(0)


def test_an_archive_of_other_arrays_is_refused(worldgym_folder: Path) -> None:
    np.savez(worldgym_folder / "train/000000000.npz", actions=np.zeros((6, 10)))
    with pytest.raises(ValueError, match=r"000\.npz has no readable array `arr_0`"):
        open_mp4_npz(worldgym_folder).episode(0)


def test_a_truncated_video_is_refused(worldgym_folder: Path) -> None:
    mp4 = worldgym_folder / "train/000000000.mp4"
    mp4.write_bytes(mp4.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"000\.mp4 is not a readable video"):
        open_mp4_npz(worldgym_folder).episode(0)
