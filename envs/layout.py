"""Start positions of an episode, sampled independently of its appearance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmodel.envs.factors import RGB, as_rgb

OBJECT_AREA = np.array([[0.2, -0.13], [0.34, 0.13]])
"""Lowest and highest x, y of the object's start position, in metres."""
ZONE_AREA = np.array([[0.22, -0.15], [0.34, 0.15]])
DISTRACTOR_AREA = np.array([[0.12, -0.24], [0.46, 0.24]])
START_AREA = np.array([[0.21, -0.03, 0.15], [0.27, 0.03, 0.19]])
"""Lowest and highest start position of the gripper, in metres."""
ZONE_DISTANCE = 0.12
"""Smallest distance (m) between object and zone."""
TRAIN_POOL = 3
"""Number of distractor shapes in the training pool."""
TRAIN_RGBS: tuple[RGB, ...] = ((0.2, 0.3, 0.8), (0.9, 0.8, 0.2))
ATTEMPTS = 80


@dataclass(frozen=True)
class Layout:
    """Start positions in metres, base frame; the yaw in radians."""

    object: Float[np.ndarray, " 2"]
    object_yaw: float
    zone: Float[np.ndarray, " 2"]
    gripper: Float[np.ndarray, " 3"]


@dataclass(frozen=True)
class Distractor:
    """Static object that is not part of the task."""

    index: int
    """Index in `scene.DISTRACTORS`."""
    position: Float[np.ndarray, " 2"]
    rgb: RGB


def draw_layout(rng: np.random.Generator) -> Layout:
    """Sample object and zone at least `ZONE_DISTANCE` apart, and the gripper above the table."""
    while True:
        start, zone = rng.uniform(*OBJECT_AREA), rng.uniform(*ZONE_AREA)
        if np.linalg.norm(start - zone) > ZONE_DISTANCE:
            break
    yaw = rng.uniform(-np.pi / 4, np.pi / 4)
    return Layout(start, yaw, zone, rng.uniform(*START_AREA))


def draw_distractors(
    count: int, pool: str, layout: Layout, rng: np.random.Generator
) -> list[Distractor]:
    """Sample up to `count` distractors, away from object, zone and the path between them."""
    novel = pool == "novel"
    order = rng.permutation(8 if novel else TRAIN_POOL)
    distractors: list[Distractor] = []
    for index in order[:count]:
        color = rng.uniform(0, 1, 3) if novel else rng.choice(TRAIN_RGBS)
        position = free_position(layout, [d.position for d in distractors], rng)
        if position is not None:
            distractors.append(Distractor(int(index), position, as_rgb(color)))
    return distractors


def free_position(
    layout: Layout, taken: list[Float[np.ndarray, " 2"]], rng: np.random.Generator
) -> Float[np.ndarray, " 2"] | None:
    """Sample a position away from object, zone, the path between them and `taken` positions.

    None if no attempt succeeds.
    """
    for _ in range(ATTEMPTS):
        position = rng.uniform(*DISTRACTOR_AREA)
        apart = all(np.linalg.norm(position - other) > 0.075 for other in taken)
        clear = _segment_distance(position, layout.object, layout.zone) > 0.08
        if apart and clear and np.linalg.norm(position) > 0.17:
            return position
    return None


def _segment_distance(
    point: Float[np.ndarray, " 2"], start: Float[np.ndarray, " 2"], end: Float[np.ndarray, " 2"]
) -> float:
    along = (point - start) @ (end - start) / ((end - start) @ (end - start))
    return float(np.linalg.norm(point - start - np.clip(along, 0, 1) * (end - start)))
