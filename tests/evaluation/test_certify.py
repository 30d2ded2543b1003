"""Measurements of a certificate, with the shipped model and with ways to break it."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from worldmodel.certificate import MONITOR, SHOW, verified_uses
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.envs.collect import Collection
from worldmodel.episodes.clips import LatentBatch
from worldmodel.episodes.episode import Episode
from worldmodel.evaluation.action_controls import (
    ActionReader,
    offset_errors,
    relative_increases,
    shuffled,
    swapped_in_scene,
)
from worldmodel.evaluation.certify import certify, gains, off_expert, outcomes
from worldmodel.evaluation.simulate import simulate
from worldmodel.model import WorldModel
from worldmodel.networks.dynamics import Dynamics


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.load("tabletop")


@pytest.fixture(scope="module")
def episodes(model: WorldModel) -> list[Episode]:
    """Five episodes of the training mixture and of two policies in the same scene."""
    mixed = Collection(renderer="ray", seed=8_160_001)
    plan = [("mixed", mixed, 4)]
    plan += [(name, replace(mixed, policy=name), 1) for name in ("clean", "babble")]
    return [episode for group in simulate(model, plan, workers=1).values() for episode in group]


def batches(episodes: Sequence[Episode]) -> list[LatentBatch]:
    return [episode.batch for episode in episodes]


def test_the_shipped_model_depends_on_the_right_actions(
    model: WorldModel, episodes: list[Episode]
) -> None:
    found = relative_increases(model, batches(episodes))
    assert set(found) == {"shuffled", "zeroed", "mirrored", "swapped"}
    assert all(values.mean() > 0.2 for values in found.values())
    offsets = offset_errors(model, batches(episodes))
    assert min(offsets, key=lambda name: offsets[name]) == "0"


def test_a_model_that_confuses_its_actions_is_found(
    model: WorldModel, episodes: list[Episode]
) -> None:
    """Its x, y and z are swapped, as after training with shuffled columns."""
    broken = copy.deepcopy(model)
    assert isinstance(broken.dynamics, Dynamics)
    weight = broken.dynamics.condition.action.weight
    with torch.no_grad():
        weight[:, :3] = -weight[:, [1, 2, 0]]
    found = relative_increases(broken, batches(episodes))
    assert min(values.mean() for values in found.values()) < 0.05


def test_a_half_trained_model_is_worse_than_a_copy(
    model: WorldModel, episodes: list[Episode]
) -> None:
    broken = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in broken.dynamics.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 1.5 * parameter.std(correction=0) * noise
    rows = gains(broken, episodes)
    assert rows[0].gain.high < 0
    assert gains(model, episodes)[0].gain.low > 0


def test_another_camera_is_found(model: WorldModel, episodes: list[Episode]) -> None:
    """A model of one camera on pictures of another: here, upside down."""
    flipped = []
    for episode in episodes[:3]:
        frames = episode.frames.flip(2)
        latents = model.encode(frames)[None].half().clone()
        flipped.append(
            replace(episode, frames=frames, batch=replace(episode.batch, latents=latents))
        )
    found = certify(model, checkpoint_folder("tabletop"), flipped, data="other camera")
    assert found.uses[MONITOR].passed is False
    true = gains(model, episodes[:3])
    assert all(a.gain.value < b.gain.value - 3 for a, b in zip(found.gains, true, strict=True))
    assert verified_uses(found) == found.uses
    assert SHOW in found.uses


def test_outcomes_count_labelled_episodes(model: WorldModel, episodes: list[Episode]) -> None:
    found = outcomes(model, batches(episodes))
    assert found is not None
    assert found.failures + found.successes == len(episodes)
    unlabelled = [
        replace(b, success=torch.full_like(b.success, torch.nan)) for b in batches(episodes)
    ]
    assert outcomes(model, unlabelled) is None
    assert off_expert(model, unlabelled) is None


def test_shuffled_actions_are_those_of_the_next_episode(episodes: list[Episode]) -> None:
    found = shuffled(batches(episodes))
    for own, other in zip(found, [*batches(episodes)[1:], batches(episodes)[0]], strict=True):
        assert torch.equal(own.actions, other.actions)
    assert torch.equal(found[0].latents, episodes[0].batch.latents)


def test_actions_are_swapped_within_a_scene(episodes: list[Episode]) -> None:
    """The policies "clean" and "babble" share the scene of the first mixed episode."""
    chosen, changed = swapped_in_scene(batches(episodes))
    assert chosen == [0, 4, 5]
    assert [torch.equal(b.actions, episodes[i].batch.actions) for i, b in zip(chosen, changed, strict=True)] == [False] * 3  # noqa: E501  # fmt: skip


def test_actions_are_read_where_they_can_be() -> None:
    """The first number of the action moves the frame; the second one is noise."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn((600, 12), generator=generator)
    actions = torch.randn((600, 2), generator=generator)
    change = torch.zeros(600, 12)
    change[:, 3] = actions[:, 0]
    reader = ActionReader([(before[:400], change[:400], actions[:400])])
    found = reader.explained([(before[400:], change[400:], actions[400:])])
    assert found[0] > 0.8
    assert found[1] < 0.1


def test_one_episode_is_no_measurement(model: WorldModel, episodes: list[Episode]) -> None:
    with pytest.raises(ValueError, match="at least 2 episodes, got 1"):
        certify(model, checkpoint_folder("tabletop"), episodes[:1], data="one")
