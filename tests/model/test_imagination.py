from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from worldmodel.imagination import (
    Imagined,
    imagine,
    to_subpatches,
    to_tokens,
)
from worldmodel.networks.confidence_heads import ConfidenceConfig, Distribution, build_head
from worldmodel.networks.dynamics import Dynamics, Estimate, FrameInputs, window_mask
from worldmodel.networks.noise_schedule import Flow
from worldmodel.networks.rollout import RolloutInputs, leading_actions, previous_frames
from worldmodel.networks.sampler import Sampling

Build = Callable[..., Dynamics]
EPSILON = torch.tensor([0.1, 0.5])


def draw_inputs(dynamics: Dynamics, *, start: int, rows: int, batch: int = 2) -> RolloutInputs:
    c = dynamics.config
    generator = torch.Generator().manual_seed(0)
    shape = (batch, start, c.views, c.channels, c.height, c.width)
    return RolloutInputs(
        context=torch.randn(shape, generator=generator),
        actions=torch.randn((batch, rows, c.action_dim), generator=generator),
        action_valid=torch.rand((batch, rows), generator=generator) > 0.1,
        seeds=[10 + i for i in range(batch)],
    )


def make_head(dynamics: Dynamics) -> Distribution:
    c = dynamics.config
    torch.manual_seed(0)
    head = build_head(c.dim, c.channels * c.patch**2, ConfidenceConfig(hidden=8))
    assert isinstance(head, Distribution)
    return head.eval()


def roll(dynamics: Dynamics, inputs: RolloutInputs, num_steps: int = 2) -> Imagined:
    sampling = Sampling(num_steps=num_steps)
    return imagine(dynamics, make_head(dynamics), inputs, sampling=sampling, epsilon=EPSILON)


def whole_history(
    dynamics: Dynamics, inputs: RolloutInputs, history: Tensor, candidate: Tensor, level: float
) -> Estimate:
    """Estimate of all frames so far and a candidate for the next one, without a cache."""
    frames = torch.cat((history, candidate), 1)
    b, t = frames.shape[:2]
    actions, valid = leading_actions(inputs.actions, inputs.action_valid)
    levels = torch.zeros(b, t)
    levels[:, -1] = level
    given = FrameInputs(frames, previous_frames(frames), levels, actions[:, :t], valid[:, :t])
    positions = torch.arange(t)
    mask = window_mask(positions, dynamics.config.context)
    return dynamics(given, mask=mask, positions=positions)


@torch.no_grad()
def uncached(dynamics: Dynamics, inputs: RolloutInputs, num_steps: int) -> tuple[Tensor, Tensor]:
    """Latents and features of a rollout without a key/value cache."""
    history, features = inputs.context, []
    generators = [torch.Generator().manual_seed(seed) for seed in inputs.seeds]
    levels = Flow().levels(num_steps)
    for _ in range(inputs.actions.shape[1] - inputs.context.shape[1] + 1):
        x = torch.stack([torch.randn((1, *history.shape[2:]), generator=g) for g in generators])
        for level, following in pairwise(levels):
            clean = whole_history(dynamics, inputs, history, x, level).clean[:, -1:]
            noise = (x - (1 - level) * clean) / level
            x = (1 - following) * clean + following * noise
        features.append(whole_history(dynamics, inputs, history, x, 0.0).features[:, -1])
        history = torch.cat((history, x), 1)
    return history[:, inputs.context.shape[1] :], torch.stack(features, 1)


