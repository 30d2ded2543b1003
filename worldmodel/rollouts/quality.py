"""PSNR of imagined frames against two baselines: copy last frame, and shuffled actions."""

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
from worldmodel.networks.images import psnr_db
from worldmodel.rollouts.log import LoggedRollout
from worldmodel.rollouts.open_loop import START, EpisodeRollouts, roll_out
from worldmodel.rollouts.picture_kinds import COMPOSED
from worldmodel.rollouts.pictures import pictures

STEPS = (1, 5, 10, 16)
"""Horizons, in frames, of the comparison."""
RESAMPLES = 1000
"""Bootstrap resamples of an interval."""


@dataclass(frozen=True)
class QualityRow:
    """Mean PSNR over episodes in decibels, `step` frames after the last real one."""

    step: int
    num_episodes: int
    imagined: float
    copied: float
    """Baseline: the last real frame, repeated."""
    shuffled: float
    """Baseline: a rollout under the actions of another episode."""
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
    """PSNR of each pair of images, in decibels."""
    return psnr_db(a.cpu(), b.cpu(), dim=(1, 2, 3), floor=1e-3).numpy().astype(np.float64)


def bootstrap_interval(
    values: Float64[np.ndarray, " episode"], rng: np.random.Generator
) -> tuple[float, float]:
    """95% bootstrap interval of the mean over episodes; a single one is refused."""
    if len(values) < 2:
        raise ValueError(f"`values` must hold at least 2 episodes, got {len(values)}.")
    # `scipy.stats.bootstrap` draws the same resamples but rounds the ends differently.
    resamples = values[rng.integers(len(values), size=(RESAMPLES, len(values)))]
    low, high = np.quantile(resamples.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def image_quality(
    model: WorldModel,
    episodes: Sequence[Episode],
    rollouts: Sequence[EpisodeRollouts],
    *,
    rng: np.random.Generator,
    kind: str = COMPOSED,
) -> list[QualityRow]:
    """Compare the first segment of each rollout with the real frames of the first camera.

    Args:
        model: Shows the rollouts, and imagines those under shuffled actions.
        episodes: Recorded episodes. Steps that any of them is too short for are left out.
        rollouts: Open-loop rollouts of these episodes from frame `START`.
        rng: Draws the bootstrap resamples.
        kind: Kind of picture, see `pictures`.
    """
    batches = [episode.batch for episode in episodes]
    others = batches[1:] + batches[:1]
    swapped = [
        replace(batch, actions=other.actions) for batch, other in zip(batches, others, strict=True)
    ]
    shuffled = roll_out(model, swapped, horizon=max(STEPS))
    return [
        _row(step, psnr_at(model, episodes, (rollouts, shuffled), step, kind), rng)
        for step in STEPS
        if all(len(r.horizon) >= START + step for r in rollouts)
    ]


def psnr_at(
    model: WorldModel,
    episodes: Sequence[Episode],
    imagined_and_shuffled: tuple[Sequence[EpisodeRollouts], Sequence[EpisodeRollouts]],
    step: int,
    kind: str,
) -> Float[np.ndarray, "3 episode"]:
    """PSNR of each episode's imagined, copied and shuffled frame (rows), in decibels."""
    frame = START - 1 + step
    real = torch.stack([e.frames[frame, 0] for e in episodes])
    last = torch.stack([e.frames[START - 1, 0] for e in episodes])
    rows = np.array([frame])
    imagined, swapped = (
        torch.cat([
            pictures(model, episode.frames, rollout, rows=rows, kind=kind)[:, 0]
            for episode, rollout in zip(episodes, source, strict=True)
        ])
        for source in imagined_and_shuffled
    )  # fmt: skip
    return np.stack([psnr_per_frame(images, real) for images in (imagined, last, swapped)])


def _row(step: int, psnr: Float[np.ndarray, "3 episode"], rng: np.random.Generator) -> QualityRow:
    def mean(values: Float64[np.ndarray, " episode"]) -> tuple[float, float, float]:
        return float(values.mean()), *bootstrap_interval(values, rng)

    imagined, copied, shuffled = psnr
    return QualityRow(
        step=step,
        num_episodes=psnr.shape[1],
        imagined=float(imagined.mean()),
        copied=float(copied.mean()),
        shuffled=float(shuffled.mean()),
        gain=mean(imagined - copied),
        loss_when_shuffled=mean(imagined - shuffled),
    )


@dataclass(frozen=True, kw_only=True)
class CopyGain:
    """PSNR of imagined frames minus that of the last real frame, in decibels, over episodes.

    It stands beside every calibration error: confidence can be calibrated in pictures that are
    worse than a copy.
    """

    num_episodes: int
    gain_db: float
    interval: tuple[float, float] | None
    """95% bootstrap interval over episodes; None for a single one."""

    @classmethod
    def of(cls, gains: Float64[np.ndarray, " episode"], *, seed: int = 0) -> CopyGain:
        """Mean and interval of the gains of episodes; `seed` draws the bootstrap resamples."""
        rng = np.random.default_rng(seed)
        interval = bootstrap_interval(gains, rng) if len(gains) > 1 else None
        return cls(num_episodes=len(gains), gain_db=float(gains.mean()), interval=interval)


@torch.inference_mode()
def copy_gains(
    model: WorldModel,
    episodes: Sequence[Episode],
    rollouts: Sequence[EpisodeRollouts],
    horizons: Sequence[int],
    kind: str = COMPOSED,
) -> Float64[np.ndarray, " episode"]:
    """Mean gain of each episode over its views and frames at `horizons`, in decibels.

    `kind` is that of the pictures, see `pictures`. Episodes that reach none of them are left out.
    """
    gains = []
    for episode, rollout in zip(episodes, rollouts, strict=True):
        rows = np.flatnonzero(np.isin(rollout.horizon, horizons))
        if not len(rows):
            continue
        imagined = pictures(model, episode.frames, rollout, rows=rows, kind=kind)
        real, last = episode.frames[rows], episode.frames[rows - rollout.horizon[rows]]
        valid = slice(None) if rollout.view_valid is None else rollout.view_valid[rows]
        gain = psnr_per_frame(imagined[valid].flatten(0, -4), real[valid].flatten(0, -4))
        gain -= psnr_per_frame(last[valid].flatten(0, -4), real[valid].flatten(0, -4))
        gains.append(gain.mean())
    return np.array(gains, dtype=np.float64)


def copy_gain_table(
    model: WorldModel,
    episodes: Sequence[Episode],
    rollouts: Sequence[EpisodeRollouts],
    horizons: Sequence[int],
    kind: str = COMPOSED,
) -> dict[int, CopyGain]:
    """Horizon -> gain over copying the last frame; each must be reached by an episode."""
    return {h: CopyGain.of(copy_gains(model, episodes, rollouts, (h,), kind)) for h in horizons}


@dataclass(frozen=True, kw_only=True)
class PsnrRow:
    """PSNR at one horizon: means over episodes, in decibels."""

    num_episodes: int
    imagined_db: float
    copy_db: float
    """Baseline: the last real frame, repeated."""
    gain_db: float
    gain_interval: tuple[float, float] | None
    """95% bootstrap interval over episodes; None for a single episode."""

    @property
    def gain(self) -> CopyGain:
        """Gain over the copy."""
        return CopyGain(
            num_episodes=self.num_episodes, gain_db=self.gain_db, interval=self.gain_interval
        )


def psnr_table(
    rollouts: Sequence[LoggedRollout], horizons: Sequence[int], *, seed: int = 0
) -> dict[int, PsnrRow]:
    """Horizon -> PSNR of imagined frames; horizons that no rollout reaches are left out.

    `seed` draws the bootstrap resamples.
    """
    table = {}
    for horizon in horizons:
        pairs = [psnr_pair(r, horizon) for r in rollouts if horizon in r.horizon]
        if pairs:
            imagined, copy = np.array(pairs).T
            gain, rng = imagined - copy, np.random.default_rng(seed)
            table[horizon] = PsnrRow(
                num_episodes=len(pairs),
                imagined_db=float(imagined.mean()),
                copy_db=float(copy.mean()),
                gain_db=float(gain.mean()),
                gain_interval=bootstrap_interval(gain, rng) if len(pairs) > 1 else None,
            )
    return table


def psnr_pair(rollout: LoggedRollout, horizon: int) -> tuple[float, float]:
    """PSNR (dB) of all frames imagined at `horizon`, and of the last real frame before each."""
    rows, view_mask = np.flatnonzero(rollout.horizon == horizon), rollout.view_valid
    valid = slice(None) if view_mask is None else view_mask[rows].numpy()
    images = (rollout.frames[rows], rollout.imagined[rows], rollout.frames[rows - horizon])
    real, imagined, last = (torch.from_numpy(i[valid]) for i in images)
    return psnr_db(imagined, real).item(), psnr_db(last, real).item()
