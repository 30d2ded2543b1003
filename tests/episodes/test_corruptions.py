"""Image corruptions: reproducible from a seed, constant over a clip, actions unchanged."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.clips import encode_episode
from worldmodel.episodes.corruptions import (
    CORRUPTIONS,
    corrupt,
    corrupted_episode,
    insert_patches,
    noise,
)
from worldmodel.model import WorldModel


def still_video(num_frames: int = 4, views: int = 1) -> torch.Tensor:
    """A still video of smooth colours."""
    rows = torch.linspace(40, 200, 24)
    frame = torch.stack(
        [rows[:, None].expand(24, 24), rows.expand(24, 24), rows.flip(0).expand(24, 24)], -1
    )
    return frame.byte().expand(num_frames, views, 24, 24, 3).clone()


def test_corruptions_are_reproducible_and_change_the_frames() -> None:
    frames = still_video()
    once, again = (corrupt(frames, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(once, again)
    changed = [corrupt(frames, np.random.default_rng(seed)) for seed in range(20)]
    assert all(not torch.equal(other, frames) for other in changed)
    assert len({other.numpy().tobytes() for other in changed}) == 20
    assert all(other.dtype == torch.uint8 and other.shape == frames.shape for other in changed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_constant_over_a_clip_except_noise_and_patches(name: str) -> None:
    pixels = torch.rand((1, 3, 24, 24), generator=torch.Generator().manual_seed(0)) * 2 - 1
    still = pixels.repeat(3, 1, 1, 1)
    changed = CORRUPTIONS[name](still, np.random.default_rng(3))
    assert torch.isfinite(changed).all()
    assert not torch.allclose(changed, still, atol=0.02)
    if name not in ("noise", "insert_patches"):
        assert torch.equal(changed[0], changed[1])
    assert torch.equal(still, pixels.repeat(3, 1, 1, 1))  # the input is unchanged


def test_patches_change_only_part_of_the_frame() -> None:
    pixels = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).repeat(
        2, 1, 1, 1
    )
    shares = [
        float((insert_patches(pixels, np.random.default_rng(seed)) != pixels).any(1).float().mean())
        for seed in range(30)
    ]
    assert min(shares) > 0
    assert np.mean(shares) < 0.25


def test_noise_is_fresh_in_every_frame() -> None:
    noisy = noise(torch.zeros((2, 3, 16, 16)), np.random.default_rng(0))
    assert np.corrcoef(noisy[0].flatten(), noisy[1].flatten())[0, 1] == pytest.approx(0, abs=0.15)


def test_cameras_are_corrupted_independently() -> None:
    changed = corrupt(still_video(views=2), np.random.default_rng(0))
    assert not torch.equal(changed[:, 0], changed[:, 1])


def test_a_corrupted_episode_keeps_its_actions(
    make_model: Callable[..., WorldModel], make_trajectory: Callable[..., Trajectory]
) -> None:
    model, trajectory = make_model(), make_trajectory("a", 5, 0)
    plain = encode_episode(model, trajectory)
    odd = corrupted_episode(model, trajectory, np.random.default_rng(0))
    assert torch.equal(odd.actions, plain.actions)
    assert odd.latents.shape == plain.latents.shape
    assert not torch.equal(odd.latents, plain.latents)