@pytest.mark.parametrize(("num_steps", "views"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_cached_rollout_equals_one_that_recomputes_everything(
    make_dynamics: Build, num_steps: int, views: int
) -> None:
    """26 frames after 2 with a window of 3 past frames, so that the window slides."""
    dynamics = make_dynamics(views=views, context=3)
    inputs = draw_inputs(dynamics, start=2, rows=27)
    imagined = roll(dynamics, inputs, num_steps)
    latents, features = uncached(dynamics, inputs, num_steps)
    assert imagined.latents.shape[1] == 26
    assert latents.std() > 0.3  # the latents are not constant
    torch.testing.assert_close(imagined.latents, latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(imagined.features, features, atol=1e-4, rtol=1e-4)


def test_cached_rollout_from_a_context_longer_than_the_window(make_dynamics: Build) -> None:
    dynamics = make_dynamics(context=2)
    inputs = draw_inputs(dynamics, start=6, rows=10)
    latents, _ = uncached(dynamics, inputs, 1)
    torch.testing.assert_close(roll(dynamics, inputs, 1).latents, latents, atol=1e-4, rtol=0)


def test_same_seed_same_rollout(make_dynamics: Build) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, start=2, rows=6)
    first, again = roll(dynamics, inputs), roll(dynamics, inputs)
    for name in ("latents", "confidence", "features"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    other = roll(dynamics, replace(inputs, seeds=[10, 99]))
    assert torch.equal(other.latents[0], first.latents[0])
    assert not torch.allclose(other.latents[1], first.latents[1], atol=1e-3)


def test_batch_of_one_equals_its_row_of_a_batch(make_dynamics: Build) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, start=2, rows=8, batch=3)
    together = roll(dynamics, inputs)
    for row in range(3):
        alone = RolloutInputs(
            context=inputs.context[row : row + 1],
            actions=inputs.actions[row : row + 1],
            action_valid=inputs.action_valid[row : row + 1],
            seeds=inputs.seeds[row : row + 1],
        )
        single = roll(dynamics, alone)
        torch.testing.assert_close(single.latents[0], together.latents[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            single.confidence[0], together.confidence[row], atol=1e-5, rtol=1e-5
        )


def test_an_action_changes_only_the_frames_after_it(make_dynamics: Build) -> None:
    """Row 4 takes frame 4 to frame 5; after 2 context frames that is imagined frame 3."""
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, start=2, rows=8)
    valid = torch.ones_like(inputs.action_valid)
    inputs = replace(inputs, action_valid=valid)
    actions = inputs.actions.clone()
    actions[:, 4] += 1
    before, after = roll(dynamics, inputs), roll(dynamics, replace(inputs, actions=actions))
    assert torch.equal(after.latents[:, :3], before.latents[:, :3])
    changed = (after.latents - before.latents).abs().amax((0, 2, 3, 4, 5))
    assert (changed[3:] > 1e-4).all()
    unknown = replace(inputs, action_valid=valid.index_fill(1, torch.tensor([4]), False))
    twice = [roll(dynamics, replace(unknown, actions=a)).latents for a in (inputs.actions, actions)]
    assert torch.equal(twice[0], twice[1])


def test_frames_do_not_depend_on_the_number_of_later_actions(make_dynamics: Build) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, start=2, rows=8)
    actions, valid = inputs.actions[:, :5], inputs.action_valid[:, :5]
    short = replace(inputs, actions=actions, action_valid=valid)
    assert torch.equal(roll(dynamics, inputs).latents[:, :4], roll(dynamics, short).latents)


@pytest.mark.parametrize("tokens_at_once", [1, 50, 10_000])
@torch.no_grad()
def test_confidence_equals_the_head_at_each_horizon(
    make_dynamics: Build, monkeypatch: pytest.MonkeyPatch, tokens_at_once: int
) -> None:
    """16 tokens per frame of the batch: one, three and all seven frames per call."""
    monkeypatch.setattr("worldmodel.imagination.TOKENS_AT_ONCE", tokens_at_once)
    dynamics = make_dynamics()
    imagined = roll(dynamics, draw_inputs(dynamics, start=1, rows=7))
    assert imagined.features.shape[:3] == (2, 7, 8)
    head = make_head(dynamics)
    for index in range(7):
        horizon = torch.full((2,), index + 1.0)
        per_token = head.confidence(imagined.features[:, index], horizon, EPSILON)
        stated = to_subpatches(per_token, dynamics)
        torch.testing.assert_close(imagined.confidence[:, index], stated)


def test_without_epsilon_there_is_no_confidence(make_dynamics: Build) -> None:
    dynamics = make_dynamics()
    inputs, head = draw_inputs(dynamics, start=1, rows=4), make_head(dynamics)
    asked = imagine(dynamics, head, inputs, sampling=Sampling(num_steps=1), epsilon=EPSILON)
    silent = imagine(dynamics, head, inputs, sampling=Sampling(num_steps=1), epsilon=EPSILON[:0])
    assert silent.confidence.shape == (*asked.latents.shape, 0)
    assert torch.equal(silent.latents, asked.latents)


def test_to_subpatches_inverts_to_tokens(make_dynamics: Build) -> None:
    """Token (view, row, column) holds a patch of 2 x 2 positions of every channel."""
    dynamics = make_dynamics(views=2, patch=2, height=4, width=6)
    subpatches = torch.arange(2.0 * 2 * 4 * 6).reshape(1, 2, 2, 4, 6)
    tokens = to_tokens(subpatches, dynamics)
    assert tokens.shape == (1, dynamics.config.tokens, 8)
    view, row, column, channel, y, x = 1, 1, 2, 0, 1, 0
    token, entry = (view * 2 + row) * 3 + column, (channel * 2 + y) * 2 + x
    assert tokens[0, token, entry] == subpatches[0, view, channel, 2 * row + y, 2 * column + x]
    assert torch.equal(to_subpatches(tokens[..., None], dynamics)[..., 0], subpatches)


def test_invalid_inputs_are_refused(make_dynamics: Build) -> None:
    inputs = draw_inputs(make_dynamics(), start=3, rows=5)
    with pytest.raises(
        ValueError, match=r"^`actions` needs at least 3 rows for 3 context frames, got 2\.$"
    ):
        replace(inputs, actions=inputs.actions[:, :2], action_valid=inputs.action_valid[:, :2])
    with pytest.raises(ValueError, match=r"^`context` needs at least one frame, got none\.$"):
        replace(inputs, context=inputs.context[:, :0])
    with pytest.raises(
        ValueError, match=r"^`seeds` needs one seed per rollout: 2 expected, got 1\.$"
    ):
        replace(inputs, seeds=[1])
    for bad in (torch.nan, torch.inf):
        with pytest.raises(
            ValueError,
            match=r"^`actions` must be finite, got NaN or infinity; repair or drop that episode\.$",
        ):
            replace(inputs, actions=inputs.actions.index_fill(1, torch.tensor([4]), bad))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_rollout_in_half_precision_is_close(make_dynamics: Build, batch: int) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, start=2, rows=5, batch=batch)
    exact = roll(dynamics, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rough = roll(dynamics, inputs)
    difference = (rough.latents.float() - exact.latents).abs()
    assert 1e-5 < difference.max() < 0.2 * exact.latents.abs().max()
