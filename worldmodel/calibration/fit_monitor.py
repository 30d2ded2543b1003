"""Fit the monitor of a world model to nominal episodes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from worldmodel.calibration.calibrated import WATCH_START
from worldmodel.calibration.features import FrameFeatures, signals
from worldmodel.episodes.episode import Episode
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import LEAST_SCALED, DisturbedEpisodes, MonitorConfig
from worldmodel.monitors.causes.classifier import CauseModel
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.guarantees.episode_threshold import episodes_needed
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.nuisances import Nuisance
from worldmodel.monitors.validity import MonitorMetadata
from worldmodel.rollouts.open_loop import roll_out, roll_out_all

LOG = logging.getLogger(__name__)
CAUSE_EPISODES = 60
"""Maximum number of reference episodes for the cause classifier."""
CLIP_FRAMES = 8
"""Edited frames per episode."""
COPIED_REFERENCE = 40
"""Maximum number of reference episodes copied under each nuisance."""
AT_ONCE = 16
"""Copies that are encoded and imagined at once."""


def data_hash(episodes: Iterable[Episode]) -> str:
    """Hash of episodes in order, 16 hex digits: ids, frames at the model's size, and actions."""
    digest = hashlib.sha256()
    for episode in episodes:
        batch = episode.batch
        digest.update(json.dumps([episode.name, list(episode.frames.shape)]).encode())
        for part in (episode.frames, batch.actions, batch.action_valid):
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def fit_causes(
    videos: Sequence[UInt8[np.ndarray, "_ view height width 3"]],
) -> CauseModel | None:
    """Fit the cause classifier to edited reference episodes.

    None if there are too few, or if they are too short or too similar; appearance alarms then have
    the cause "appearance".
    """
    from worldmodel.monitors.causes.edits import edited_episodes

    chosen = np.linspace(0, len(videos) - 1, min(len(videos), CAUSE_EPISODES)).round().astype(int)
    nominal = [videos[i] for i in chosen]
    try:
        return CauseModel().fit(nominal, edited_episodes(nominal, clip_frames=CLIP_FRAMES, seed=0))
    except ValueError as error:
        LOG.warning("note: no cause classifier for appearance alarms: %s", error)
        return None


def batched(episodes: Iterable[Episode], size: int) -> Iterator[list[Episode]]:
    """Lists of up to `size` episodes (`itertools.batched` needs Python 3.12)."""
    rest = iter(episodes)
    while batch := list(islice(rest, size)):
        yield batch


def disturbed_copy(
    model: WorldModel, episode: Episode, nuisance: Nuisance, *, seed: int
) -> Episode:
    """Copy of an episode whose frames, at the model's size, a nuisance has changed."""
    frames = torch.from_numpy(nuisance(episode.frames.numpy(), seed=seed))
    mask = None if episode.batch.view_valid is None else episode.batch.view_valid[0]
    latents = model.encode(frames, view_valid=mask)[None].half().cpu().clone()
    return replace(episode, frames=frames, batch=replace(episode.batch, latents=latents))


def copied_features(
    model: WorldModel, episode: Episode, nuisance: Nuisance, *, seed: int
) -> EpisodeSignals:
    """Features alone of a copy of an episode whose frames a nuisance has changed."""
    frames = torch.from_numpy(nuisance(episode.frames.numpy(), seed=seed))
    pooled, positions = FrameFeatures(model).of_episode(frames)
    return EpisodeSignals(pooled=pooled, positions=positions)


def watch_signals(
    model: WorldModel, episodes: Iterable[Episode], *, horizon: int
) -> Iterator[EpisodeSignals]:
    """Inputs of the monitor's channels, a few episodes at a time."""
    features = FrameFeatures(model)
    for batch in batched(episodes, AT_ONCE):
        given = [replace(e.batch, states=None) for e in batch]  # as live: without states
        rollouts = roll_out(model, given, start=WATCH_START, horizon=horizon)
        yield from (signals(features, *rolled) for rolled in zip(batch, rollouts, strict=True))


