"""Training stage of the compositor: rollouts in memory, nominal and corrupted, then the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from worldmodel.episodes.corruptions import corrupt
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel
from worldmodel.networks.compositor import Compositor
from worldmodel.training.picture_stages.compositor_objective import (
    CompositorObjective,
    PictureBatch,
    PictureClips,
    imagined_views,
)
from worldmodel.training.run import Run

MAX_EPISODES = 128
"""Episodes of the training data; more would fill the memory with frames."""
ROLLOUTS = 2
"""Rollouts of each episode, and of each corrupted copy."""
MAX_HORIZON = 16
"""Longest distance from the last real frame, in frames, if half of the episodes are long enough."""


def train_compositor(run: Run, model: WorldModel) -> bool:
    """Train the compositor on rollouts over episodes that the dynamics never saw.

    If there are fewer than `MAX_EPISODES`, it learns from those that the dynamics saw, too.
    """
    preset = run.preset
    names = (*run.split.confidence, *run.split.dynamics)[:MAX_EPISODES]
    model.set_compositor(None)
    nominal = rollouts_of(run, model, names, is_corrupted=False)
    corrupted: list[PictureBatch] = []
    for _ in range(preset.corrupted_copies):
        corrupted += rollouts_of(run, model, names, is_corrupted=True, seed=len(corrupted))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.compositor_loop.seed)
        compositor = Compositor(model.tokenizer.channels, preset.compositor)
    objective = CompositorObjective(compositor, model.tokenizer)
    run.fit(objective, PictureClips(nominal, corrupted), preset.compositor_loop, name="compositor")
    model.set_compositor(compositor)
    return True


def rollouts_of(
    run: Run, model: WorldModel, names: Sequence[str], *, is_corrupted: bool, seed: int = 0
) -> list[PictureBatch]:
    """`ROLLOUTS` rollouts of each named episode that is long enough, or of a corrupted copy."""
    preset, horizon = run.preset, horizon_of(run, names)
    found: list[PictureBatch] = []
    for number, name in enumerate(names):
        run.stop.check("while pictures for the compositor were imagined")
        rng = np.random.default_rng([preset.compositor_loop.seed, is_corrupted, seed, number])
        episode = load_episode(model, run.store.episode(name), model.config.cameras)
        if is_corrupted:
            episode = corrupted_copy(model, episode, rng)
        for _ in range(ROLLOUTS):
            found += imagined_views(
                model, episode.batch, episode.frames, rng=rng,
                horizon=horizon, longest_start=preset.longest_start,
            )  # fmt: skip
    return found


def horizon_of(run: Run, names: Sequence[str]) -> int:
    """Length of the rollouts, in frames: at least half of the episodes are long enough for it."""
    lengths = sorted(run.data.summary(name).num_frames for name in names)
    return max(1, min(MAX_HORIZON, lengths[len(lengths) // 2] - run.preset.longest_start))


def corrupted_copy(model: WorldModel, episode: Episode, rng: np.random.Generator) -> Episode:
    """Episode with corrupted frames and their latents."""
    frames, view_mask = corrupt(episode.frames, rng), episode.batch.view_valid
    latents = model.encode(frames, view_valid=None if view_mask is None else view_mask[0])
    stored = latents[None].half().cpu().clone()
    return replace(episode, frames=frames, batch=replace(episode.batch, latents=stored))
