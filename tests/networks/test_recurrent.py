"""The recurrent network: rollouts, memory, views, sizes and its readout."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.imagination import Imagination, Imagined, imagine
from worldmodel.networks.commanded_pose import CommandedPose, pose_features
from worldmodel.networks.recurrent import RecurrentConfig, RecurrentDynamics
from worldmodel.networks.rollout import RolloutInputs, leading_actions
from worldmodel.networks.sampler import Sampling

SMALL = RecurrentConfig(channels=4, height=4, width=6, features=8, memory=4, condition=3, layers=2)


def make_network(config: RecurrentConfig = SMALL) -> RecurrentDynamics:
    """A network whose zero weights are random, so that everything matters."""
    torch.manual_seed(0)
    network = RecurrentDynamics(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def draw_inputs(
    network: RecurrentDynamics, *, start: int = 2, rows: int = 6, batch: int = 3
) -> RolloutInputs:
    c = network.config
    generator = torch.Generator().manual_seed(1)
    shape = (batch, start, c.views, c.channels, c.height, c.width)
    states = torch.randn((batch, 10), generator=generator)
    return RolloutInputs(
        context=torch.randn(shape, generator=generator),
        actions=0.2 * torch.randn((batch, rows, c.action_dim), generator=generator),
        action_valid=torch.ones((batch, rows), dtype=torch.bool),
        seeds=range(batch),
        first_state=states if c.pose else None,
    )


def roll(network: RecurrentDynamics, inputs: RolloutInputs) -> Imagined:
    return imagine(network, None, inputs, sampling=Sampling(), epsilon=torch.empty(0))


def one(inputs: RolloutInputs, item: int) -> RolloutInputs:
    state = None if inputs.first_state is None else inputs.first_state[[item]]
    return replace(
        inputs,
        context=inputs.context[[item]],
        actions=inputs.actions[[item]],
        action_valid=inputs.action_valid[[item]],
        seeds=[0],
        first_state=state,
    )


def test_rollouts_have_the_shapes_of_every_network() -> None:
    network = make_network()
    imagined = roll(network, draw_inputs(network))
    assert imagined.latents.shape == (3, 5, 1, 4, 4, 6)
    assert imagined.features.shape == (3, 5, SMALL.tokens, SMALL.dim)
    assert imagined.latents.isfinite().all()


def test_a_rollout_equals_the_unrolled_clip_of_training() -> None:
    """From 2 real frames: training sees the same frames, then its own predictions."""
    network = make_network()
    inputs = draw_inputs(network)
    imagined = roll(network, inputs)
    clip = torch.cat((inputs.context, torch.full_like(imagined.latents, math.nan)), 1)
    assert network.pose is not None
    pose = pose_features(network.pose, inputs.first_state, inputs.actions, inputs.action_valid)
    maps = network.conditions(*leading_actions(inputs.actions, inputs.action_valid), pose)
    real = torch.arange(clip.shape[1]).expand(3, -1) < 2
    with torch.no_grad():
        predicted, _ = network.unroll(clip, maps, real)
    torch.testing.assert_close(predicted[:, 1:], imagined.latents)


def test_a_rollout_does_not_depend_on_the_rest_of_the_batch() -> None:
    network = make_network()
    inputs = draw_inputs(network)
    together = roll(network, inputs).latents
    for item in range(3):
        torch.testing.assert_close(roll(network, one(inputs, item)).latents[0], together[item])


def test_actions_and_states_move_the_prediction() -> None:
    network = make_network()
    inputs = draw_inputs(network)
    before = roll(network, inputs).latents
    for change in (
        replace(inputs, actions=inputs.actions + 0.1),
        replace(inputs, first_state=None),
        replace(inputs, action_valid=torch.zeros_like(inputs.action_valid)),
    ):
        assert not torch.allclose(roll(network, change).latents, before, atol=1e-3)


def test_earlier_frames_are_remembered() -> None:
    network = make_network()
    inputs = draw_inputs(network, start=4)
    other = replace(inputs, context=inputs.context.clone())
    other.context[:, 0] += 1
    assert not torch.allclose(roll(network, other).latents, roll(network, inputs).latents)


def test_the_future_does_not_reach_back() -> None:
    network = make_network()
    inputs = draw_inputs(network)
    later = replace(inputs, actions=inputs.actions.clone())
    later.actions[:, 4:] += 1
    first, second = roll(network, inputs).latents, roll(network, later).latents
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])


def test_memory_of_a_rollout_stays_constant() -> None:
    network = make_network()
    inputs = draw_inputs(network, rows=60)
    rollout = Imagination(network, inputs, sampling=Sampling())
    for row in range(1, 60):
        rollout.step(inputs.actions[:, row : row + 1], inputs.action_valid[:, row : row + 1])
    assert isinstance(rollout._rollout.memory, Tensor)  # type: ignore[attr-defined]
    assert rollout._rollout.memory.shape == (3, 1, 4, 4, 6)  # type: ignore[attr-defined]


def test_a_missing_view_changes_nothing_and_stays_zero() -> None:
    """What its latents hold, NaN included, never reaches the other view."""
    network = make_network(replace(SMALL, views=2))
    inputs = draw_inputs(network)
    mask = torch.ones(3, 2, 2, dtype=torch.bool)
    mask[1, :, 1] = False
    inputs = replace(inputs, view_valid=mask)
    broken = replace(inputs, context=inputs.context.clone())
    broken.context[1, :, 1] = math.nan
    found, same = roll(network, broken).latents, roll(network, inputs).latents
    assert torch.equal(found, same)
    assert not found[1, :, 1].any()
    assert found[1, :, 0].any()


def test_both_views_see_each_other() -> None:
    network = make_network(replace(SMALL, views=2))
    inputs = draw_inputs(network)
    other = replace(inputs, context=inputs.context.clone())
    other.context[:, :, 1] += 1
    found = roll(network, other).latents[:, :, 0]
    assert not torch.allclose(found, roll(network, inputs).latents[:, :, 0])


@pytest.mark.parametrize(("height", "width"), [(2, 3), (8, 8), (12, 20)])
def test_any_latent_size(height: int, width: int) -> None:
    network = make_network(replace(SMALL, height=height, width=width))
    imagined = roll(network, draw_inputs(network))
    assert imagined.latents.shape[-2:] == (height, width)
    features = imagined.features.reshape(3, 5, 1, height, width, SMALL.dim).movedim(-1, 3)
    position, success = network.readout(imagined.latents, features)
    assert position.shape == (3, 5, 3)
    assert success.shape == (3, 5, 1)


def test_without_a_pose_it_reads_actions_alone() -> None:
    network = make_network(replace(SMALL, pose=False, action_dim=3))
    assert network.pose is None
    assert roll(network, draw_inputs(network)).latents.isfinite().all()


@pytest.mark.parametrize("change", [{"guidance": 2.0}, {"num_steps": 4}, {"method": "heun"}])
def test_samplers_are_refused(change: dict[str, Any]) -> None:
    """None of these settings would do anything."""
    network = make_network()
    with pytest.raises(ValueError, match=r"`sampling` must be left out, got .* in one pass"):
        imagine(
            network, None, draw_inputs(network),
            sampling=Sampling(**change), epsilon=torch.empty(0),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["features", "memory", "condition", "layers", "tasks"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        replace(SMALL, **{name: 0})


def test_a_pose_that_is_not_expected_is_refused() -> None:
    network = make_network(replace(SMALL, pose=False))
    rows = torch.zeros(1, 2, 7), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="`pose` must be given if and only if"):
        network.conditions(*rows, torch.zeros(1, 2, CommandedPose.num_features))
