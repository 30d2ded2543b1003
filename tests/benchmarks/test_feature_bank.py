"""What heads learn from, and heads that learn from it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.calibration.feature_bank import (
    FeatureBank,
    rollout_bank,
    sample_segment,
    velocity_bank,
)
from benchmarks.calibration.heads import ABLATION, HeadRecipe, restated, train_head
from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.networks.confidence_heads import build_head
from worldmodel.rollouts.open_loop import CONTEXT, roll_out


def noise_episode(length: int, seed: int) -> LatentBatch:
    """An episode of latents and actions that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    return LatentBatch(
        torch.randn(1, length, 1, 2, 4, 4, generator=generator).half(),
        torch.randn(1, length, 7, generator=generator),
        torch.ones(1, length, dtype=torch.bool),
        torch.zeros(1, length),
    )


def test_a_stretch_has_real_frames_and_imagined_ones() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_segment(20, 8, rng) for _ in range(500)]
    assert {context for _, context, _ in drawn} == set(range(1, CONTEXT + 1))
    ahead = [end - begin - context for begin, context, end in drawn]
    assert (min(ahead), max(ahead)) == (1, 8)
    assert max(end for _, _, end in drawn) == 20


def test_a_bank_holds_the_errors_of_rollouts(make_model: Callable[..., WorldModel]) -> None:
    """Of one-frame episodes' worth of room there is one stretch, which `imagine` repeats."""
    model, episode = make_model(), noise_episode(2, 0)
    bank = rollout_bank(model, [episode], passes=1, horizon=4, rng=np.random.default_rng(3))
    rng = np.random.default_rng(3)
    rng.permutation(1)
    sample_segment(2, 4, rng)
    imagined = model.imagine(
        episode.latents[:, :1].float(), episode.actions[:, :1],
        seeds=rng.integers(2**31, size=1).tolist(), epsilon=(),
    )  # fmt: skip
    error = (imagined.latents - episode.latents[:, 1:].float()).abs()
    assert bank.horizon.tolist() == [1.0]
    assert torch.equal(bank.features, imagined.features[0].half())
    assert torch.allclose(bank.error[0].flatten().sort().values, error.flatten().sort().values)


def test_a_velocity_error_is_that_of_the_latent_over_its_level(
    make_model: Callable[..., WorldModel],
) -> None:
    """Heads of the velocity event therefore meet larger errors than there are in latents."""
    model = make_model()
    episodes = [noise_episode(6, seed) for seed in range(4)]
    velocity = velocity_bank(model, episodes, passes=2, seed=0)
    rolled = rollout_bank(model, episodes, passes=2, horizon=4, rng=np.random.default_rng(0))
    assert len(velocity) == 2 * 4 * 5
    assert set(velocity.horizon.tolist()) == {1.0}
    assert velocity.error.mean() > 1.1 * rolled.of_horizon(1).error.mean()


def learnable_bank(model: WorldModel, num_frames: int = 400) -> FeatureBank:
    """Errors that the first feature and the horizon decide."""
    generator = torch.Generator().manual_seed(0)
    shape = model.config.dynamics
    features = torch.randn((num_frames, shape.tokens, shape.dim), generator=generator)
    horizon = torch.randint(1, 9, (num_frames,), generator=generator).float()
    scale = 0.1 * torch.exp(features[..., :1]) * horizon[:, None, None].sqrt()
    error = scale * torch.rand((num_frames, shape.tokens, shape.channels), generator=generator)
    return FeatureBank(features.half(), horizon, error)


@pytest.mark.parametrize(
    "recipe", [r for r in ABLATION if r.event == "rollout"], ids=lambda recipe: recipe.name
)
def test_every_compared_head_learns_what_can_be_learned(
    make_model: Callable[..., WorldModel], recipe: HeadRecipe
) -> None:
    """100 steps beat the untrained head by far, and are repeatable."""
    model = make_model()
    bank = learnable_bank(model)
    banks = {"rollout": bank, "corrupted": bank}
    heads = [train_head(model, recipe, banks, steps=n, seed=1) for n in (1, 100, 100)]
    levels = torch.tensor([0.2, 0.5])
    reached = (bank.error[..., None] <= levels).float()
    with torch.inference_mode():
        stated = [h.confidence(bank.features.float(), bank.horizon, levels) for h in heads]
    first, trained, again = ((p - reached).square().mean().item() for p in stated)
    assert trained < 0.9 * first
    assert trained == again


def test_restating_with_the_models_own_head_changes_nothing_but_rounding(
    make_model: Callable[..., WorldModel],
) -> None:
    model = make_model()
    rolled = roll_out(
        model, [noise_episode(9, 0), noise_episode(7, 1)], horizon=3, keep_features=True
    )
    for before, after in zip(rolled, restated(model, model.confidence, rolled), strict=True):
        assert torch.allclose(before.confidence.float(), after.confidence.float(), atol=4e-3)
        assert torch.equal(after.imagined, before.imagined)
    fresh = build_head(16, 2, model.config.confidence)
    (other,) = restated(model, fresh, rolled[:1])
    assert not torch.allclose(other.confidence.float(), rolled[0].confidence.float(), atol=0.05)


def test_a_head_without_horizons_is_asked_for_the_first(
    make_model: Callable[..., WorldModel],
) -> None:
    model = make_model()
    (rolled,) = roll_out(model, [noise_episode(9, 0)], horizon=5, keep_features=True)
    (stated,) = restated(model, model.confidence, [rolled], event="velocity")
    at_one = replace(rolled, horizon=np.minimum(rolled.horizon, 1))
    (expected,) = restated(model, model.confidence, [at_one])
    assert torch.equal(stated.confidence, expected.confidence)
