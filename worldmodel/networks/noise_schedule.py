"""Noise schedules: flow matching and sigmoid diffusion, training levels and preconditioning.

Flow matching (Lipman et al. 2023, arXiv:2210.02747, straight path): x_s = (1 - s) z + s n for a
latent z, standard normal noise n and a noise level s in [0, 1]. Every frame of a clip has its own
level (diffusion forcing, Chen et al. 2024, arXiv:2407.01392).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def expand(level: Float[Tensor, "batch time"], like: Tensor) -> Tensor:
    """Append singleton axes to `level` so that it broadcasts against `like`."""
    return level.reshape(*level.shape, *(1,) * (like.ndim - level.ndim))


def add_noise(latent: Tensor, noise: Tensor, level: Float[Tensor, "batch time"]) -> Tensor:
    """Noisy latent x_s = (1 - s) z + s n.

    >>> add_noise(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([[0.5]]))
    tensor([[3.]])
    """
    s = expand(level, latent)
    return (1 - s) * latent + s * noise


@runtime_checkable
class Schedule(Protocol):
    """Noise schedule: weights of latent and noise in a noisy latent x = signal z + sigma n."""

    def levels(self, num_steps: int) -> list[float]:
        """Noise levels of a sampler, from pure noise to the clean latent, `num_steps` + 1."""

    def signal(self, level: float) -> float:
        """Weight of the latent at a noise level."""

    def sigma(self, level: float) -> float:
        """Weight of the noise at a noise level."""


class Flow:
    """Flow matching with the straight path: signal 1 - s, sigma s."""

    def levels(self, num_steps: int) -> list[float]:
        """Evenly spaced noise levels.

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
    """Variance-preserving diffusion with a sigmoid schedule (Jabri et al. 2022, arXiv:2212.11972).

    Start -3, end 3, temperature 1. A noise level is a timestep from 0 to 999; -1 is the clean
    latent. With ᾱ the cumulative product of the alphas, signal is √ᾱ, sigma is √(1 - ᾱ) and the
    velocity is v = signal n - sigma z (Salimans & Ho 2022, arXiv:2202.00512).
    """

    num_timesteps = 1000

    def __init__(self) -> None:
        t = torch.linspace(0, 1, self.num_timesteps + 1, dtype=torch.float64)
        curve = torch.sigmoid(3 - 6 * t) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
        beta = (1 - curve[1:] / curve[:-1]).clamp(0, 0.999).float()
        self.alphas_cumprod = (1 - beta).cumprod(0)
        self._signal = [*self.alphas_cumprod.sqrt().tolist(), 1.0]  # the last entry is level -1
        self._sigma = [*(1 - self.alphas_cumprod).sqrt().tolist(), 0.0]

    def levels(self, num_steps: int) -> list[float]:
        """Evenly spaced timesteps, rounded down, from 999 to -1.

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
    """Raise a ValueError unless 1 <= `num_steps` <= `at_most`."""
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    if at_most is not None and num_steps > at_most:
        raise ValueError(f"`num_steps` must be at most {at_most}, got {num_steps}.")


def training_levels(
    shape: tuple[int, int], *, pure_noise: float, generator: Generator
) -> Float[Tensor, "batch time"]:
    """Random noise levels for training: 1 with probability `pure_noise`, else logit-normal.

    Level 1 gets extra weight because a one-step sampler uses no other level. The logit-normal
    follows Esser et al. 2024 (arXiv:2403.03206).
    """
    device = generator.device
    level = torch.sigmoid(torch.randn(shape, generator=generator, device=device))
    pure = torch.rand(shape, generator=generator, device=device) < pure_noise
    return torch.where(pure, torch.ones_like(level), level)


def posterior_under_persistence(
    noisy: Tensor, previous: Tensor, level: Float[Tensor, "batch time"], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of z given x_s under the persistence prior.

    The prior is the previous frame plus Gaussian change, z ~ N(previous, scale²). With
    x_s = (1 - s) z + s n, the posterior is Gaussian in closed form. The network predicts the
    residual in units of the posterior's standard deviation: the preconditioning of Karras et al.
    2022 (arXiv:2206.00364, Eq. 7) with the previous frame in place of zero as the prior mean.
    `scale` broadcasts against `noisy`.
    """
    s = expand(level, noisy)
    signal, noise = (1 - s) * scale, s
    total = (signal.square() + noise.square()).clamp_min(1e-8)
    mean = previous + scale * signal / total * (noisy - (1 - s) * previous)
    return mean, scale * noise / total.sqrt()
