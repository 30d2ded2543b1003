"""Image quality of rollouts: PSNR and its bootstrap interval."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import START, roll_out
from worldmodel.rollouts.quality import (
    RESAMPLES,
    CopyGain,
    bootstrap_interval,
    copy_gains,
    image_quality,
    psnr_per_frame,
)


def test_psnr_of_a_known_error() -> None:
    black = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    grey = black.clone()
    grey[0] += 51  # a fifth of the range: 20 log10(5) dB
    grey[1] += 255
    np.testing.assert_allclose(psnr_per_frame(black, grey), [20 * np.log10(5), 0.0], atol=1e-4)


def test_equal_images_have_a_finite_psnr() -> None:
    image = torch.full((1, 4, 4, 3), 7, dtype=torch.uint8)
    assert 70 < psnr_per_frame(image, image)[0] < 100


def test_bootstrap_interval_equals_scipy() -> None:
    values = np.random.default_rng(1).normal(size=16)
    reference = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    interval = bootstrap_interval(values, np.random.default_rng(0))
    assert interval == pytest.approx(tuple(reference.confidence_interval), abs=1e-12)


def test_quality_compares_the_same_frame_imagined_copied_and_under_the_next_episodes_actions(
    make_model: Callable[..., WorldModel], make_trajectory: Callable[..., Trajectory]
) -> None:
    """Three episodes of 12 frames, too short for ten frames ahead."""
    model = make_model()
    episodes = [
        load_episode(model, make_trajectory(f"e{seed}", 12, seed), model.config.cameras)
        for seed in range(3)
    ]
    batches = [episode.batch for episode in episodes]
    swapped = [replace(batches[i], actions=batches[j].actions) for i, j in ((0, 1), (1, 2), (2, 0))]
    rollouts, shuffled = (roll_out(model, each) for each in (batches, swapped))
    rng = np.random.default_rng(0)
    rows = image_quality(model, episodes, rollouts, rng=rng, kind="decoded")
    assert [row.step for row in rows] == [1, 5]
    for row, ahead in zip(rows, (4, 8), strict=True):
        psnr = {"imagined": [], "copied": [], "shuffled": []}
        for i, episode in enumerate(episodes):
            candidates = {
                "imagined": model.decode(rollouts[i].imagined[ahead, 0]),
                "copied": episode.frames[START - 1, 0],
                "shuffled": model.decode(shuffled[i].imagined[ahead, 0]),
            }
            for name, frame in candidates.items():
                error = (frame.double() - episode.frames[ahead, 0].double()).square().mean()
                psnr[name].append(10 * np.log10(255**2 / max(float(error), 1e-3)))
        for name, values in psnr.items():
            assert getattr(row, name) == pytest.approx(np.mean(values), abs=1e-3)
        assert abs(row.imagined - row.shuffled) > 0.01  # the actions matter
        assert row.gain[0] == pytest.approx(row.imagined - row.copied)
        assert row.loss_when_shuffled[0] == pytest.approx(row.imagined - row.shuffled)


def test_gain_over_a_copy_is_that_of_the_frames_at_the_horizons(
    make_model: Callable[..., WorldModel], make_trajectory: Callable[..., Trajectory]
) -> None:
    model = make_model()
    episode = load_episode(model, make_trajectory("e", 12, 0), model.config.cameras)
    (rollout,) = roll_out(model, [episode.batch])
    rows = [START, START + 3]  # horizons 1 and 4
    pictures = model.decode(rollout.imagined[rows])[:, 0]
    real, last = episode.frames[rows, 0], episode.frames[[START - 1] * 2, 0]
    expected = (psnr_per_frame(pictures, real) - psnr_per_frame(last, real)).mean()
    gains = copy_gains(model, [episode], [rollout], (1, 4), "decoded")
    assert gains == pytest.approx([expected])
    composed = model.show(rollout.imagined[rows], episode.frames[START - 1])[:, 0]
    expected = (psnr_per_frame(composed, real) - psnr_per_frame(last, real)).mean()
    gains = copy_gains(model, [episode], [rollout], (1, 4))
    assert gains == pytest.approx([expected], abs=0.05)  # latents are kept in half precision
    assert CopyGain.of(gains).interval is None
    assert len(copy_gains(model, [episode], [rollout], (99,))) == 0


def test_one_episode_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 episodes, got 1"):
        bootstrap_interval(np.zeros(1), np.random.default_rng(0))
