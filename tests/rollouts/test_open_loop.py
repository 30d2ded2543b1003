"""Open-loop rollouts are what `WorldModel.imagine` gives for each segment on its own."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.clips import LatentBatch
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel
from worldmodel.networks.sampler import Sampling
from worldmodel.rollouts.open_loop import CONTEXT, EPSILONS, RolloutSegment, roll_out, segments

RANDOM = Sampling(num_steps=2, eta=1.0)
"""Frames that depend on their seeds."""


@pytest.fixture
def model(make_model: Callable[..., WorldModel]) -> WorldModel:
    return make_model()


@pytest.fixture
def episodes(model: WorldModel, make_trajectory: Callable[..., Trajectory]) -> list[LatentBatch]:
    """Two episodes, of 11 and 8 frames."""
    cameras = model.config.cameras
    return [load_episode(model, make_trajectory(f"e{n}", n, n), cameras).batch for n in (11, 8)]


def test_segments_cover_the_episode_and_see_at_most_the_context() -> None:
    found = list(segments(13, episode=2, start=1, horizon=5))
    assert found == [
        RolloutSegment(2, 1, 1, 6),
        RolloutSegment(2, CONTEXT, 6, 11),
        RolloutSegment(2, CONTEXT, 11, 13),
    ]


def test_every_segment_is_imagined_from_its_own_frames_actions_and_seed(
    model: WorldModel, episodes: list[LatentBatch]
) -> None:
    """Batched with others or alone: the same but for rounding."""
    rollouts = roll_out(model, episodes, start=2, horizon=4, seed=7, sampling=RANDOM)
    number = 0
    for episode, rollout in zip(episodes, rollouts, strict=True):
        length = episode.latents.shape[1]
        for begin in range(2, length, 4):
            end, first = min(begin + 4, length), max(0, begin - CONTEXT)
            alone = model.imagine(
                episode.latents[:, first:begin].float(),
                episode.actions[:, first : end - 1],
                action_valid=episode.action_valid[:, first : end - 1],
                seeds=[7 + number],
                epsilon=EPSILONS,
                sampling=RANDOM,
            )
            part = slice(begin, end)
            torch.testing.assert_close(
                rollout.imagined[part], alone.latents[0].cpu(), atol=1e-4, rtol=1e-4
            )
            torch.testing.assert_close(
                rollout.confidence[part].float(), alone.confidence[0].cpu(), atol=2e-3, rtol=0
            )
            assert rollout.horizon[part].tolist() == list(range(1, end - begin + 1))
            number += 1
    other = roll_out(model, episodes, start=2, horizon=4, seed=8, sampling=RANDOM)
    assert (other[0].imagined[2:] - rollouts[0].imagined[2:]).abs().max() > 0.01


def test_frames_before_the_start_are_real_and_certain(
    model: WorldModel, episodes: list[LatentBatch]
) -> None:
    (rollout,) = roll_out(model, episodes[:1], start=3, horizon=16)
    torch.testing.assert_close(rollout.imagined[:3], episodes[0].latents[0, :3].float())
    assert (rollout.error[:3] == 0).all()
    assert (rollout.confidence[:3] == 1).all()
    assert rollout.error[3:].amax(dim=(1, 2, 3, 4)).min() > 0
    np.testing.assert_array_equal(rollout.horizon, [0, 0, 0, *range(1, 9)])
