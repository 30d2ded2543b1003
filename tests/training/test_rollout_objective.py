"""Training through own rollouts: what is rolled out, what is weighted, what may be missing."""

from dataclasses import replace

import pytest
import torch
from torch import Generator

from worldmodel.episodes.clips import LatentBatch
from worldmodel.networks.recurrent import RecurrentConfig, RecurrentDynamics
from worldmodel.training.objectives import object_weight
from worldmodel.training.randomness import step_randomness
from worldmodel.training.rollout_objective import RolloutObjective

CONFIG = RecurrentConfig(
    channels=2, height=4, width=4, features=8, memory=4, condition=3, layers=2, tasks=2
)


def make_objective(config: RecurrentConfig = CONFIG, *, longest_start: int = 3) -> RolloutObjective:
    torch.manual_seed(0)
    network = RecurrentDynamics(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return RolloutObjective(network, longest_start=longest_start)


def draw_batch(*, frames: int = 6, batch: int = 8, views: int = 1) -> LatentBatch:
    generator = Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn((batch, frames, *shape), generator=generator)

    return LatentBatch(
        normal(views, 2, 4, 4),
        0.1 * normal(7),
        torch.ones((batch, frames), dtype=torch.bool),
        torch.zeros((batch, frames)),
        states=normal(10),
        objects=normal(5).sigmoid(),
        task=torch.arange(batch) % 2,
    )


def loss_of(objective: RolloutObjective, batch: LatentBatch, seed: int = 0) -> torch.Tensor:
    return objective(batch, step_randomness(seed))[0]


def test_every_weight_gets_a_gradient_and_the_generator_decides() -> None:
    objective, batch = make_objective(), draw_batch()
    first, again = loss_of(objective, batch), loss_of(objective, batch)
    assert torch.equal(first, again)
    assert not torch.equal(first, loss_of(objective, batch, seed=1))
    first.backward()
    silent = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_later_frames_are_predicted_from_own_predictions() -> None:
    """With one real frame the loss depends on no other frame as an input, only as a target."""
    objective, batch = make_objective(longest_start=1), draw_batch()
    network = objective.dynamics
    seen: list[torch.Tensor] = []
    step = network.step

    def record(latents: torch.Tensor, *rest: torch.Tensor) -> object:
        seen.append(latents)
        return step(latents, *rest)

    network.step = record  # type: ignore[assignment,method-assign]
    loss_of(objective, batch)
    assert torch.equal(seen[0], batch.latents[:, 0])
    for row in range(1, 5):
        assert not torch.isclose(seen[row], batch.latents[:, row]).all((1, 2, 3, 4)).any()


def test_up_to_longest_start_frames_are_real() -> None:
    objective = make_objective(longest_start=3)
    batch = draw_batch(batch=400)
    counts = objective._real_frames(batch, step_randomness(0)).sum(1)
    share = counts.bincount(minlength=5) / len(counts)
    assert share[0] == share[4] == 0
    torch.testing.assert_close(share[1:4], torch.tensor([2 / 3, 1 / 6, 1 / 6]), atol=0.07, rtol=0)


def test_labels_may_be_missing() -> None:
    """Without objects, states and success it trains on latents alone."""
    objective, batch = make_objective(), draw_batch()
    bare = replace(batch, states=None, objects=None, task=None)
    bare = replace(bare, success=torch.full_like(bare.success, torch.nan))
    loss, figures = objective(bare, step_randomness(0))
    assert loss.isfinite()
    assert "object_error_m" not in figures
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
    partly = replace(batch, objects=batch.objects.clone())  # type: ignore[union-attr]
    assert partly.objects is not None
    partly.objects[0] = torch.nan
    assert loss_of(objective, partly).isfinite()


def test_missing_views_count_for_nothing() -> None:
    objective = make_objective(replace(CONFIG, views=2))
    mask = torch.ones(8, 6, 2, dtype=torch.bool)
    mask[2, :, 1] = False
    batch = replace(draw_batch(views=2), view_valid=mask)
    broken = replace(batch, latents=batch.latents.clone())
    broken.latents[2, :, 1] = torch.nan
    assert torch.equal(loss_of(objective, batch), loss_of(objective, broken))


def test_recomputing_frames_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        objective = make_objective()
        objective.dynamics.checkpoint_blocks = recompute
        loss_of(objective, draw_batch()).backward()
        gradients.append([p.grad for p in objective.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_object_weighs_more_where_it_is_seen() -> None:
    batch = draw_batch(batch=1)
    assert batch.objects is not None
    batch.objects[..., 3:] = torch.tensor([0.625, 0.125])  # column 2, row 0 of 4 x 4
    weight = object_weight(batch)[0, 0, 0, 0]
    assert weight.argmax().item() == 2
    assert weight[0, 2].item() == pytest.approx(6)
    assert weight[3, 0].item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(object_weight(replace(batch, objects=None)), torch.ones(1, 6, 1, 1, 4, 4))
