"""Appearance of an episode: the nominal domain, and shifts by factor and severity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from worldmodel.envs.registry import lookup
from worldmodel.envs.scene import OBJECT_SHAPES, PATTERNS

Option = TypeVar("Option")
RGB = tuple[float, float, float]
Vector = Float[np.ndarray, " 3"]

SEVERITIES = (1, 2, 3)
"""1 is just outside the nominal range, 3 is obvious."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Appearance parameters of an episode. Colours are RGB in [0, 1]."""

    table_rgb: RGB = (0.62, 0.47, 0.33)
    table_rgb2: RGB = (0.58, 0.44, 0.31)
    """Second colour of the table's pattern."""
    table_pattern: str = "stripe"
    wall_rgb: RGB = (0.72, 0.74, 0.72)
    wall_pattern: str = "flat"
    light_pos: RGB = (0.55, -0.45, 1.5)
    """Position of the lamp in metres, base frame; in front of the wall at x = -0.68."""
    light_rgb: RGB = (0.75, 0.75, 0.72)
    ambient: float = 0.42
    num_distractors: int = 1
    distractor_pool: str = "train"
    """"train" (three shapes, blue and yellow) or "novel" (eight shapes, any colour)."""
    object_shape: str = "box"
    object_rgb: RGB = (0.85, 0.12, 0.1)
    arm_rgb: RGB = (0.13, 0.13, 0.15)
    finger_rgb: RGB = (0.68, 0.7, 0.74)
    tool: bool = False
    """Whether a plate is mounted behind the fingers."""
    sleeves: bool = False
    """Whether the arm and the fingers wear thick sleeves."""
    camera_azimuth_deg: float = 0.0
    camera_elevation_deg: float = 42.0
    camera_distance: float = 0.6
    """Distance in metres from the point the camera looks at."""
    camera_roll_deg: float = 0.0

    def __post_init__(self) -> None:
        lookup("pattern", self.table_pattern, dict.fromkeys(PATTERNS))
        lookup("pattern", self.wall_pattern, dict.fromkeys(PATTERNS))
        lookup("shape", self.object_shape, dict.fromkeys(OBJECT_SHAPES))
        lookup("distractor pool", self.distractor_pool, dict.fromkeys(("train", "novel")))


MILD_TABLES: tuple[tuple[RGB, RGB, str], ...] = (
    ((0.5, 0.5, 0.5), (0.46, 0.46, 0.46), "stripe"),
    ((0.72, 0.68, 0.6), (0.66, 0.62, 0.54), "flat"),
    ((0.45, 0.5, 0.4), (0.4, 0.45, 0.36), "noise"),
    ((0.55, 0.36, 0.32), (0.48, 0.3, 0.27), "checker"),
)
"""Colour, second colour and pattern of a table."""
STRONG_TABLES: tuple[tuple[RGB, RGB, str], ...] = (
    ((0.15, 0.3, 0.6), (0.9, 0.9, 0.9), "checker"),
    ((0.9, 0.9, 0.92), (0.85, 0.85, 0.88), "flat"),
    ((0.2, 0.45, 0.25), (0.6, 0.7, 0.3), "noise"),
    ((0.5, 0.1, 0.3), (0.9, 0.7, 0.1), "stripe"),
)
STRONG_LIGHTS: tuple[tuple[RGB, float], ...] = (
    ((1.1, 0.55, 0.2), 0.2),
    ((0.2, 0.3, 0.9), 0.2),
    ((0.25, 0.25, 0.25), 0.12),
    ((1.5, 1.5, 1.4), 0.75),
)
"""Colour of the lamp and ambient light."""
MILD_OBJECT_RGBS: tuple[RGB, ...] = ((0.85, 0.35, 0.08), (0.75, 0.1, 0.4), (0.55, 0.08, 0.08))
STRONG_OBJECT_RGBS: tuple[RGB, ...] = (
    (0.1, 0.3, 0.95),
    (0.95, 0.85, 0.1),
    (0.6, 0.1, 0.7),
    (0.05, 0.05, 0.05),
)
GRIPPERS: tuple[tuple[RGB, RGB], ...] = (
    ((0.95, 0.95, 0.95), (0.2, 0.2, 0.2)),
    ((0.1, 0.3, 0.8), (0.95, 0.8, 0.1)),
    ((0.8, 0.35, 0.05), (0.3, 0.6, 0.3)),
)
"""Colours of arm and fingers."""


def nominal(rng: np.random.Generator) -> Domain:
    """Sample a nominal domain: light, tone, camera and distractors vary slightly."""
    base = Domain()
    tone = rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, 3)
    return replace(
        base,
        table_rgb=_tint(base.table_rgb, tone),
        table_rgb2=_tint(base.table_rgb2, tone),
        wall_rgb=_tint(base.wall_rgb, rng.uniform(0.95, 1.05)),
        light_pos=_moved(base.light_pos, rng.uniform(-0.12, 0.12, 3)),
        light_rgb=_tint(base.light_rgb, rng.uniform(0.93, 1.07) * rng.uniform(0.97, 1.03, 3)),
        ambient=base.ambient * rng.uniform(0.94, 1.06),
        num_distractors=int(rng.integers(3)),
        camera_azimuth_deg=rng.uniform(-2, 2),
        camera_elevation_deg=base.camera_elevation_deg + rng.uniform(-2, 2),
        camera_distance=base.camera_distance + rng.uniform(-0.01, 0.01),
        camera_roll_deg=rng.uniform(-1, 1),
    )


