"""Episodes for training, calibration and evaluation of the benchmark, rolled out once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
"""Shifts of appearance that leave the physics unchanged."""
POOLED_VISUAL = "visual shifts"
PARTS = ("learn", "calibrate")
"""Nominal episodes for training heads, and for recalibration."""


@dataclass(frozen=True, kw_only=True)
class TabletopSize:
    """Number of simulated episodes."""

    learn: int
    """Training episodes, and as many for recalibration."""
    nominal: int
    shifted: int
    """Episodes per factor and severity."""


@dataclass(frozen=True)
class RolledEpisodes:
    """Episodes of one group and their rollouts with features."""

    episodes: Sequence[Episode]
    rollouts: Sequence[EpisodeRollouts]

    def joined(self, other: RolledEpisodes) -> RolledEpisodes:
        """Concatenate two groups."""
        return RolledEpisodes([*self.episodes, *other.episodes], [*self.rollouts, *other.rollouts])


@dataclass(frozen=True)
class BenchmarkData:
    """Data shared by all compared methods."""

    learn: Callable[[], Mapping[str, FeatureBank]]
    """Makes `banks` at first use."""
    calibrate: RolledEpisodes
    """Calibration set: nominal episodes that neither the model nor a head was trained on."""
    corrupt: Callable[[], RolledEpisodes]
    """Makes `corrupted` at first use."""
    groups: Mapping[str, RolledEpisodes]
    """Group -> evaluation episodes."""
    seconds_per_frame: float
    """CPU seconds per imagined frame, in batches, without confidence."""

    @cached_property
    def banks(self) -> Mapping[str, FeatureBank]:
        """Training data of heads: "velocity", "one_step", "rollout" and "corrupted"."""
        return self.learn()

    @cached_property
    def corrupted(self) -> RolledEpisodes:
        """Copies of calibration episodes with corrupted frames."""
        return self.corrupt()


def imagined(model: WorldModel, episodes: Sequence[Episode], *, seed: int) -> RolledEpisodes:
    """Roll out episodes and keep features."""
    batches = [episode.batch for episode in episodes]
    return RolledEpisodes(episodes, roll_out(model, batches, seed=seed, keep_features=True))


def corrupted(
    model: WorldModel, episodes: Sequence[Episode], rng: np.random.Generator
) -> list[Episode]:
    """Copy episodes and corrupt their frames."""
    copies = []
    for episode in episodes:
        frames = corrupt(episode.frames, rng)
        view_mask = episode.batch.view_valid
        first_mask = None if view_mask is None else view_mask[0]
        latents = model.encode(frames, view_valid=first_mask)[None].half()
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
    """Training data of heads: every event, and the deployed event on corrupted copies."""
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
    """Simulate tabletop episodes; "learn" and "calibrate" have other seeds than evaluation.

    They are kept in `folder` as clip stores; existing ones are reused.
    """
    plan: dict[Key, tuple[Collection, int]] = {}
    for number, part in enumerate(PARTS, 1):
        plan[part, 0] = Collection(renderer="ray", seed=seed + number), size.learn
    base = Collection(renderer="ray", seed=seed)
    plan[NOMINAL, 0] = base, size.nominal
    for factor, severity in product(SHIFTS, SEVERITIES):
        plan[factor, severity] = replace(base, factor=factor, severity=severity), size.shifted
    episodes = {}
    for key, (scene, number) in tqdm(plan.items(), "simulate", unit="kind"):
        path = folder / "{}-{}.zarr".format(*key)
        store = collect(path, scene, episodes=number, workers=workers)
        episodes[key] = load_named(model, store, store.episode_ids[:number])
    return episodes


def seconds_per_frame(model: WorldModel, episodes: Sequence[Episode]) -> float:
    """CPU seconds per imagined frame, in one batch of up to 32, without confidence."""
    length = min(episode.batch.latents.shape[1] for episode in episodes)
    batch = collate_latents([episode.batch.cut(length) for episode in episodes[:32]])
    start = 4 if length > 4 else 1
    started = time.process_time()
    frames = model.imagine(
        batch.latents[:, :start].float(), batch.actions[:, :-1],
        action_valid=batch.action_valid[:, :-1], epsilon=(),
    ).latents  # fmt: skip
    return (time.process_time() - started) / (frames.shape[0] * frames.shape[1])


def tabletop_data(
    model: WorldModel, size: TabletopSize, folder: Path, *, seed: int, workers: int
) -> BenchmarkData:
    """Simulate and roll out the data of the tabletop benchmark."""
    by_key = simulated(model, size, folder, seed=seed, workers=workers)
    groups: dict[str, RolledEpisodes] = {}
    for number, (key, episodes) in enumerate(by_key.items()):
        if key[0] in PARTS:
            continue
        rolled = imagined(model, episodes, seed=seed + 10_000 * number)
        groups[key[0]] = groups[key[0]].joined(rolled) if key[0] in groups else rolled
    calibrate = by_key[PARTS[1], 0]
    learn = partial(
        make_banks, model, by_key[PARTS[0], 0], passes=3, horizon=model.config.trained_horizon,
        seed=seed,
    )  # fmt: skip

    def corrupt_episodes() -> RolledEpisodes:
        changed = corrupted(model, calibrate, np.random.default_rng(seed))
        return imagined(model, changed, seed=seed)

    return BenchmarkData(
        learn=learn,
        calibrate=imagined(model, calibrate, seed=seed),
        corrupt=corrupt_episodes,
        groups=groups,
        seconds_per_frame=seconds_per_frame(model, calibrate),
    )
