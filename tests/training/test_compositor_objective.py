"""Training of the compositor: its data, its loss, and what it learns."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel
from worldmodel.networks.compositing import LastReal, compose, training_free_shares
from worldmodel.networks.compositor import Compositor, CompositorConfig
from worldmodel.networks.images import to_model
from worldmodel.training.picture_stages import compositor_objective
from worldmodel.training.picture_stages.compositor_objective import (
    FLOOR,
    CompositorObjective,
    PictureBatch,
    PictureClips,
    imagined_views,
)
from worldmodel.training.randomness import step_randomness

Make = Callable[..., WorldModel]


def new_compositor(channels: int = 2, width: int = 8) -> Compositor:
    torch.manual_seed(0)
    return Compositor(channels, CompositorConfig(latent_width=width, width=width))


@pytest.fixture
def rollouts(make_model: Make, make_trajectory: Callable[..., Trajectory]) -> PictureBatch:
    """Three rollouts of three frames."""
    model, found = make_model(), []
    for seed in range(3):
        episode = load_episode(model, make_trajectory(f"e{seed}", 9, seed), model.config.cameras)
        found += imagined_views(
            model, episode.batch, episode.frames,
            horizon=3, longest_start=2, rng=np.random.default_rng(seed),
        )  # fmt: skip
    return PictureClips.collate(found)


def test_a_rollout_holds_consecutive_frames_and_their_latents(
    make_model: Make, rollouts: PictureBatch
) -> None:
    model = make_model()
    assert rollouts.frames.shape == (3, 3, 16, 16, 3)
    assert rollouts.latents.shape == rollouts.true_latents.shape == (3, 3, 2, 4, 4)
    for row in range(3):
        encoded = model.encode(rollouts.frames[row][:, None])[:, 0]
        torch.testing.assert_close(encoded, rollouts.true_latents[row].float(), atol=5e-3, rtol=0)
        last = model.encode(rollouts.last_frames[row][None, None])[0, 0]
        torch.testing.assert_close(last, rollouts.last_latents[row].float(), atol=5e-3, rtol=0)
    assert not torch.equal(rollouts.latents, rollouts.true_latents)


def test_missing_views_and_short_episodes_give_no_rollout(
    make_model: Make, make_trajectory: Callable[..., Trajectory]
) -> None:
    model = make_model(views=2)
    model.config = replace(model.config, cameras=("front", "side"))
    episode = load_episode(model, make_trajectory("e", 6, 0), model.config.cameras)
    options = {"longest_start": 2, "rng": np.random.default_rng(0)}
    frames = episode.frames
    assert len(list(imagined_views(model, episode.batch, frames, horizon=3, **options))) == 1
    assert not list(imagined_views(model, episode.batch, frames, horizon=6, **options))


def test_nominal_and_corrupted_rollouts_are_drawn_equally_often(rollouts: PictureBatch) -> None:
    nominal, corrupted = [rollouts[:1]], [rollouts[1:2], rollouts[2:]]
    clips = PictureClips(nominal, corrupted)
    found = [int(clips[i].frames.sum()) for i in range(len(clips))]
    sums = [int(part.frames.sum()) for part in (*nominal, *corrupted)]
    assert found == [sums[0], sums[0], sums[1], sums[2]]
    assert len(PictureClips(nominal, [])) == 1


def test_the_loss_is_the_mean_logarithm_of_the_squared_error(
    make_model: Make, rollouts: PictureBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With true latents at every step, the pictures can be composed by hand."""
    monkeypatch.setattr(compositor_objective, "TRUE_SHARE", 1.1)
    model, network = make_model(), new_compositor()
    same = replace(rollouts, **{
        name: getattr(rollouts, name)[:, 2:] for name in ("latents", "true_latents", "frames")
    })  # fmt: skip
    loss, figures = CompositorObjective(network, model.tokenizer)(same, step_randomness(0))
    codes, last_codes = same.true_latents[:, 0].float(), same.last_latents.float()
    with torch.no_grad():
        decoded = model.tokenizer.decode(codes)
        last = LastReal(to_model(same.last_frames), last_codes, model.tokenizer.decode(last_codes))
        shown = compose(decoded, last, network(codes, decoded, last))
    error = (shown - to_model(same.frames[:, 0])).square().mean((1, 2, 3))
    assert loss.item() == pytest.approx((error + FLOOR).log().mean().item(), abs=1e-4)
    expected = -10 * (error / 4).clamp_min(2.5e-9).log10().mean().item()
    assert figures["psnr_db/composed"].item() == pytest.approx(expected, abs=1e-3)


def test_only_the_compositor_is_trained(make_model: Make, rollouts: PictureBatch) -> None:
    model, network = make_model(), new_compositor()
    objective = CompositorObjective(network, model.tokenizer)
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"compositor"}
    loss, _ = objective(rollouts, step_randomness(0))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in model.tokenizer.parameters())


def test_it_learns_to_keep_a_still_picture_whose_latents_drift(make_model: Make) -> None:
    """The scene never moves, the latents are noise: the best picture is the last frame.

    Untrained, the loss is about that of `training_free_shares`, which the drift closes.
    """
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (8, 16, 16, 3), dtype=torch.uint8, generator=generator)
    model = make_model()
    codes = model.encode(frames[:, None])[:, 0]
    drifted = codes[:, None] + 3 * torch.randn(8, 4, *codes.shape[1:], generator=generator)
    still = frames[:, None].expand(-1, 4, -1, -1, -1)
    batch = PictureBatch(drifted, drifted, still, codes, frames)
    network = new_compositor()
    objective = CompositorObjective(network, model.tokenizer)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for step in range(40):
        loss, figures = objective(batch, step_randomness(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    last = LastReal(to_model(frames), codes, model.tokenizer.decode(codes))
    decoded = model.tokenizer.decode(drifted[:, 0])
    carried = training_free_shares(drifted[:, 0], decoded, last)[:, 1]
    assert carried.mean() < 0.2
    assert figures["psnr_db/composed"] > figures["psnr_db/decoded"] + 10
