import math

import pytest
import torch
from torch import Tensor

from worldmodel.sampler import euler

MEAN, DEVIATION = 1.5, 0.6


def posterior_mean(x: Tensor, level: float) -> Tensor:
    """E[z | x_s] for z ~ N(MEAN, DEVIATION²) and x_s = (1 - s) z + s n."""
    gain = (1 - level) * DEVIATION**2 / ((1 - level) ** 2 * DEVIATION**2 + level**2)
    return MEAN + gain * (x - (1 - level) * MEAN)


def transported(noise: Tensor) -> Tensor:
    """Where the exact flow takes noise: x_s has mean (1 - s) m and deviation √((1-s)² d² + s²)."""
    return MEAN + DEVIATION * noise


def test_one_step_is_the_posterior_mean() -> None:
    noise = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(euler(posterior_mean, noise, 1), torch.full((5,), MEAN))


def test_many_steps_reach_the_exact_flow_at_first_order() -> None:
    """Halving the step halves the error: Euler's method is of order one."""
    noise = torch.linspace(-3, 3, 13, dtype=torch.float64)
    exact = transported(noise)
    errors = [(euler(posterior_mean, noise, n) - exact).abs().max().item() for n in (64, 128, 256)]
    assert errors[2] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_samples_have_the_distribution_of_the_data() -> None:
    """n = 40000, seed 0: a standard error is 0.003 of the mean, 0.002 of the deviation."""
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    sample = euler(posterior_mean, noise, 200)
    assert sample.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert sample.std().item() == pytest.approx(DEVIATION, abs=0.015)


def test_levels_are_visited_once_each_from_noise_down() -> None:
    seen = []

    def denoise(x: Tensor, level: float) -> Tensor:
        seen.append(level)
        return x

    euler(denoise, torch.zeros(1), 4)
    assert seen == [1.0, 0.75, 0.5, 0.25]
    assert math.isclose(seen[0], 1.0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`num_steps` must be at least 1, got 0\."):
        euler(posterior_mean, torch.zeros(1), 0)