def disturbed_episodes(
    model: WorldModel,
    calibration: Sequence[Episode],
    reference: Sequence[Episode],
    nuisances: Sequence[Nuisance],
    *,
    config: MonitorConfig,
    horizon: int,
) -> list[DisturbedEpisodes]:
    """Copies of as many episodes under each nuisance as the alarm rates of `config` need.

    They are made when they are read, one nuisance after the other.

    Args:
        model: The world model.
        calibration: Calibration episodes.
        reference: Reference episodes; their copies have all signals only if the calibration
            episodes are few, else features alone.
        nuisances: The declared nuisances.
        config: Alarm rates.
        horizon: Frames per rollout segment.
    """
    needed = episodes_needed(config.alpha_stop, config.delta)
    enough = 3 * max(LEAST_SCALED, -(-needed // 2))
    few = len(calibration) < enough
    familiar = drawn(len(reference), COPIED_REFERENCE)
    copied = drawn(len(calibration), needed)
    if not few:  # of three in a row, the first sets scales, the others thresholds
        copied = [3 * i + j for i in drawn(len(calibration) // 3, enough // 3) for j in range(3)]

    def copies(
        episodes: Sequence[Episode], indices: Sequence[int], nuisance: Nuisance
    ) -> Iterator[tuple[int, EpisodeSignals]]:
        bar = tqdm(indices, nuisance.name, unit="episode")
        changed = (disturbed_copy(model, episodes[i], nuisance, seed=i) for i in bar)
        yield from zip(indices, watch_signals(model, changed, horizon=horizon), strict=True)

    return [
        DisturbedEpisodes(
            nuisance,
            copies(calibration, copied, nuisance),
            dict(copies(reference, familiar, nuisance))
            if few
            else {i: copied_features(model, reference[i], nuisance, seed=i) for i in familiar},
        )
        for nuisance in nuisances
    ]


def drawn(length: int, count: int) -> list[int]:
    """At most `count` of `length` indices, drawn at random but always the same ones."""
    return sorted(np.random.default_rng(0).permutation(length)[:count].tolist())


def fit_monitor(
    model: WorldModel,
    calibration: Sequence[Episode],
    reference: Sequence[Episode],
    *,
    horizon: int,
    config: MonitorConfig,
    nuisances: Sequence[Nuisance] = (),
    metadata: MonitorMetadata | None = None,
) -> RuntimeMonitor:
    """Fit the monitor.

    Args:
        model: The world model.
        calibration: Held-out nominal episodes, which set the thresholds.
        reference: Reference episodes, none of which is in `calibration`.
        horizon: Frames per rollout segment.
        config: Alarm rates.
        nuisances: Changes of the picture under each of which the alarm rates shall hold, too.
        metadata: Hash of the model and expiry date.
    """
    features = FrameFeatures(model)
    metadata = replace(
        metadata or MonitorMetadata(),
        action_spec=model.config.action_spec.as_dict(),
        cameras=model.config.cameras,
        data_hash=data_hash((*calibration, *reference)),
    )

    def rolled_out(episodes: Sequence[Episode]) -> list[EpisodeSignals]:
        rollouts = roll_out_all(
            model, episodes, start=WATCH_START, horizon=horizon, with_states=False
        )
        return [signals(features, *rolled) for rolled in zip(episodes, rollouts, strict=True)]

    return RuntimeMonitor(config, features=features).fit(
        rolled_out(calibration),
        frame_shape=tuple(calibration[0].frames.shape[1:]),
        reference=rolled_out(reference),
        disturbed=disturbed_episodes(
            model, calibration, reference, nuisances, config=config, horizon=horizon
        ),
        causes=fit_causes([episode.frames.numpy() for episode in reference]),
        metadata=metadata,
        rate_hz=model.config.rate_hz,
    )
