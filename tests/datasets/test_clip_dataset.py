"""Windows of clips: which there are, that they stay inside an episode, and what they hold."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_dataset import MAX_OPEN_EPISODES, ClipDataset, collate
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Frames, Trajectory


def first_rows(trajectory: Trajectory, count: int, cut: Callable[[Frames], Frames]) -> Trajectory:
    return replace(
        trajectory,
        frames={camera: cut(frames) for camera, frames in trajectory.frames.items()},
        actions=trajectory.actions[:count],
        action_valid=trajectory.action_valid[:count],
        states=None,
        signals={},
    )


@pytest.fixture
def store(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> ClipStore:
    """Episodes of 12, 3, 12 and 5 frames, each with its own actions."""
    store = ClipStore.create(
        tmp_path / "s.zarr",
        cameras=["front", "wrist"],
        action_spec=CANONICAL,
        rate_hz=5.0,
        encoding="raw",
    )
    for index, length in enumerate((12, 3, 12, 5)):
        whole = make_trajectory(str(index), seed=index)
        cut = first_rows(whole, length, lambda frames, n=length: type(frames)(frames[0:n]))
        store.add(cut)
    return store


def test_windows_are_those_counted_by_hand(store: ClipStore) -> None:
    clips = ClipDataset(store, cameras=["front"], num_frames=5, stride=3)
    places = [(int(clip.episode), int(clip.start)) for clip in clips]
    assert places == [(0, 0), (0, 3), (0, 6), (2, 0), (2, 3), (2, 6), (3, 0)]
    assert len(clips) == 7
    assert clips.num_skipped == 1


def test_a_clip_holds_the_rows_and_frames_of_its_window(store: ClipStore) -> None:
    for clip in ClipDataset(store, cameras=["front"], num_frames=4):
        trajectory = store.episode(int(clip.episode))
        window = slice(int(clip.start), int(clip.start) + 4)
        np.testing.assert_array_equal(clip.actions.numpy(), trajectory.actions[window])
        np.testing.assert_array_equal(clip.action_valid.numpy(), trajectory.action_valid[window])
        np.testing.assert_array_equal(clip.frames[:, 0].numpy(), trajectory.frames["front"][window])


def test_a_camera_that_an_episode_lacks_is_black_and_marked(
    tmp_path: Path, make_trajectory: Callable[..., Trajectory]
) -> None:
    store = ClipStore.create(
        tmp_path / "s.zarr",
        cameras=["front", "wrist"],
        action_spec=CANONICAL,
        rate_hz=5.0,
        encoding="raw",
    )
    whole = make_trajectory("whole")
    front = whole.frames["front"]
    store.add(replace(whole, frames={"front": front, "wrist": front}))
    store.add(replace(whole, episode_id="one view", frames={"wrist": front}))
    clips = ClipDataset(store, cameras=["front", "wrist"], num_frames=12)
    batch = collate([clips[0], clips[1]])
    assert batch.view_valid.tolist() == [[True, True], [False, True]]
    assert not batch.frames[1, :, 0].any()
    np.testing.assert_array_equal(batch.frames[1, :, 1].numpy(), front[0:12])


def test_views_come_in_the_order_asked_for(
    tmp_path: Path, make_trajectory: Callable[..., Trajectory]
) -> None:
    trajectory = make_trajectory("a")
    front = trajectory.frames["front"]
    turned = type(front)(front[0:12][:, ::-1, ::-1])
    store = ClipStore.create(
        tmp_path / "s.zarr",
        cameras=["up", "down"],
        action_spec=CANONICAL,
        rate_hz=5.0,
        encoding="raw",
    )
    store.add(replace(trajectory, frames={"up": front, "down": turned}))
    clip = ClipDataset(store, cameras=["down", "up"], num_frames=12)[0]
    np.testing.assert_array_equal(clip.frames[:, 1].numpy(), front[0:12])
    np.testing.assert_array_equal(clip.frames[:, 0].numpy(), turned[0:12])


def test_a_loader_with_workers_gives_the_same_batches(store: ClipStore) -> None:
    clips = ClipDataset(store, cameras=["wrist"], num_frames=5, stride=2)
    loader = torch.utils.data.DataLoader(clips, batch_size=4, collate_fn=collate, num_workers=1)
    batches = list(loader)
    assert [len(batch.start) for batch in batches] == [4, 4, 1]
    assert batches[0].frames.shape == (4, 5, 1, 16, 24, 3)
    for index, clip in enumerate(clips):
        batch = batches[index // 4]
        assert torch.equal(batch.frames[index % 4], clip.frames)
        assert torch.equal(batch.actions[index % 4], clip.actions)
        assert int(batch.episode[index % 4]) == int(clip.episode)


def test_few_episodes_stay_open(store: ClipStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_OPEN_EPISODES >= 1
    monkeypatch.setattr("worldmodel.datasets.clip_dataset.MAX_OPEN_EPISODES", 2)
    clips = ClipDataset(store, cameras=["front"], num_frames=3)
    for _ in clips:
        assert len(clips._open_episodes) <= 2


def test_bad_arguments_are_named(store: ClipStore) -> None:
    with pytest.raises(ValueError, match=r"`cameras` \['side'\] are not among"):
        ClipDataset(store, cameras=["side"], num_frames=2)
    with pytest.raises(ValueError, match="`num_frames` and `stride` must be positive"):
        ClipDataset(store, cameras=["front"], num_frames=0)
    with pytest.raises(ValueError, match="`cameras` must have frames of one size"):
        ClipDataset(store, cameras=["front", "wrist"], num_frames=2)[0]
    with pytest.raises(IndexError, match="there are 24 clips"):
        ClipDataset(store, cameras=["front"], num_frames=3, stride=1)[24]


def test_nothing_long_enough_gives_no_clips(store: ClipStore) -> None:
    clips = ClipDataset(store, cameras=["front"], num_frames=13)
    assert (len(clips), clips.num_skipped) == (0, 4)
