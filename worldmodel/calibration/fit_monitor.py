"""Fit the monitor of a world model to nominal episodes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from worldmodel.calibration.features import FrameFeatures, signals
from worldmodel.episodes.episode import Episode
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.causes.classifier import CauseModel
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.validity import MonitorMetadata
from worldmodel.rollouts.open_loop import EpisodeRollouts

LOG = logging.getLogger(__name__)
CAUSE_EPISODES = 60
"""Maximum number of reference episodes for the cause classifier."""
CLIP_FRAMES = 8
"""Edited frames per episode."""
Rolled = tuple[Episode, EpisodeRollouts]
"""Episode and its rollouts."""


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


def fit_monitor(
    model: WorldModel,
    calibration: Sequence[Rolled],
    reference: Sequence[Rolled],
    *,
    config: MonitorConfig,
    metadata: MonitorMetadata | None = None,
) -> RuntimeMonitor:
    """Fit the monitor.

    Args:
        model: The world model.
        calibration: Held-out nominal episodes, which set the thresholds.
        reference: Reference episodes, none of which is in `calibration`. All rollouts have segments
            of `WATCH_HORIZON` frames from frame `WATCH_START` on.
        config: Alarm rates.
        metadata: Hash of the model and expiry date.
    """
    features = FrameFeatures(model)
    metadata = replace(
        metadata or MonitorMetadata(),
        action_spec=model.config.action_spec.as_dict(),
        cameras=model.config.cameras,
        data_hash=data_hash(episode for episode, _ in (*calibration, *reference)),
    )
    return RuntimeMonitor(config, features=features).fit(
        [signals(features, *rolled) for rolled in calibration],
        frame_shape=tuple(calibration[0][0].frames.shape[1:]),
        reference=[signals(features, *rolled) for rolled in reference],
        causes=fit_causes([episode.frames.numpy() for episode, _ in reference]),
        metadata=metadata,
        rate_hz=model.config.rate_hz,
    )
