"""What a training run uses of its data, and what it leaves out, in a few sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import Dataset as Episodes
from worldmodel.episodes.clips import success_per_frame
from worldmodel.training.presets import Preset
from worldmodel.training.splits import Split

MOST_NAMED = 5
"""Episodes that a sentence names one by one."""


def data_report(
    store: ClipStore, data: Episodes, preset: Preset, split: Split, cameras: Sequence[str]
) -> list[str]:
    """Sentences on the data of a run.

    Args:
        store: The clip store.
        data: Its episodes at the model's rate.
        preset: The resolved preset.
        split: Training sets of the run.
        cameras: Cameras of the model.
    """
    lengths = {name: data.summary(name).num_frames for name in data.episode_ids}
    return [
        f"Data: {count(len(lengths), 'episode')}, {sum(lengths.values()):,} frames at "
        f"{store.rate_hz / preset.frame_stride:g} Hz; tokenizer and dynamics learn from "
        f"{len(split.dynamics)} of the episodes, the confidence head from {len(split.confidence)}, "
        f"and {len(split.untouched)} are kept for calibration.",
        f"Cameras: {', '.join(cameras)}.",
        *left_out(store, lengths, preset, split, cameras),
    ]


def left_out(
    store: ClipStore,
    lengths: dict[str, int],
    preset: Preset,
    split: Split,
    cameras: Sequence[str],
) -> Iterator[str]:
    """Sentences on cameras, frames, episodes and labels that the run does not use."""
    if others := [camera for camera in store.cameras if camera not in cameras]:
        yield (
            f"Left out: {count(len(others), 'camera')} ({', '.join(others)}); `--cameras` chooses."
        )
    if preset.frame_stride > 1:
        yield f"Left out: all but every {ordinal(preset.frame_stride)} frame (`frame_stride`)."
    needed = {
        "the dynamics": (split.dynamics, 2 if preset.image_share else preset.clip_frames),
        "the confidence head": (split.confidence, preset.horizon + preset.longest_start),
    }
    for part, (names, frames) in needed.items():
        if short := [name for name in names if lengths[name] < frames]:
            yield (
                f"Left out: {len(short)} of {len(names)} episodes of {part}, shorter than {frames} "
                f"frames ({listed(short)})."
            )
    yield from unlabelled(store, split.dynamics)


def unlabelled(store: ClipStore, names: Sequence[str]) -> Iterator[str]:
    """Sentence on training episodes without a known outcome, if there are any."""
    missing = [name for name in names if np.isnan(success_per_frame(store.episode(name))[-1])]
    if len(missing) == len(names):
        yield "Left out: the success classifiers, as no training episode has a known outcome."
    elif missing:
        yield (
            f"Left out of the success classifiers: {len(missing)} of {len(names)} training "
            f"episodes, whose outcome is unknown ({listed(missing)})."
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"


def count(number: int, noun: str) -> str:
    """Number and noun.

    >>> count(1, "camera"), count(2, "camera")
    ('1 camera', '2 cameras')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def ordinal(number: int) -> str:
    """Ordinal numeral.

    >>> [ordinal(n) for n in (2, 3, 4, 11, 22)]
    ['2nd', '3rd', '4th', '11th', '22nd']
    """
    ends = {1: "st", 2: "nd", 3: "rd"}
    is_teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if is_teen else ends.get(number % 10, 'th')}"
