"""Scenes that several rooms' tests are made of; no PyTorch needed."""

from __future__ import annotations

import numpy as np


def paint_moving_square(frames: np.ndarray, actions: np.ndarray, start: np.ndarray) -> None:
    """Paint a bright 4x4 square that goes where the first two action columns send it.

    Args:
        frames: uint8 [time, side, side, 3], painted in place.
        actions: [time, 2 or more]; row t moves the square from frame t to the next, in pixels.
        start: Its upper left corner (y, x) in the first frame.
    """
    place, end = start, frames.shape[1] - 4
    for frame, action in zip(frames, actions, strict=True):
        y, x = place.astype(int)
        frame[y : y + 4, x : x + 4] = (250, 200, 30)
        place = np.clip(place + action[:2], 0, end)


def moving_square(num_frames: int, seed: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a bright square on grey, and the actions [time, 7] that move it."""
    random = np.random.default_rng(seed)
    actions = random.normal(0, 1, (num_frames, 7)).astype(np.float32)
    frames = np.full((num_frames, side, side, 3), 90, np.uint8)
    paint_moving_square(frames, actions, random.uniform(2, side - 6, 2))
    return frames, actions


def moving_square_on_noise(num_frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same on a grained background, 16x16; the last action is zero, for nothing follows it."""
    random = np.random.default_rng(seed)
    actions = random.normal(0, 1, (num_frames, 7)).astype(np.float32)
    actions[-1] = 0
    frames = random.integers(80, 100, (num_frames, 16, 16, 3)).astype(np.uint8)
    paint_moving_square(frames, actions, random.uniform(2, 10, 2))
    return frames, actions
