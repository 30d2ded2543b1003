import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.special import expit
from scipy.stats import kstest, norm

from worldmodel.networks.noise_schedule import (
    Flow,
    SigmoidDiffusion,
    add_noise,
    expand,
    posterior_under_persistence,
    training_levels,
)

SHAPE = (2, 3, 1, 2, 4, 4)
"""batch, time, view, channel, h, w"""


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return latent, noise, torch.rand(SHAPE[:2], generator=generator, dtype=torch.float64)


def test_every_frame_has_its_own_level() -> None:
    latent, noise, level = draw(2)
    level[:] = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    noisy = add_noise(latent, noise, level)
    assert torch.equal(noisy[:, 0], latent[:, 0])
    assert torch.equal(noisy[:, 2], noise[:, 2])
    torch.testing.assert_close(noisy[:, 1], 0.75 * latent[:, 1] + 0.25 * noise[:, 1])
    assert expand(level, latent).shape == (2, 3, 1, 1, 1, 1)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_posterior_is_bayes_rule(level: float, scale: float) -> None:
    """Against prior times likelihood, normalised on a grid of 200001 points over 16 deviations."""
    previous, noisy = 0.4, -0.9
    z = previous + np.linspace(-16 * scale, 16 * scale, 200_001)
    density = norm.pdf(z, previous, scale) * norm.pdf(noisy, (1 - level) * z, level)
    density /= trapezoid(density, z)
    mean = trapezoid(z * density, z)
    deviation = np.sqrt(trapezoid((z - mean) ** 2 * density, z))

    as_tensor = [torch.tensor([[[x]]], dtype=torch.float64) for x in (noisy, previous)]
    levels = torch.tensor([[level]], dtype=torch.float64)
    stated = posterior_under_persistence(*as_tensor, levels, torch.tensor(scale))
    assert stated[0].item() == pytest.approx(mean, abs=1e-6)
    assert stated[1].item() == pytest.approx(deviation, rel=1e-5)


def test_posterior_at_the_ends_is_the_frame_itself_and_the_prior() -> None:
    latent, previous, _ = draw(3)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None, None]
    zero, one = torch.zeros(SHAPE[:2]).double(), torch.ones(SHAPE[:2]).double()
    mean, deviation = posterior_under_persistence(latent, previous, zero, scale)
    torch.testing.assert_close(mean, latent)
    assert torch.equal(deviation, torch.zeros_like(deviation))
    mean, deviation = posterior_under_persistence(latent, previous, one, scale)
    torch.testing.assert_close(mean, previous)
    torch.testing.assert_close(deviation.expand(SHAPE), scale.expand(SHAPE))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_training_levels_are_pure_noise_or_logit_normal(share: float) -> None:
    """n = 20000, seed 0: four standard errors of the share are at most 0.015."""
    generator = torch.Generator().manual_seed(0)
    level = training_levels((200, 100), pure_noise=share, generator=generator)
    pure = level == 1
    assert pure.float().mean().item() == pytest.approx(share, abs=0.015)
    rest = level[~pure]
    assert ((rest > 0) & (rest < 1)).all()
    if share < 1:
        assert kstest(torch.logit(rest.double()).numpy(), "norm").pvalue > 0.01


def test_training_levels_repeat_with_their_generator() -> None:
    twice = [
        training_levels((4, 5), pure_noise=0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[0], twice[2])


def test_levels_fall_evenly_from_noise_to_the_latent() -> None:
    assert Flow().levels(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert SigmoidDiffusion().levels(10) == [999.0 - 100 * step for step in range(11)]
    for schedule in (Flow(), SigmoidDiffusion()):
        with pytest.raises(ValueError, match=r"^`num_steps` must be at least 1, got 0\.$"):
            schedule.levels(0)
    with pytest.raises(ValueError, match=r"^`num_steps` must be at most 1000, got 1001\.$"):
        SigmoidDiffusion().levels(1001)


def test_diffusion_keeps_variance_and_falls_from_latent_to_noise() -> None:
    diffusion = SigmoidDiffusion()
    signal = np.array([diffusion.signal(float(t)) for t in range(-1, 1000)])
    sigma = np.array([diffusion.sigma(float(t)) for t in range(-1, 1000)])
    np.testing.assert_allclose(signal**2 + sigma**2, 1, atol=1e-6)
    assert (np.diff(signal) < 0).all()
    assert signal[0] == 1
    assert signal[-1] < 0.01
    t = np.arange(1, 1001) / 1000  # Eq. of the schedule, before its betas are clipped
    curve = (expit(3 - 6 * t) - expit(-3)) / (expit(3) - expit(-3))
    np.testing.assert_allclose(signal[1:-1] ** 2, curve[:-1], atol=1e-5)


def test_latent_noise_and_velocity_of_diffusion_give_each_other_back() -> None:
    latent, noise, _ = draw(4)
    signal, sigma = (f(500.0) for f in (SigmoidDiffusion().signal, SigmoidDiffusion().sigma))
    noisy, v = signal * latent + sigma * noise, signal * noise - sigma * latent
    torch.testing.assert_close(signal * noisy - sigma * v, latent, atol=1e-6, rtol=0)
    torch.testing.assert_close(sigma * noisy + signal * v, noise, atol=1e-6, rtol=0)
