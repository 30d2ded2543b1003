from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.networks.dynamics import Dynamics
from worldmodel.networks.success import ActionSuccessClassifier, SuccessClassifier
from worldmodel.training.objectives import (
    ConfidenceObjective,
    DynamicsObjective,
    SuccessObjective,
    activity_weight,
)
from worldmodel.training.randomness import StepRandomness, step_randomness

Build = Callable[..., Dynamics]


def draw_batch(*, height: int = 2, width: int = 4, frames: int = 7, batch: int = 3) -> LatentBatch:
    generator = Generator().manual_seed(0)
    latents = torch.randn((batch, frames, 1, 2, height, width), generator=generator)
    return LatentBatch(
        latents,
        torch.randn((batch, frames, 7), generator=generator),
        torch.ones((batch, frames), dtype=torch.bool),
        torch.zeros((batch, frames)),
    )


def seeded(seed: int = 0) -> StepRandomness:
    return step_randomness(seed)


@torch.no_grad()
def test_dynamics_are_trained_on_what_a_sampler_asks(make_dynamics: Build) -> None:
    """An untrained network repeats the last frame: the loss is that of persistence, weighted."""
    dynamics = make_dynamics()
    dynamics.final.weight.zero_()
    dynamics.final.bias.zero_()
    batch = draw_batch()
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1, pure_noise=1.0)
    loss, figures = objective(batch, seeded())
    change = batch.latents.diff(dim=1) / dynamics.change_std[:, None, None]
    expected = (activity_weight(batch.latents) * change.square()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert figures["relative_error"].item() == pytest.approx(1.0)


def test_own_context_starts_with_the_true_frame_and_goes_on_with_predictions(
    make_dynamics: Build,
) -> None:
    """Two passes against frame-by-frame arithmetic: each frame sees the pass before."""
    dynamics = make_dynamics()
    batch, objective = draw_batch(), DynamicsObjective(dynamics, own_context=1.0, passes=2)
    context = objective.own_predictions(batch, 2, seeded())
    assert torch.equal(context[:, 0], batch.latents[:, 0])
    assert not context.requires_grad
    generator, level = seeded().generator, torch.ones(3, 7)
    expected = batch.latents
    with torch.no_grad():
        for _ in range(2):
            noise = torch.randn(expected.shape, generator=generator)
            clean = objective.estimate(batch, expected, noise, level).clean
            expected = torch.cat((batch.latents[:, :1], clean[:, 1:]), 1)
    torch.testing.assert_close(context, expected)
    assert (context[:, 1:] - batch.latents[:, 1:]).abs().mean() > 0.1


def test_dynamics_objective_reaches_every_weight_and_follows_its_generator(
    make_dynamics: Build,
) -> None:
    objective = DynamicsObjective(make_dynamics(), own_context=0.5, passes=3)
    losses = [objective(draw_batch(), seeded(seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    losses[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


def test_dropped_actions_are_unknown_to_their_own_frame_alone(make_dynamics: Build) -> None:
    """The estimate of frame t without its action, against one step after all other actions."""
    dynamics = make_dynamics(context=3)
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1, action_dropout=0.5)
    batch, level = draw_batch(), torch.full((3, 7), 0.7)
    noisy = torch.randn(batch.latents.shape, generator=Generator().manual_seed(1))
    dropped = torch.zeros(3, 7, dtype=torch.bool)
    dropped[:, 4] = True
    with torch.no_grad():
        whole = objective.estimate(batch, batch.latents, noisy, level).clean
        without = objective.estimate(batch, batch.latents, noisy, level, dropped).clean
        other = replace(batch, action_valid=batch.action_valid.clone())
        other.action_valid[:, 3] = False  # row 3 leads to frame 4
        unknown = objective.estimate(other, batch.latents, noisy, level).clean
    assert torch.equal(without[:, 4], unknown[:, 4])
    rest = [0, 1, 2, 3, 5, 6]
    assert torch.equal(without[:, rest], whole[:, rest])
    assert (without[:, 4] - whole[:, 4]).abs().max() > 1e-3
    assert (unknown[:, 5] - whole[:, 5]).abs().max() > 1e-4  # the clean stream kept its action


def test_actions_are_dropped_at_their_rate_and_only_if_asked(make_dynamics: Build) -> None:
    dynamics, batch = make_dynamics(), draw_batch()
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1, action_dropout=0.3)
    drawn = objective.dropped_actions(500, 20, step_randomness(0))  # n = 10000: 3 standard errors
    assert drawn.float().mean().item() == pytest.approx(0.3, abs=0.014)
    assert torch.equal(drawn, objective.dropped_actions(500, 20, step_randomness(0)))
    plain = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    losses = [o(batch, step_randomness(0))[0].item() for o in (plain, objective, objective)]
    assert losses[1] == losses[2] != losses[0]
    unknown = replace(batch, action_valid=torch.zeros_like(batch.action_valid))
    # Nothing else is drawn differently: without any action to drop, both losses are one.
    assert (
        objective(unknown, step_randomness(0))[0].item()
        == plain(unknown, step_randomness(0))[0].item()
    )
    with pytest.raises(ValueError, match=r"^`action_dropout` must be at least 0 and below 1, got"):
        DynamicsObjective(dynamics, own_context=0.0, passes=1, action_dropout=1.0)


def test_activity_weight_follows_what_changes() -> None:
    latents = torch.zeros((1, 4, 1, 2, 2, 2))
    latents[0, :, 0, :, 0, 0] = torch.tensor([0.0, 1, 0, 1])[:, None]
    weight = activity_weight(latents)
    assert weight.shape == (1, 1, 1, 1, 2, 2)
    assert weight.flatten().tolist() == [4.0, 0.25, 0.25, 0.25]
    generator = Generator().manual_seed(0)
    even = activity_weight(torch.randn((4, 20, 1, 8, 4, 4), generator=generator))
    assert even.mean().item() == pytest.approx(1.0, abs=0.02)
    assert activity_weight(torch.ones((1, 3, 1, 2, 2, 2))).isfinite().all()


def test_confidence_is_scored_on_errors_of_whole_rollouts(
    make_model: Callable[..., WorldModel],
) -> None:
    """Against rollouts made by `WorldModel.imagine` with the seeds that the objective draws."""
    model = make_model()
    batch = draw_batch(height=4, width=4)
    drawn = seeded()
    begin = drawn.random.randrange(6)
    start, seeds = 1 + drawn.random.randrange(min(3, 6 - begin)), drawn.seeds(3)
    with torch.no_grad():
        loss, figures = ConfidenceObjective(model, longest_start=3)(batch, seeded())
    batch = batch.cut(7 - begin, start=begin)
    imagined = model.imagine(
        batch.latents[:, :start], batch.actions[:, :-1], seeds=seeds,
        epsilon=model.confidence.levels.tolist(),
    )  # fmt: skip
    error = (imagined.latents - batch.latents[:, start:]).abs()
    assert error.shape[1] == 7 - begin - start
    assert figures["mean_error"].item() == pytest.approx(error.mean().item(), rel=1e-5)
    reached = (error[..., None] <= model.confidence.levels).float()
    expected = (imagined.confidence - reached).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_training_confidence_leaves_the_dynamics_alone(
    make_model: Callable[..., WorldModel],
) -> None:
    model = make_model()
    objective = ConfidenceObjective(model, longest_start=2)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in model.confidence.parameters()}
    objective(draw_batch(height=4, width=4), seeded())[0].backward()
    assert all(p.grad is not None for p in model.confidence.parameters())
    assert all(p.grad is None for p in model.dynamics.parameters())


def test_both_judges_are_scored_against_their_own_labels() -> None:
    torch.manual_seed(0)
    objective = SuccessObjective(SuccessClassifier(2, 1, 4), ActionSuccessClassifier(7, 4)).eval()
    objective.latent_noise = 0.0
    batch = draw_batch(height=4, width=4)
    success = torch.zeros(3, 7)
    success[0, 4:] = 1
    success[2, 3] = torch.nan  # a frame nobody judged
    batch = replace(batch, success=success)
    loss, figures = objective(batch, seeded())
    logits, known = objective.judge(batch.latents), ~success.isnan()
    episode = objective.action_judge(batch.actions)
    expected = F.binary_cross_entropy_with_logits(logits[known], success[known])
    expected = expected + F.binary_cross_entropy_with_logits(episode, torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(loss, expected)
    right = ((logits > 0) == (success > 0.5))[known].float().mean()
    assert figures["frame_accuracy"].item() == pytest.approx(right.item())


def test_every_weight_has_a_gradient_whether_or_not_cameras_are_missing(
    make_dynamics: Build,
) -> None:
    """Or processes whose clips lack different cameras would wait for each other."""
    dynamics, clips = make_dynamics(views=2), draw_batch()
    both = replace(clips, latents=clips.latents.repeat(1, 1, 2, 1, 1, 1))
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    objective(both, seeded())[0].backward()
    assert all(p.grad is not None for p in objective.parameters())
