"""Splitting a rollout's uncertainty: what moves which part, and what is refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.episodes.clips import LatentBatch, encode_episode
from worldmodel.model import WorldModel
from worldmodel.monitors.metrics.uncertainty_split import (
    MAX_KAPPA,
    Decomposition,
    direction_entropy,
    entropy,
)
from worldmodel.networks.sampler import Sampling
from worldmodel.rollouts.decomposition import (
    MAX_DIM,
    ActionScale,
    Intent,
    agreement,
    decompose_rollout,
    embed,
    embed_rollouts,
)


@pytest.fixture
def model(make_model: Callable[..., WorldModel]) -> WorldModel:
    return make_model()


@pytest.fixture
def episode(model: WorldModel, make_store: Callable[..., ClipStore]) -> LatentBatch:
    return encode_episode(model, make_store([12]).episode(0))


def split(model: WorldModel, episode: LatentBatch, **changes: object) -> Decomposition:
    """Four frames from frame 5 on."""
    settings = {"width": 0.2, "num_sequences": 6, "num_seeds": 4} | changes
    return decompose_rollout(model, episode, Intent(**settings), start=5, horizon=4, seed=7)


def test_a_wider_intent_moves_the_aleatoric_part(model: WorldModel, episode: LatentBatch) -> None:
    narrow, wide = (split(model, episode, width=width) for width in (0.05, 0.1))
    dim = 4 * 7 - 1  # four actions of the intent, on the sphere
    assert wide.aleatoric - narrow.aleatoric == pytest.approx(dim * np.log(2), rel=0.25)
    assert abs(wide.epistemic - narrow.epistemic) < 0.2 * (wide.aleatoric - narrow.aleatoric)


def test_noisier_rollouts_move_the_epistemic_part_alone(
    model: WorldModel, episode: LatentBatch
) -> None:
    quiet = split(model, episode)
    imagine = model.imagine

    def noisy(*args: object, **kwargs: object) -> object:
        made = imagine(*args, **kwargs)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(made.latents.shape, generator=generator)
        return replace(made, latents=made.latents + 3 * noise)

    model.imagine = noisy  # type: ignore[method-assign]
    loud = split(model, episode)
    assert loud.aleatoric == quiet.aleatoric
    assert loud.epistemic > quiet.epistemic + 5


def test_the_same_seed_gives_the_same_split(model: WorldModel, episode: LatentBatch) -> None:
    assert split(model, episode) == split(model, episode)
    assert (split(model, episode).num_sequences, split(model, episode).num_seeds) == (6, 4)


def test_without_noise_between_seeds_the_epistemic_part_has_its_floor(
    model: WorldModel, episode: LatentBatch
) -> None:
    for parameter in model.dynamics.parameters():
        parameter.data.zero_()  # persistence: the posterior mean of no network, whatever the noise
    model.dynamics.change_std.fill_(1e-6)
    dim = embed_rollouts(episode.latents[:, :2].float()).shape[-1]
    assert split(model, episode).epistemic == pytest.approx(entropy(MAX_KAPPA, dim), abs=1)


def test_drawn_actions_keep_the_past_the_gripper_range_and_still_axes(
    model: WorldModel, episode: LatentBatch
) -> None:
    std = torch.tensor([0.1, 0.2, 0.3, 1e-4, 0.1, 0.1, 0.5])
    scale, actions = ActionScale(torch.zeros(7), std), episode.actions[0, :11].clamp(0, 1)
    drawn = scale.draw(actions, 4, Intent(width=0.5, num_sequences=400), 0)
    assert torch.equal(drawn[:, :4], actions[:4].expand(400, -1, -1))
    assert torch.equal(drawn[..., 3], actions[:, 3].expand(400, -1))
    assert drawn[..., 6].min() >= 0
    assert drawn[..., 6].max() <= 1
    spread = (drawn[:, 4:, :3] - actions[4:, :3]).std((0, 1))
    torch.testing.assert_close(spread, 0.5 * std[:3], rtol=0.05, atol=0)


def test_long_embeddings_are_projected_and_keep_their_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 4000), generator=generator)
    x[1] += x[0]
    assert embed(x).shape == (2, MAX_DIM + 1)
    before, after = (float(np.linalg.norm(v[1] - v[0])) for v in (x.numpy(), embed(x)))
    assert after == pytest.approx(before, rel=0.1)  # standard error 3%
    assert np.array_equal(embed(x[:, :3])[:, :3], x[:, :3].double().numpy())


def test_a_spread_counts_alike_around_short_and_long_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, place = (torch.randn((n, 100), generator=generator) for n in (8, 1))
    short, long = (
        float(direction_entropy(embed(length * place + 0.01 * noise), np.ones(8)))
        for length in (0.01, 0.3)
    )
    assert long == pytest.approx(short, abs=0.1 * 100)  # the constant is 1 long, place 0.3
    plain = (length * place + 0.01 * noise for length in (0.1, 0.3))
    near, far = (float(direction_entropy(v.double().numpy(), np.ones(8))) for v in plain)
    assert far < near - 0.9 * 100


def test_agreement_is_kendalls_tau_over_episodes() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"error": float(e), "aleatoric": 1.0, "epistemic": float(e), "total": float(-e)}
        for e in rng.random(12)
    ]
    found = agreement(rows)
    assert found["aleatoric"] is None
    assert found["epistemic"] is not None
    assert found["total"] is not None
    assert found["epistemic"][0] == pytest.approx(1)
    assert found["total"][0] == pytest.approx(-1)
    assert found["epistemic"][1][0] > 0.5


def test_impossible_intents_are_refused() -> None:
    for width in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`width` must be finite and above 0"):
            Intent(width=width)
    for counts in ({"num_sequences": 1}, {"num_seeds": 1}):
        with pytest.raises(ValueError, match="must be at least 2 to measure a spread"):
            Intent(**counts)


def test_another_sampler_is_used(model: WorldModel, episode: LatentBatch) -> None:
    intent = Intent(num_sequences=2, num_seeds=3)
    own, other = (
        decompose_rollout(model, episode, intent, start=5, horizon=3, seed=0, sampling=sampling)
        for sampling in (None, Sampling(num_steps=3))
    )
    assert own.aleatoric == other.aleatoric
    assert own.epistemic != other.epistemic
