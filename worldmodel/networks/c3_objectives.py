"""Training objectives of C3 and WorldGym networks: what their velocity and their timesteps mean.

The weights do not tell which objective they were trained with. A context frame is shown to the
network at a low noise level, but without noise.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from worldmodel.networks.noise_schedule import Flow, Schedule, SigmoidDiffusion

NUM_TIMESTEPS = 1000


@runtime_checkable
class Objective(Protocol):
    """Reading of a network's velocity."""

    context_timestep: float
    """Timestep of context frames."""

    @property
    def schedule(self) -> Schedule:
        """Noise levels, and the weights of latent and noise."""

    def timestep(self, level: float) -> float:
        """Input of the network for a noise level of the schedule."""

    def as_context(self, latents: Tensor) -> Tensor:
        """Context frames as the network sees them."""

    def clean(self, noisy: Tensor, velocity: Tensor, level: float) -> Tensor:
        """Estimated clean latent."""


class VelocityDiffusion:
    """C3 and WorldGym ("ddpm"): v-prediction (arXiv:2202.00512) with the sigmoid schedule."""

    schedule = SigmoidDiffusion()
    context_timestep = 14.0

    def timestep(self, level: float) -> float:
        """The noise level is a timestep."""
        return level

    def as_context(self, latents: Tensor) -> Tensor:
        """Scaled to the noise level of the context."""
        return latents * self.schedule.signal(self.context_timestep)

    def clean(self, noisy: Tensor, velocity: Tensor, level: float) -> Tensor:
        """Estimate z = signal x - sigma v."""
        return self.schedule.signal(level) * noisy - self.schedule.sigma(level) * velocity


class VelocityFlow:
    """WorldGym's other objective ("flow_matching"): v = noise - z on the straight path."""

    schedule = Flow()
    context_timestep = 0.01 * NUM_TIMESTEPS

    def timestep(self, level: float) -> float:
        """Levels from 0 to 1 are stretched to timesteps from 0 to 1000."""
        return level * NUM_TIMESTEPS

    def as_context(self, latents: Tensor) -> Tensor:
        """Unchanged."""
        return latents

    def clean(self, noisy: Tensor, velocity: Tensor, level: float) -> Tensor:
        """Estimate z = x - s v."""
        return noisy - level * velocity


OBJECTIVES: dict[str, Objective] = {"ddpm": VelocityDiffusion(), "flow_matching": VelocityFlow()}
"""Name in WorldGym's training script -> objective."""
