"""Split of a store's episodes into training sets and held-out episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import Dataset as Episodes
from worldmodel.training.presets import Preset


@dataclass(frozen=True)
class Split:
    """Episode names per training set; no episode, nor a copy of one, is in two sets."""

    dynamics: tuple[str, ...]
    confidence: tuple[str, ...]
    untouched: tuple[str, ...]


def split_episodes(store: ClipStore, shares: tuple[float, float]) -> Split:
    """Split the episodes of a store, with a fixed seed.

    Episodes with the same actions are copies (some datasets repeat their training split as
    validation) and stay together. Each of the first two sets gets at least one episode.
    """
    copies: dict[bytes, list[str]] = {}
    for episode_id in store.episode_ids:
        copies.setdefault(store.episode(episode_id).actions.tobytes(), []).append(episode_id)
    groups = list(copies.values())
    if len(groups) < 2:
        raise ValueError(
            f"`data` needs at least 2 different episodes to train on, got {len(groups)} in "
            f"{store.path}; add episodes."
        )
    order = np.random.default_rng(0).permutation(len(groups))
    confidence = min(max(1, round(shares[1] * len(groups))), len(groups) - 1)
    dynamics = min(max(1, round(shares[0] * len(groups))), len(groups) - confidence)
    parts = [
        [name for i in part for name in groups[i]]
        for part in np.split(order, [dynamics, dynamics + confidence])
    ]
    return Split(*(tuple(part) for part in parts))


def check_lengths(data: Episodes, preset: Preset, split: Split) -> None:
    """Raise before training if all episodes of a stage are too short for it."""
    needed = {
        "tokenizer": (preset.pair_stride + 1, split.dynamics),
        "dynamics": (preset.clip_frames, split.dynamics),
        "confidence": (preset.horizon + preset.longest_start, split.confidence),
    }
    for stage, (num_frames, names) in needed.items():
        longest = max(data.summary(name).num_frames for name in names)
        if longest < num_frames:
            raise ValueError(
                f"Stage {stage!r} needs episodes of at least {num_frames} frames, but all "
                f"{len(names)} of its split from {data.path} are shorter (the longest has "
                f"{longest}); add longer episodes or choose a preset with shorter clips."
            )
