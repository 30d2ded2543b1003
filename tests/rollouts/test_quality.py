"""Image quality of rollouts: PSNR and its bootstrap interval."""

import numpy as np
import pytest
import torch
from scipy import stats

from worldmodel.rollouts.quality import RESAMPLES, bootstrap_interval, psnr_per_frame


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
