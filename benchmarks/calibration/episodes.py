"""Episodes that a benchmark of confidence learns from and is judged on, imagined once for all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.calibration.feature_bank import FeatureBank, rollout_bank, velocity_bank
from worldmodel.envs.collect import Collection, collect
from worldmodel.envs.factors import SEVERITIES, SHIFTS
from worldmodel.episodes.clips import collate_latents
from worldmodel.episodes.corruptions import corrupt
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.load import load_named
from worldmodel.evaluation.simulate import Key
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import EpisodeRollouts, roll_out

NOMINAL = "nominal"
POOLED = "all shifts"
VISUAL = tuple(name for name in SHIFTS if name != "object")
"""Shifts of what a scene looks like, its physics untouched."""
POOLED_VISUAL = "visual shifts"
PARTS = ("learn", "calibrate")
"""Episodes that heads learn from, and those that recalibrate; both nominal."""


@dataclass(frozen=True, kw_only=True)
class TabletopSize:
    """How many episodes are simulated."""

    learn: int
    """To learn from, and as many to recalibrate on."""
    nominal: int
    shifted: int
    """Per factor and severity."""


@dataclass(frozen=True)
class RolledEpisodes:
    """Episodes of one kind and what the model imagined of them, features kept."""

    episodes: Sequence[Episode]
    rollouts: Sequence[EpisodeRollouts]

    def joined(self, other: RolledEpisodes) -> RolledEpisodes:
        """The episodes of both."""
        return RolledEpisodes([*self.episodes, *other.episodes], [*self.rollouts, *other.rollouts])


@dataclass(frozen=True)
class BenchmarkData:
    """Everything the compared ways to state confidence have in common."""

    banks: Mapping[str, FeatureBank]
    """"velocity", "one_step", "rollout" and "corrupted": what heads learn from."""
    calibrate: RolledEpisodes
    """Nominal episodes that neither the model nor a head learned from."""
    corrupted: RolledEpisodes
    """Copies of some of them with corrupted frames."""
    groups: Mapping[str, RolledEpisodes]
    """Kind -> episodes everything is judged on."""
    seconds_per_frame: float
    """CPU seconds to imagine a frame, confidence left out, in batches."""


def imagined(model: WorldModel, episodes: Sequence[Episode], *, seed: int) -> RolledEpisodes:
    """Roll episodes out, features kept."""
    batches = [episode.batch for episode in episodes]
    return RolledEpisodes(episodes, roll_out(model, batches, seed=seed, keep_features=True))


def corrupted(
    model: WorldModel, episodes: Sequence[Episode], rng: np.random.Generator
) -> list[Episode]:
    """The same episodes with corrupted frames."""
    copies = []
    for episode in episodes:
        frames = corrupt(episode.frames, rng)
        view_mask = episode.batch.view_valid
        latents = model.encode(frames, view_valid=None if view_mask is None else view_mask[0])[
            None
        ].half()
        batch = replace(episode.batch, latents=latents)
        copies.append(replace(episode, frames=frames, batch=batch))
    return copies


def make_banks(
    model: WorldModel,
    episodes: Sequence[Episode],
    *,
    passes: int,
    horizon: int,
    seed: int,
    copies: bool = True,
) -> dict[str, FeatureBank]:
    """What heads learn from: every event, and the deployed one on corrupted copies."""
    rng = np.random.default_rng(seed)
    batches = [episode.batch for episode in episodes]
    rolled = rollout_bank(model, batches, passes=passes, horizon=horizon, rng=rng)
    banks = {
        "velocity": velocity_bank(model, batches, passes=passes, seed=seed),
        "one_step": rolled.of_horizon(1),
        "rollout": rolled,
    }
    if copies:
        changed = [episode.batch for episode in corrupted(model, episodes, rng)]
        banks["corrupted"] = rollout_bank(model, changed, passes=passes, horizon=horizon, rng=rng)
    return banks


def simulated(
    model: WorldModel, size: TabletopSize, folder: Path, *, seed: int, workers: int
) -> dict[Key, list[Episode]]:
    """Tabletop episodes: "learn" and "calibrate" of other seeds than those judged on.

    They are kept in `folder`, as clip stores; those that are there already are not made again.
    """
    plan: dict[Key, tuple[Collection, int]] = {}
    for number, part in enumerate(PARTS, 1):
        plan[part, 0] = Collection(renderer="ray", seed=seed + number), size.learn
    base = Collection(renderer="ray", seed=seed)
    plan[NOMINAL, 0] = base, size.nominal
    for factor, severity in product(SHIFTS, SEVERITIES):
        plan[factor, severity] = replace(base, factor=factor, severity=severity), size.shifted
    made = {}
    for key, (scene, number) in tqdm(plan.items(), "simulate", unit="kind"):
        path = folder / "{}-{}.zarr".format(*key)
        store = collect(path, scene, episodes=number, workers=workers)
        made[key] = load_named(model, store, store.episode_ids[:number])
    return made


def seconds_per_frame(model: WorldModel, episodes: Sequence[Episode]) -> float:
    """CPU seconds to imagine a frame, in one batch of up to 32, with no confidence asked for."""
    length = min(episode.batch.latents.shape[1] for episode in episodes)
    batch = collate_latents([episode.batch.cut(length) for episode in episodes[:32]])
    start = 4 if length > 4 else 1
    began = time.process_time()
    frames = model.imagine(
        batch.latents[:, :start].float(), batch.actions[:, :-1],
        action_valid=batch.action_valid[:, :-1], epsilon=(),
    ).latents  # fmt: skip
    return (time.process_time() - began) / (frames.shape[0] * frames.shape[1])


def tabletop_data(
    model: WorldModel, size: TabletopSize, folder: Path, *, seed: int, workers: int
) -> BenchmarkData:
    """Simulate and imagine everything that ways to state confidence are compared on."""
    made = simulated(model, size, folder, seed=seed, workers=workers)
    groups: dict[str, RolledEpisodes] = {}
    for number, (key, episodes) in enumerate(made.items()):
        if key[0] in PARTS:
            continue
        rolled = imagined(model, episodes, seed=seed + 10_000 * number)
        groups[key[0]] = groups[key[0]].joined(rolled) if key[0] in groups else rolled
    calibrate = made[PARTS[1], 0]
    changed = corrupted(model, calibrate, np.random.default_rng(seed))
    return BenchmarkData(
        banks=make_banks(
            model, made[PARTS[0], 0], passes=3, horizon=model.config.trained_horizon, seed=seed
        ),
        calibrate=imagined(model, calibrate, seed=seed),
        corrupted=imagined(model, changed, seed=seed),
        groups=groups,
        seconds_per_frame=seconds_per_frame(model, calibrate),
    )