def shifted(factor: str, severity: int, rng: np.random.Generator) -> Domain:
    """Sample a nominal domain and shift one factor.

    The nominal part uses `rng` exactly as `nominal` does, so equal generators give domains that
    differ only in the shifted factor. Severity 0 and factor "nominal" shift nothing.
    """
    domain = nominal(rng)
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"`severity` must be 0, 1, 2 or 3, got {severity!r}.")
    shift = lookup("factor", factor, FACTORS)
    return shift(domain, severity, rng) if severity else domain


def _nominal(domain: Domain, severity: int, rng: np.random.Generator) -> Domain:
    return domain


def _background(domain: Domain, severity: int, rng: np.random.Generator) -> Domain:
    if severity == 1:
        tone = rng.choice([0.7, 1.3]) * rng.uniform(0.97, 1.03, 3)
        tables = _tint(domain.table_rgb, tone), _tint(domain.table_rgb2, tone)
        return replace(domain, table_rgb=tables[0], table_rgb2=tables[1])
    if severity == 2:
        table, second, pattern = _pick(rng, MILD_TABLES)
        return replace(domain, table_rgb=table, table_rgb2=second, table_pattern=pattern)
    table, second, pattern = _pick(rng, STRONG_TABLES)
    return replace(
        domain,
        table_rgb=table,
        table_rgb2=second,
        table_pattern=pattern,
        wall_rgb=as_rgb(rng.uniform(0.1, 0.9, 3)),
        wall_pattern=_pick(rng, ("flat", "checker")),
    )


def _lighting(domain: Domain, severity: int, rng: np.random.Generator) -> Domain:
    if severity == 3:
        position = np.array([rng.choice([-0.35, 0.9]), rng.choice([-0.9, 0.9]), 0.7])
        color, ambient = _pick(rng, STRONG_LIGHTS)
        return replace(domain, light_pos=as_rgb(position), light_rgb=color, ambient=ambient)
    angle, distance = rng.uniform(0, 2 * np.pi), (0.3, 0.6)[severity - 1]
    offset = distance * np.array([np.cos(angle), np.sin(angle), 0])
    gain = _pick(rng, ((0.78, 1.22), (0.55, 1.4))[severity - 1])
    warmth = _pick(rng, (-1, 1)) * (0.08, 0.2)[severity - 1]
    return replace(
        domain,
        light_pos=_moved(domain.light_pos, offset),
        light_rgb=_tint(domain.light_rgb, gain * np.array([1 + warmth, 1, 1 - warmth])),
        ambient=domain.ambient * gain,
    )


def _clutter(domain: Domain, severity: int, rng: np.random.Generator) -> Domain:
    low, high = ((3, 3), (4, 5), (6, 8))[severity - 1]
    pool = "train" if severity == 1 else "novel"
    return replace(domain, num_distractors=int(rng.integers(low, high + 1)), distractor_pool=pool)


def _object(domain: Domain, severity: int, rng: np.random.Generator) -> Domain:
    if severity == 1:
        return replace(domain, object_rgb=_pick(rng, MILD_OBJECT_RGBS))
    shape = _pick(rng, ("sphere", "cylinder", "mug", "ell"))
    color = _pick(rng, MILD_OBJECT_RGBS if severity == 2 else STRONG_OBJECT_RGBS)
    return replace(domain, object_shape=shape, object_rgb=color)


def _end_effector(domain: Domain, severity: int, rng: np.random.Generator) -> Domain:
    arm, finger = _pick(rng, GRIPPERS)
    if severity == 1:
        return replace(domain, finger_rgb=finger)
    if severity == 2:
        return replace(domain, finger_rgb=finger, tool=True)
    return replace(domain, arm_rgb=arm, finger_rgb=finger, tool=True, sleeves=True)


def _camera(domain: Domain, severity: int, rng: np.random.Generator) -> Domain:
    azimuth = _pick(rng, ((5, 8), (12, 20), (30, 45))[severity - 1]) * _pick(rng, (-1, 1))
    spread = (3, 8, 15)[severity - 1]
    nearest, farthest = ((-0.02, 0.04), (-0.05, 0.12), (-0.08, 0.25))[severity - 1]
    return replace(
        domain,
        camera_azimuth_deg=domain.camera_azimuth_deg + azimuth,
        camera_elevation_deg=domain.camera_elevation_deg + rng.uniform(-spread, spread),
        camera_distance=domain.camera_distance + rng.uniform(nearest, farthest),
        camera_roll_deg=domain.camera_roll_deg + rng.uniform(-0.8, 0.8) * spread,
    )


FACTORS: dict[str, Callable[[Domain, int, np.random.Generator], Domain]] = {
    "nominal": _nominal,
    "background": _background,
    "lighting": _lighting,
    "clutter": _clutter,
    "object": _object,
    "end_effector": _end_effector,
    "camera": _camera,
}
"""Factor -> function that shifts a nominal domain. Only "object" changes the physics of an episode,
unless something touches the clutter."""


def _pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.integers(len(options)))]


def as_rgb(values: Vector) -> RGB:
    """Three numbers as a tuple of Python floats."""
    first, second, third = values.tolist()
    return first, second, third


def _tint(color: RGB, gain: float | Vector) -> RGB:
    return as_rgb(np.array(color) * gain)


def _moved(position: RGB, offset: Vector) -> RGB:
    return as_rgb(np.array(position) + offset)


NOMINAL = "nominal"
SHIFTS = tuple(name for name in FACTORS if name != NOMINAL)
