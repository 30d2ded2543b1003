"""Batches with single images and with episodes shorter than a clip."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worldmodel.episodes.clips import LatentBatch, LatentClips, collate_latents
from worldmodel.networks.dynamics import Dynamics
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.randomness import step_randomness

Build = Callable[..., Dynamics]


def episode(num_frames: int, seed: int = 0) -> LatentBatch:
    generator = torch.Generator().manual_seed(seed)
    return LatentBatch(
        torch.randn((1, num_frames, 1, 2, 2, 4), generator=generator),
        torch.randn((1, num_frames, 7), generator=generator),
        torch.ones((1, num_frames), dtype=torch.bool),
        torch.zeros((1, num_frames)),
    )


@torch.no_grad()
def estimates(dynamics: Dynamics, batch: LatentBatch) -> Tensor:
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    level = torch.full(batch.latents.shape[:2], 0.6)
    noisy = 0.5 * batch.latents
    return objective.estimate(batch, batch.latents, noisy, level).clean


def edited(batch: LatentBatch, frame: int) -> LatentBatch:
    latents, actions = batch.latents.clone(), batch.actions.clone()
    latents[:, frame] += 1
    actions[:, frame - 1] += 1
    return replace(batch, latents=latents, actions=actions)


def test_frames_of_an_image_clip_are_independent(make_dynamics: Build) -> None:
    """The first clip holds single images, the second is a video; frame 2 of both is edited."""
    dynamics = make_dynamics()
    batch = collate_latents([episode(6, 1), episode(6, 2)])
    batch = batch.as_single_frames(torch.tensor([True, False]))
    before, after = estimates(dynamics, batch), estimates(dynamics, edited(batch, 2))
    others = [0, 1, 3, 4, 5]
    assert torch.equal(before[0, others], after[0, others])
    assert not torch.equal(before[0, 2], after[0, 2])
    assert torch.equal(before[1, :2], after[1, :2])  # causal
    assert all(not torch.equal(before[1, t], after[1, t]) for t in (2, 3, 4, 5))


def test_an_image_is_denoised_as_the_first_frame_of_a_clip(make_dynamics: Build) -> None:
    dynamics, clip = make_dynamics(), episode(5)
    pictures = estimates(dynamics, clip.as_single_frames(torch.tensor([True])))
    for frame in range(4):
        first = estimates(dynamics, clip.cut(2, start=frame))
        torch.testing.assert_close(pictures[:, frame], first[:, 0])


def test_the_share_of_image_clips_is_image_share(make_dynamics: Build) -> None:
    """1000 clips in 40 batches of 25, standard error 0.014."""
    dynamics, seen = make_dynamics(), []
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1, image_share=0.3)
    inner = objective.estimate

    def recorded(batch: LatentBatch, *rest: Tensor) -> object:
        assert batch.starts_segment is not None
        assert (batch.starts_segment.all(1) == batch.starts_segment.any(1)).all()
        seen.append(batch.starts_segment[:, 0].float().mean().item())
        return inner(batch, *rest)

    objective.estimate = recorded  # type: ignore[method-assign, assignment]
    batch = collate_latents([episode(3, seed) for seed in range(25)])
    with torch.no_grad():
        for step in range(40):
            objective(batch, step_randomness(0, step))
    assert sum(seen) / len(seen) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("own_context", [0.0, 1.0])
def test_images_train_every_weight_with_a_loss_in_latent_units(
    make_dynamics: Build, own_context: float
) -> None:
    """On images, an untrained network has the error of a zero prediction, in latent units."""
    dynamics = make_dynamics()
    objective = DynamicsObjective(dynamics, own_context=own_context, passes=2, pure_noise=1.0)
    batch = collate_latents([episode(5, seed) for seed in range(3)])
    pictures = batch.as_single_frames(torch.ones(3, dtype=torch.bool))
    loss, _ = objective(pictures, step_randomness(0))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dynamics.parameters())
    with torch.no_grad():
        dynamics.final.weight.zero_()
        dynamics.final.bias.zero_()
        loss, figures = objective(pictures, step_randomness(0))
    assert loss.item() == pytest.approx(batch.latents[:, 1:].square().mean().item(), rel=1e-5)
    assert figures["relative_error"].item() == pytest.approx(1.0)


def test_windows_of_short_episodes_wrap_around() -> None:
    """Episodes of 5, 2 and 1 frames in windows of 4: 2 + 2 + 1 windows."""
    episodes = [episode(5, 0), episode(2, 1), episode(1, 2)]
    clips = LatentClips(episodes, 4, short=True)
    assert len(clips) == 5
    assert len(LatentClips(episodes, 4)) == 2
    rows = [[0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]]
    for index, (source, expected) in enumerate(zip([0, 0, 1, 1, 2], rows, strict=True)):
        window = clips[index]
        assert torch.equal(window.latents, episodes[source].latents[:, expected])
        assert torch.equal(window.actions, episodes[source].actions[:, expected])
        if source == 0:
            assert window.starts_segment is None
        else:
            assert window.starts_segment is not None
            assert window.starts_segment[0].tolist() == [row == 0 for row in expected]
    batch = LatentClips.collate([clips[0], clips[3]])
    assert batch.starts_segment is not None
    assert batch.starts_segment.tolist() == [[False] * 4, [False, True, False, True]]


def test_segments_of_a_short_episode_do_not_attend_to_each_other(make_dynamics: Build) -> None:
    """Frames 1, 0, 1, 0 of an episode of two frames: the segments are 1 | 0 1 | 0."""
    dynamics = make_dynamics()
    window = LatentClips([episode(2)], 4, short=True)[1]
    before, after = estimates(dynamics, window), estimates(dynamics, edited(window, 1))
    assert torch.equal(before[:, [0, 3]], after[:, [0, 3]])
    assert all(not torch.equal(before[:, t], after[:, t]) for t in (1, 2))


def test_impossible_shares_are_refused(make_dynamics: Build) -> None:
    message = r"^`image_share` must be at least 0 and below 1, got 1\.0\.$"
    with pytest.raises(ValueError, match=message):
        DynamicsObjective(make_dynamics(), own_context=0.0, passes=1, image_share=1.0)
