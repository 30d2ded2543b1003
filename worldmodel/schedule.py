"""Noise levels of the flow between latents and noise, and changes of variables between its targets.

The flow (Lipman et al. 2023, arXiv:2210.02747, with the straight path) is x_s = (1 - s) z + s n
for a latent z, a standard normal n and a noise level s in [0, 1]; its velocity is v = n - z. Every
frame of a clip has its own level (diffusion forcing, Chen et al. 2024, arXiv:2407.01392).
"""

from __future__ import annotations

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


def sampling_levels(num_steps: int) -> Float[Tensor, " levels"]:
    """The `num_steps` + 1 noise levels a sampler visits, from 1 (noise) down to 0 (latent).

    >>> sampling_levels(2)
    tensor([1.0000, 0.5000, 0.0000])
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    return torch.linspace(1.0, 0.0, num_steps + 1)


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
