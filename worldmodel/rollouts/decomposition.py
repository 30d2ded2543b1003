"""Aleatoric and epistemic uncertainty of a rollout.

An intent is a recorded action sequence plus noise. Action sequences sampled from it, and rollouts
under each of them, become directions, which `worldmodel.monitors.metrics.uncertainty_split`
compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.monitors.metrics.rank_correlation import kendall_tau
from worldmodel.monitors.metrics.uncertainty_split import Decomposition, decompose
from worldmodel.networks.dynamics import Dynamics
from worldmodel.networks.recurrent import RecurrentDynamics
from worldmodel.networks.sampler import Sampling
from worldmodel.rollouts.log import LoggedRollout
from worldmodel.rollouts.open_loop import CONTEXT

MAX_DIM = 512
"""Longer embeddings are projected to this many dimensions."""
STILL = 2e-4
"""Axes with a smaller standard deviation in training (metres, radians) count as fixed: a model
stores at least 1e-4."""
GRIPPER = slice(6, None, 7)
"""Gripper columns, in [0, 1], of one or several concatenated canonical actions."""
Agreement = tuple[float, tuple[float, float]]
PARTS = ("aleatoric", "epistemic", "total")


@dataclass(frozen=True, kw_only=True)
class Intent:
    """Distribution over action sequences around a recorded one, and the number of samples."""

    width: float = 0.2
    """Per-axis standard deviation of the action noise, in standard deviations of the training
    actions; axes that were fixed in training get no noise."""
    num_sequences: int = 6
    """Action sequences sampled from the intent."""
    num_seeds: int = 4
    """Rollouts per action sequence."""

    def __post_init__(self) -> None:
        if not 0 < self.width < np.inf:
            raise ValueError(f"`width` must be finite and above 0, got {self.width}.")
        if self.num_sequences < 2 or self.num_seeds < 2:
            raise ValueError(
                "`num_sequences` and `num_seeds` must be at least 2 to measure a spread, got "
                f"{self.num_sequences} and {self.num_seeds}."
            )


@dataclass(frozen=True)
class ActionScale:
    """Mean and standard deviation of the actions a model was trained on."""

    mean: Float[Tensor, " action"]
    std: Float[Tensor, " action"]

    @classmethod
    def of(cls, model: WorldModel) -> ActionScale:
        """Scale stored in the model's dynamics network.

        Raises:
            ValueError: The network is an imported one, which stores no scale, or a recurrent one.
        """
        if isinstance(model.dynamics, RecurrentDynamics):
            raise ValueError(
                "The uncertainty of a recurrent network cannot be split: it predicts one future "
                "and samples none; use a model with a transformer."
            )
        if not isinstance(model.dynamics, Dynamics):
            raise ValueError(
                "The action noise is scaled by the training actions, which an imported network "
                "does not store; use a model trained by `worldmodel train`."
            )
        condition = model.dynamics.condition
        return cls(condition.action_mean.cpu(), condition.action_std.cpu())

    def draw(
        self, actions: Float[Tensor, "rows action"], first: int, intent: Intent, seed: int
    ) -> Float[Tensor, "sequence rows action"]:
        """Sample action sequences of an intent; rows before `first` are past and get no noise."""
        generator = Generator().manual_seed(seed)
        shape = (intent.num_sequences, len(actions) - first, actions.shape[1])
        spread = self.std.where(self.std > STILL, 0) * intent.width
        drawn = actions.repeat(intent.num_sequences, 1, 1)
        drawn[:, first:] += spread * torch.randn(shape, generator=generator)
        drawn[:, first:, GRIPPER] = drawn[:, first:, GRIPPER].clamp(0, 1)
        return drawn

    def embed(
        self, actions: Float[Tensor, "*batch rows action"]
    ) -> Float[np.ndarray, "*batch dim"]:
        """Concatenated actions, in standard deviations of the training actions."""
        return embed(((actions - self.mean) / self.std).flatten(-2))


def embed_rollouts(
    latents: Float[Tensor, "*batch time view channel h w"],
) -> Float[np.ndarray, "*batch dim"]:
    """Whitened latents of rollouts, averaged over frames."""
    return embed(latents.float().mean(-5).flatten(-4))


def embed(vectors: Float[Tensor, "*batch dim"]) -> Float[np.ndarray, "*batch embedding"]:
    """Embedding whose direction is compared: at most `MAX_DIM` numbers, and a constant.

    A fixed random projection, which preserves distances on average (Johnson and Lindenstrauss
    1984), shortens longer vectors. The constant, the norm of a vector of ones, makes directions
    depend on the norm: without it, the same spread counts less around a long vector than around a
    short one.
    """
    dim = vectors.shape[-1]
    if dim > MAX_DIM:
        generator = Generator().manual_seed(0)
        vectors = vectors @ torch.randn((dim, MAX_DIM), generator=generator) / MAX_DIM**0.5
    constant = torch.full_like(vectors[..., :1], dim**0.5)
    return torch.cat((vectors, constant), -1).double().numpy()


def decompose_rollout(
    model: WorldModel,
    episode: LatentBatch,
    intent: Intent,
    *,
    start: int,
    horizon: int,
    seed: int,
    sampling: Sampling | None = None,
) -> Decomposition:
    """Split the uncertainty of one rollout of a recorded episode into its parts.

    Args:
        model: The world model.
        episode: A batch of one, longer than `start` frames.
        intent: Distribution of actions around the recorded ones.
        start: First imagined frame; at most `CONTEXT` real frames before it are the context.
        horizon: Frames to imagine; fewer if the episode ends earlier.
        seed: Samples the action sequences; rollout i uses seed + i.
        sampling: Sampler settings; None: those of the checkpoint.
    """
    begin, scale = max(0, start - CONTEXT), ActionScale.of(model)
    window = episode.cut(start + horizon - begin, start=begin)
    num_context, num_rows = start - begin, window.actions.shape[1] - 1
    drawn = scale.draw(window.actions[0, :num_rows], num_context - 1, intent, seed)
    view_mask, count = window.view_valid, intent.num_sequences * intent.num_seeds
    imagined = model.imagine(
        window.latents[:, :num_context].float().expand(count, *[-1] * 5),
        drawn.repeat_interleave(intent.num_seeds, 0),
        action_valid=window.action_valid[:, :num_rows].expand(count, -1),
        seeds=range(seed, seed + count),
        epsilon=(),
        view_valid=None if view_mask is None else view_mask[:, :num_context].expand(count, -1, -1),
        sampling=sampling,
    ).latents.cpu()
    rollouts = embed_rollouts(imagined).reshape(intent.num_sequences, intent.num_seeds, -1)
    return decompose(
        scale.embed(drawn[:, num_context - 1 :]),
        rollouts,
        rng=np.random.default_rng(seed),
    )


def first_error(rollout: LoggedRollout) -> float:
    """Mean absolute error of the first segment, the one that is decomposed."""
    first = int(np.argmax(rollout.horizon == 1))
    length = int(rollout.horizon[first:].max())
    return float(rollout.error[first : first + length].mean())


def agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, Agreement | None]:
    """Part -> Kendall's tau with "error" over episodes (one row each), and its 95% interval.

    None if the part or the error is the same for all episodes.
    """
    error = np.array([row["error"] for row in rows], dtype=np.float64)
    taus = {part: kendall_tau(np.array([row[part] for row in rows]), error) for part in PARTS}
    return {part: None if np.isnan(tau[0]) else tau for part, tau in taus.items()}
