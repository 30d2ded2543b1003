"""Noise levels of the flow between latents and noise, and changes of variables between its targets.

The flow (Lipman et al. 2023, arXiv:2210.02747, with the straight path) is x_s = (1 - s) z + s n
for a latent z, a standard normal n and a noise level s in [0, 1]; its velocity is v = n - z. Every
frame of a clip has its own level (diffusion forcing, Chen et al. 2024, arXiv:2407.01392).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def expand(level: Float[Tensor, "batch time"], like: Tensor) -> Tensor:
    """`level` with singleton axes appended until it broadcasts against `like`."""
    return level.reshape(*level.shape, *(1,) * (like.ndim - level.ndim))


def add_noise(latent: Tensor, noise: Tensor, level: Float[Tensor, "batch time"]) -> Tensor:
    """Noisy latent x_s = (1 - s) z + s n.

    >>> add_noise(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([[0.5]]))
    tensor([[3.]])
    """
    s = expand(level, latent)
    return (1 - s) * latent + s * noise


def velocity(latent: Tensor, noise: Tensor) -> Tensor:
    """Derivative of x_s with respect to s: v = n - z."""
    return noise - latent


def clean_from_velocity(noisy: Tensor, v: Tensor, level: Float[Tensor, "batch time"]) -> Tensor:
    """Latent z = x_s - s v."""
    return noisy - expand(level, noisy) * v


def noise_from_velocity(noisy: Tensor, v: Tensor, level: Float[Tensor, "batch time"]) -> Tensor:
    """Noise n = x_s + (1 - s) v."""
    return noisy + (1 - expand(level, noisy)) * v


@runtime_checkable
class Schedule(Protocol):
    """How much of a latent and how much noise a noisy latent holds: x = signal z + sigma n."""

    def levels(self, num_steps: int) -> list[float]:
        """The `num_steps` + 1 noise levels a sampler visits, from noise down to the latent."""

    def signal(self, level: float) -> float:
        """Weight of the latent at a level."""

    def sigma(self, level: float) -> float:
        """Weight of the noise at a level."""


class Flow:
    """The straight path: signal 1 - s and sigma s at noise level s."""

    def levels(self, num_steps: int) -> list[float]:
        """Evenly spaced levels.

        >>> Flow().levels(2)
        [1.0, 0.5, 0.0]
        """
        check_num_steps(num_steps)
        return torch.linspace(1.0, 0.0, num_steps + 1).tolist()

    def signal(self, level: float) -> float:
        return 1 - level

    def sigma(self, level: float) -> float:
        return level


class SigmoidDiffusion:
    """Variance-preserving diffusion with the sigmoid schedule of Jabri et al. 2022.

    (arXiv:2212.11972, start -3, end 3, temperature 1.) A level is a timestep, 0 to
    `num_timesteps` - 1; -1 is the latent itself. With ᾱ the cumulative product, signal is √ᾱ, sigma
    √(1 - ᾱ) and velocity v = signal n - sigma z (Salimans & Ho 2022, arXiv:2202.00512).
    """

    def __init__(self, num_timesteps: int = 1000) -> None:
        self.num_timesteps = num_timesteps
        t = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
        curve = torch.sigmoid(3 - 6 * t) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
        beta = (1 - curve[1:] / curve[:-1]).clamp(0, 0.999).float()
        self.alphas_cumprod = (1 - beta).cumprod(0)
        self._signal = [*self.alphas_cumprod.sqrt().tolist(), 1.0]  # the last entry is level -1
        self._sigma = [*(1 - self.alphas_cumprod).sqrt().tolist(), 0.0]

    def levels(self, num_steps: int) -> list[float]:
        """Evenly spaced timesteps, truncated to whole ones, from the last one down to -1.

        >>> SigmoidDiffusion().levels(4)
        [999.0, 749.0, 499.0, 249.0, -1.0]
        """
        check_num_steps(num_steps, at_most=self.num_timesteps)
        spaced = torch.linspace(-1, self.num_timesteps - 1, num_steps + 1).long()
        return spaced.flip(0).double().tolist()

    def signal(self, level: float) -> float:
        return self._signal[int(level)]

    def sigma(self, level: float) -> float:
        return self._sigma[int(level)]


def check_num_steps(num_steps: int, at_most: int | None = None) -> None:
    """Refuse a number of sampler steps that a schedule does not have."""
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    if at_most is not None and num_steps > at_most:
        raise ValueError(f"`num_steps` must be at most {at_most}, got {num_steps}.")


def training_levels(
    shape: tuple[int, int], *, pure_noise: float, generator: Generator
) -> Float[Tensor, "batch time"]:
    """Noise levels to train on: 1 with probability `pure_noise`, else logit-normal.

    A one-step sampler only ever asks for level 1, a few-step sampler asks for it once per frame.
    The logit-normal is that of Esser et al. 2024 (arXiv:2403.03206).
    """
    device = generator.device
    level = torch.sigmoid(torch.randn(shape, generator=generator, device=device))
    pure = torch.rand(shape, generator=generator, device=device) < pure_noise
    return torch.where(pure, torch.ones_like(level), level)


def posterior_under_persistence(
    noisy: Tensor, previous: Tensor, level: Float[Tensor, "batch time"], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of z given x_s, were z the previous frame plus Gaussian change.

    With z ~ N(previous, scale²) and x_s = (1 - s) z + s n, the posterior is Gaussian in closed
    form. The network predicts the rest, in units of the posterior's standard deviation: the
    preconditioning of Karras et al. 2022 (arXiv:2206.00364, Eq. 7) with its prior moved from zero
    to the last frame. `scale` broadcasts against `noisy`.
    """
    s = expand(level, noisy)
    signal, noise = (1 - s) * scale, s
    total = (signal.square() + noise.square()).clamp_min(1e-8)
    mean = previous + scale * signal / total * (noisy - (1 - s) * previous)
    return mean, scale * noise / total.sqrt()
