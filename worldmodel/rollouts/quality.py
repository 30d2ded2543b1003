"""How good imagined frames are, beside the last real frame and beside other episodes' actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from worldmodel.episodes.episode import Episode
from worldmodel.model import WorldModel
from worldmodel.rollouts.log import LoggedRollout
from worldmodel.rollouts.open_loop import START, EpisodeRollouts, roll_out

STEPS = (1, 5, 10, 16)
"""Frames ahead at which pictures are compared."""


@dataclass(frozen=True)
class QualityRow:
    """Mean PSNR in decibels over episodes, `step` frames after the last real one."""

    step: int
    num_episodes: int
    imagined: float
    copied: float
    """Of the last real frame, shown again."""
    shuffled: float
    """Of a rollout under another episode's actions."""
    gain: tuple[float, float, float]
    """Imagined minus copied: mean and 95% bootstrap interval over episodes."""
    loss_when_shuffled: tuple[float, float, float]
    """Imagined minus shuffled: mean and 95% bootstrap interval over episodes."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def psnr_per_frame(
    a: UInt8[Tensor, "batch height width 3"], b: UInt8[Tensor, "batch height width 3"]
) -> Float[np.ndarray, " batch"]:
    """Peak signal-to-noise ratio of each pair of images, in decibels."""
    mean_square = (a.float() - b.float()).square().mean((1, 2, 3)).clamp_min(1e-3)
    return (10 * torch.log10(255.0**2 / mean_square)).cpu().numpy().astype(np.float64)


def image_quality(
    model: WorldModel,
    episodes: Sequence[Episode],
    rollouts: Sequence[EpisodeRollouts],
    *,
    rng: np.random.Generator,
) -> list[QualityRow]:
    """Compare the first stretch of each rollout with the real frames of its first view.

    Args:
        model: decodes the rollouts and imagines the shuffled ones.
        episodes: the real ones, longer than the steps compared.
        rollouts: of those episodes, open loop from frame `START`.
        rng: draws the bootstrap.
    """
    batches = [episode.batch for episode in episodes]
    others = batches[1:] + batches[:1]
    swapped = [
        replace(own, actions=other.actions) for own, other in zip(batches, others, strict=True)
    ]
    shuffled = roll_out(model, swapped, horizon=max(STEPS))
    return [
        _row(step, psnr_at(model, episodes, rollouts, shuffled, step), rng)
        for step in STEPS
        if all(len(r.horizon) >= START + step for r in rollouts)
    ]


def psnr_at(
    model: WorldModel,
    episodes: Sequence[Episode],
    rollouts: Sequence[EpisodeRollouts],
    shuffled: Sequence[EpisodeRollouts],
    step: int,
) -> Float[np.ndarray, "3 episode"]:
    """PSNR of the imagined, the copied and the shuffled frame of each episode."""
    frame = START - 1 + step
    real = torch.stack([e.frames[frame, 0] for e in episodes])
    last = torch.stack([e.frames[START - 1, 0] for e in episodes])
    pictures = [
        model.decode(torch.stack([r.imagined[frame, 0] for r in source]))
        for source in (rollouts, shuffled)
    ]
    return np.stack([psnr_per_frame(p, real) for p in (pictures[0], last, pictures[1])])


def _row(step: int, psnr: Float[np.ndarray, "3 episode"], rng: np.random.Generator) -> QualityRow:
    def interval(values: Float[np.ndarray, " episode"]) -> tuple[float, float, float]:
        draws = rng.choice(values, (1000, len(values))).mean(1)
        low, high = np.quantile(draws, [0.025, 0.975])
        return float(values.mean()), float(low), float(high)

    imagined, copied, shuffled = psnr
    return QualityRow(
        step=step,
        num_episodes=psnr.shape[1],
        imagined=float(imagined.mean()),
        copied=float(copied.mean()),
        shuffled=float(shuffled.mean()),
        gain=interval(imagined - copied),
        loss_when_shuffled=interval(imagined - shuffled),
    )


def psnr_db(a: Float[Tensor, "*any"], b: Float[Tensor, "*any"]) -> float:
    """Peak signal-to-noise ratio of uint8 images, in decibels, from the pooled squared error."""
    mean_square = (a.float() - b.float()).square().mean()
    return float(10 * torch.log10(255.0**2 / mean_square.clamp_min(1e-8)))


RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class PsnrRow:
    """Peak signal-to-noise ratio at one horizon: means over episodes, in decibels."""

    num_episodes: int
    imagined_db: float
    copy_db: float
    """Of the last real frame, shown again."""
    gain_db: float
    gain_interval: tuple[float, float] | None
    """95% interval over redrawn episodes; None for a single one."""


def psnr_table(
    rollouts: Sequence[LoggedRollout], horizons: Sequence[int], *, seed: int = 0
) -> dict[int, PsnrRow]:
    """Horizon -> how close imagined frames came; horizons that no rollout reached are left out."""
    table = {}
    for horizon in horizons:
        pairs = [psnr_pair(r, horizon) for r in rollouts if horizon in r.horizon]
        if pairs:
            imagined, copy = np.array(pairs).T
            table[horizon] = PsnrRow(
                num_episodes=len(pairs),
                imagined_db=float(imagined.mean()),
                copy_db=float(copy.mean()),
                gain_db=float((imagined - copy).mean()),
                gain_interval=mean_interval(imagined - copy, seed=seed),
            )
    return table


def psnr_pair(rollout: LoggedRollout, horizon: int) -> tuple[float, float]:
    """Of the frames imagined so far ahead, and of the last real frame before each (dB)."""
    rows, view_mask = np.flatnonzero(rollout.horizon == horizon), rollout.view_valid
    seen = slice(None) if view_mask is None else view_mask[rows].numpy()
    pictures = (rollout.frames[rows], rollout.imagined[rows], rollout.frames[rows - horizon])
    real, imagined, last = (torch.from_numpy(p[seen]).float() for p in pictures)
    return psnr_db(imagined, real), psnr_db(last, real)


def mean_interval(
    values: Float64[np.ndarray, " episode"], *, seed: int
) -> tuple[float, float] | None:
    """95% bootstrap interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
