"""Picture quality against dumb predictors."""

import numpy as np
import torch

from worldmodel.rollouts.quality import psnr_per_frame


def test_psnr_of_a_known_error() -> None:
    black = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    grey = black.clone()
    grey[0] += 51  # a fifth of the range: 20 log10(5) dB
    grey[1] += 255
    np.testing.assert_allclose(psnr_per_frame(black, grey), [20 * np.log10(5), 0.0], atol=1e-4)


def test_a_perfect_picture_has_a_finite_psnr() -> None:
    picture = torch.full((1, 4, 4, 3), 7, dtype=torch.uint8)
    assert 70 < psnr_per_frame(picture, picture)[0] < 100
