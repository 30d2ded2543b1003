"""Loading episodes for a model: selection by name, image size, cameras and actions."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import FileDataset
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.clips import encode_episode
from worldmodel.episodes.episode import Episode, unstretched
from worldmodel.episodes.load import (
    choose_cameras,
    load_episode,
    load_episodes,
    open_for,
    select_episodes,
)
from worldmodel.model import WorldModel
from worldmodel.training.objectives import LatentBatch

Model, Store = Callable[..., WorldModel], Callable[..., ClipStore]


def test_episodes_are_chosen_by_pattern_and_number(make_store: Store) -> None:
    store = make_store([4] * 12)
    assert select_episodes(store, only="episode-1*") == ["episode-1", "episode-10", "episode-11"]
    assert select_episodes(store, only="episode-1*", limit=2) == ["episode-1", "episode-10"]
    assert select_episodes(store, limit=3) == ["episode-0", "episode-1", "episode-2"]
    with pytest.raises(ValueError, match="matches 'e'; it holds 12, the first 'episode-0'"):
        select_episodes(store, only="e")
    with pytest.raises(ValueError, match="`limit` must be at least 1 episode, got 0"):
        select_episodes(store, limit=0)


def test_frames_of_the_models_size_are_unchanged(make_model: Model, make_store: Store) -> None:
    """The first episode is longer than one chunk of decoding."""
    model, store = make_model(), make_store([70, 5])
    first, second = load_episodes(model, store)
    trajectory = store.episode(0)
    np.testing.assert_array_equal(first.frames[:, 0], trajectory.frames["front"][:])
    expected = encode_episode(model, trajectory)
    torch.testing.assert_close(first.batch.latents, expected.latents, atol=2e-3, rtol=2e-3)
    for name in ("actions", "action_valid", "success"):
        assert torch.equal(getattr(first.batch, name), getattr(expected, name))
    assert (first.name, second.name) == ("episode-0", "episode-1")


def test_frames_of_another_size_are_resized_per_camera(
    make_model: Model, make_trajectory: Callable[..., Trajectory]
) -> None:
    """The second camera is wider; a uniform image stays uniform at any size."""
    trajectory = make_trajectory("a", 3, 0, cameras=("left", "right"))
    wide = type(trajectory.frames["left"])(np.full((3, 20, 64, 3), 40, np.uint8))
    trajectory = replace(trajectory, frames={**trajectory.frames, "right": wide})
    model = make_model(views=2)
    episode = load_episode(model, trajectory, ("left", "right"))
    assert episode.frames.shape == (3, 2, 16, 16, 3)
    assert (episode.frames[:, 1] == 40).all()


def test_actions_are_converted_to_those_of_the_model(
    make_model: Model, make_trajectory: Callable[..., Trajectory]
) -> None:
    model, trajectory = make_model(), make_trajectory("a", 4, 0)
    millimetres = replace(CANONICAL, scale=(0.001,) * 3 + (1.0,) * 4)
    model.config = replace(model.config, action_spec=millimetres)
    actions = load_episode(model, trajectory, ("front",)).batch.actions[0].numpy()
    np.testing.assert_allclose(actions[:, :3], 1000 * trajectory.actions[:, :3], rtol=1e-5)
    np.testing.assert_allclose(actions[:, 3:], trajectory.actions[:, 3:], rtol=1e-5)


def test_another_rate_is_refused_with_both_specs(
    make_model: Model, make_trajectory: Callable[..., Trajectory]
) -> None:
    model = make_model()
    model.config = replace(model.config, action_spec=replace(CANONICAL, rate_hz=15.0))
    with pytest.raises(ValueError, match=r"No lossless .*rate_hz=5\.0.* to .*rate_hz=15\.0"):
        load_episode(model, make_trajectory("a", 4, 0), ("front",))


def test_missing_cameras_are_substituted_with_a_warning_or_refused(
    make_model: Model, make_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    model, store = make_model(), make_store([4])
    assert choose_cameras(model, store) == ("front",)
    assert not caplog.records
    model.config = replace(model.config, cameras=("wrist",))
    with caplog.at_level(logging.WARNING):
        assert choose_cameras(model, store) == ("front",)
    assert "has no cameras named wrist; using front instead." in caplog.text
    model.config = replace(model.config, cameras=("wrist", "left"))
    with pytest.raises(ValueError, match=re.escape("The model needs 2 cameras, wrist, left; ")):
        choose_cameras(model, store)


def test_the_cameras_of_an_episode_are_the_models_by_default(
    make_model: Model, make_trajectory: Callable[..., Trajectory], make_store: Store
) -> None:
    model, store = make_model(), make_store([4])
    by_default, by_name = (
        load_episode(model, store.episode(0), *cameras) for cameras in ((), (("front",),))
    )
    assert torch.equal(by_default.frames, by_name.frames)
    assert torch.equal(by_default.batch.latents, by_name.batch.latents)
    both = make_trajectory("a", 4, 0, cameras=("left", "front"))
    dark = type(both.frames["left"])(np.zeros((4, 16, 16, 3), np.uint8))
    both = replace(both, frames={**both.frames, "left": dark})  # not the model's camera
    assert (load_episode(model, both).frames[:, 0].numpy() == both.frames["front"][:]).all()


def test_the_default_cameras_of_an_episode_follow_the_rule_of_a_data_set(
    make_model: Model, make_trajectory: Callable[..., Trajectory], caplog: pytest.LogCaptureFixture
) -> None:
    """One camera of two is a view mask, none of one a substitute, none of two an error."""
    trajectory = make_trajectory("a", 4, 0)
    model = make_model(views=2)
    model.config = replace(model.config, cameras=("front", "wrist"))
    with caplog.at_level(logging.WARNING):
        view_mask = load_episode(model, trajectory).batch.view_valid
    assert view_mask is not None
    assert view_mask[0].tolist() == 4 * [[True, False]]
    assert "Episode 'a' has no cameras named wrist." in caplog.text
    single = make_model()
    single.config = replace(single.config, cameras=("wrist",))
    with caplog.at_level(logging.WARNING):
        episode = load_episode(single, trajectory)
    np.testing.assert_array_equal(episode.frames[:, 0], trajectory.frames["front"][:])
    assert "Episode 'a' has no cameras named wrist; using front instead." in caplog.text
    model.config = replace(model.config, cameras=("wrist", "left"))
    with pytest.raises(ValueError, match="2 cameras, wrist, left; Episode 'a' has 1: front"):
        load_episode(model, trajectory)


def test_the_monitor_gets_frames_with_the_aspect_ratio_of_the_source() -> None:
    frames = torch.zeros(2, 1, 16, 32, 3, dtype=torch.uint8)
    batch = LatentBatch(
        torch.zeros(1, 2, 1, 1, 1, 1),
        torch.zeros(1, 2, 7),
        torch.ones(1, 2, dtype=torch.bool),
        torch.zeros(1, 2),
    )
    rounded = Episode("rounded", frames, batch, stretch=1.05)
    square = Episode("square", frames, batch, stretch=0.5)
    assert unstretched(rounded) is frames
    assert unstretched(square).shape == (2, 1, 16, 16, 3)


def test_undeclared_actions_are_refused(
    make_model: Callable[..., WorldModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undeclared = FileDataset(
        form="lerobot",
        path=tmp_path,
        cameras=("front",),
        action_spec=CANONICAL,
        episode_ids=(),
        load=lambda _: pytest.fail("no episode may be read"),
        summarize=lambda _: pytest.fail("no episode may be read"),
        undeclared="info.json does not declare what its numbers mean.",
    )
    monkeypatch.setattr("worldmodel.episodes.load.open_dataset", lambda _: undeclared)
    with pytest.raises(ValueError, match="does not declare what its numbers mean"):
        open_for(make_model(), tmp_path)
