"""Samplers: Euler's method, DDIM and Heun's method.

To a sampler, the network is a function that estimates the clean latent from a noisy latent and its
noise level. We do not use diffusers' DDIM and Heun schedulers, because they keep state between
steps and use one level for a whole clip; tests compare with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from worldmodel.networks.noise_schedule import Flow, Schedule

Denoise = Callable[[Tensor, float], Tensor]
"""(x, level) -> estimate of the latent z."""
Draw = Callable[[], Tensor]
"""Draws new standard normal noise of the shape of x."""

METHODS = ("euler", "heun", "ddim")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Configuration of the sampler."""

    num_steps: int = 1
    """Steps per frame."""
    method: str = "euler"
    """"euler" or "ddim" (the same first-order update, by its name for flows and for diffusion), or
    "heun" (second order, two evaluations in every step except the last; flows only)."""
    eta: float = 0.0
    """Share of new noise in each step: 0 is deterministic given the initial noise, 1 is ancestral
    sampling."""
    guidance: float = 1.0
    """Classifier-free guidance weight w of the action: z = unknown + w (known - unknown), from
    estimates with and without the action (Ho & Salimans 2022, arXiv:2207.12598). 1 is no guidance;
    other weights double the cost and need a network trained with action dropout."""
    window: str = "exact"
    """Key/value cache of an imported C3 network once its window slides: "exact" recomputes it for
    every frame, "stale" keeps it."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, got {self.num_steps}.")
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {METHODS}, got {self.method!r}.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"`eta` must be between 0 and 1, got {self.eta}.")
        if self.eta and self.method == "heun":
            raise ValueError("`eta` must be 0 with Heun's method, which follows an ODE.")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"`guidance` must be a number of at least 0, got {self.guidance}.")
        if self.window not in ("exact", "stale"):
            raise ValueError(f'`window` must be "exact" or "stale", got {self.window!r}.')


def sample(
    denoise: Denoise, noise: Tensor, schedule: Schedule, sampling: Sampling, draw: Draw
) -> Tensor:
    """Sample a latent from `noise` with the method of `sampling`."""
    if sampling.method != "heun":
        return first_order(denoise, noise, schedule, sampling.num_steps, sampling.eta, draw)
    if not isinstance(schedule, Flow):
        raise ValueError('`method` "heun" needs a flow; this is a diffusion network: use "ddim".')
    return heun(denoise, noise, sampling.num_steps)


def first_order(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    num_steps: int,
    eta: float = 0.0,
    draw: Draw | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv:2010.02502, Eq. 12 and 16); on a flow, Euler's method.

    With one step, it returns `denoise(noise, first level)`, the posterior mean.

    >>> import torch
    >>> first_order(lambda x, s: torch.full_like(x, 3.0), torch.randn(2), Flow(), 4)
    tensor([3., 3.])
    """
    x, levels = noise, schedule.levels(num_steps)
    for level, following in pairwise(levels):
        clean = denoise(x, level)
        if following == levels[-1]:
            return clean  # equals the general formula, without its rounding error
        signal, sigma = schedule.signal(level), schedule.sigma(level)
        new_signal, new_sigma = schedule.signal(following), schedule.sigma(following)
        kept = signal * new_sigma / (new_signal * sigma)
        fresh = eta * new_sigma * (1 - kept**2) ** 0.5
        estimated_noise = (x - signal * clean) / sigma
        x = new_signal * clean + (new_sigma**2 - fresh**2) ** 0.5 * estimated_noise
        if fresh and draw is not None:
            x = x + fresh * draw()
    raise AssertionError("a schedule has at least two levels")


def heun(denoise: Denoise, noise: Tensor, num_steps: int) -> Tensor:
    """Heun's method on a flow (Karras et al. 2022, arXiv:2206.00364, Algorithm 1).

    The last step is an Euler step, because the velocity is not defined at level 0.

    >>> import torch
    >>> heun(lambda x, s: torch.full_like(x, 3.0), torch.randn(2), 4)
    tensor([3., 3.])
    """
    x = noise
    for level, following in pairwise(Flow().levels(num_steps)):
        clean = denoise(x, level)
        if following == 0:
            return clean
        velocity = (x - clean) / level
        guess = x + (following - level) * velocity
        ahead = (guess - denoise(guess, following)) / following
        x = x + (following - level) * (velocity + ahead) / 2
    raise AssertionError("the flow has at least two levels")
