"""Nominal episodes edited as if one thing about the scene had changed, each kind of change named.

Nobody has labelled examples of what will go wrong around a robot. These edits stand in for them:
new light, other surfaces, new things, another target, another arm, a moved camera, painted into
the frames of nominal episodes with the help of a colour palette and of what moves. The monitor
learns from them to name causes; distorted frames teach it what to call "unknown".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from worldmodel.monitors.causes.descriptors import reduced
from worldmodel.monitors.causes.palette import SAME_HUE, Palette, coordinates, departs

Film = Float64[np.ndarray, "time height width 3"]
"""Frames of one camera in [0, 1]."""
Mask = Bool[np.ndarray, "time height width"]
Episode = UInt8[np.ndarray, "_ view height width 3"]
Clip = UInt8[np.ndarray, "_ _ 64 64 3"]
Mapped = Float64[np.ndarray, "height width"]

SHADE = (0.3, 1.4)
"""A surface's brightness, of its usual one, from deep shadow to full light."""


@dataclass(frozen=True)
class EditedScene:
    """One nominal episode of one camera, taken apart."""

    film: Film
    still: Float64[np.ndarray, "height width 3"]
    """Median over the whole episode."""
    foreground: Mask
    """What covers the still picture; its shadow is no part of it."""
    surfaces: tuple[Bool[np.ndarray, "height width"], ...]
    """Large surfaces in the still picture, the largest first."""
    arm: Mask
    target: Mask


def edited_episodes(
    episodes: Sequence[Episode], *, clip_frames: int, seed: int
) -> dict[str, list[Clip]]:
    """A clip of every episode under every kind of change.

    Args:
        episodes: Nominal, not taken apart: what moves is found by its moving.
        clip_frames: Length of a clip; it starts anywhere in the episode.
        seed: Same seed, same edits.

    Returns:
        Cause -> clips, one per episode and change that applies: without anything that looks like
        an arm or a target, there are no clips of that cause. They have 64 x 64 pixels, as many
        as the monitor looks at to name causes.
    """
    if not episodes or clip_frames < 1:
        raise ValueError(
            "`episodes` must not be empty and `clip_frames` must be 1 or more, got "
            f"{len(episodes)} and {clip_frames}."
        )
    rng = np.random.default_rng(seed)
    small = [np.stack([[reduced(view) for view in frame] for frame in e]) for e in episodes]
    views = range(small[0].shape[1])
    palettes = [Palette().fit([e[:, view] for e in small], rng=rng) for view in views]
    clips: dict[str, list[Clip]] = {cause: [] for cause in EDITS}
    for episode in small:
        start = int(rng.integers(max(1, len(episode) - clip_frames + 1)))
        cut = slice(start, start + clip_frames)
        scenes = [take_apart(episode[:, view], palettes[view], cut) for view in views]
        for cause, edit in EDITS.items():
            films = [edit(scene, rng) for scene in scenes]
            if all(film is None for film in films):
                continue
            whole = [s.film if f is None else f for s, f in zip(scenes, films, strict=True)]
            clip = np.stack(whole, axis=1).clip(0, 1)
            clips[cause].append(np.round(255 * clip).astype(np.uint8))
    return {cause: some for cause, some in clips.items() if some}


def take_apart(
    frames: UInt8[np.ndarray, "time height width 3"], palette: Palette, cut: slice
) -> EditedScene:
    """The scene of an episode of one camera, with the frames of `cut`."""
    from scipy.ndimage import binary_opening

    still = np.median(frames, axis=0) / 255
    film, labels = frames[cut] / 255, palette.labels(frames[cut])
    shade = film.mean(-1) / still.mean(-1).clip(0.02)
    lit = np.abs(film - shade[..., None] * still).max(-1) < 0.08
    shadow = lit & (shade > SHADE[0]) & (shade < SHADE[1])
    foreground = binary_opening(departs(frames)[cut] & ~shadow, np.ones((1, 2, 2), bool))
    still_labels = palette.labels(np.round(255 * still).astype(np.uint8))
    width = max(still_labels.shape) // 8
    surfaces = [_closed(np.isin(still_labels, surface), width) for surface in palette.surfaces_]
    surfaces = sorted((mask for mask in surfaces if mask.any()), key=np.count_nonzero, reverse=True)
    return EditedScene(
        film=film,
        still=still,
        foreground=foreground,
        surfaces=tuple(surfaces),
        arm=np.isin(labels, palette.arm_),
        target=np.isin(labels, palette.target_),
    )


def _closed(mask: Bool[np.ndarray, "height width"], width: int) -> Bool[np.ndarray, "height width"]:
    """The mask with gaps of up to `width` pixels filled, and specks taken out."""
    from scipy.ndimage import binary_closing, binary_opening

    padded = np.pad(binary_opening(mask, np.ones((3, 3), bool)), width, mode="edge")
    closed = binary_closing(padded, np.ones((width, width), bool))
    return closed[width:-width, width:-width]


def relight(scene: EditedScene, rng: np.random.Generator) -> Film:
    """Another strength, colour, direction and contrast of the light."""
    height, width = scene.still.shape[:2]
    strength = rng.choice([-1, 1]) * rng.uniform(0.2, 1.2)
    gain = np.exp(0.6 * strength) if strength > 0 else np.exp(strength)
    colour = np.exp(rng.normal(0, rng.choice([0.05, 0.3]), 3))
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.4)
    rows, columns = np.mgrid[:height, :width] / max(height, width) - 0.5
    ramp = 1 + slope * (np.cos(angle) * rows + np.sin(angle) * columns)
    light = gain * ramp[..., None] * colour / colour.mean()
    return (scene.film * light).clip(0, 1) ** np.exp(rng.normal(0, 0.1))


def repaint(scene: EditedScene, rng: np.random.Generator) -> Film | None:
    """Other materials on the largest surface, and often on the others; shadows are kept."""
    chroma = coordinates(scene.film)[..., 1:]
    grain = rng.choice([0, 0.15])  # of the old material, in its brightness
    film = scene.film
    for number, surface in enumerate(scene.surfaces):
        if number and rng.random() < 0.5:
            continue
        usual = scene.still[surface].mean(axis=0)
        shade = scene.film.mean(axis=-1) / usual.mean()
        apart = np.linalg.norm(chroma - coordinates(usual)[1:], axis=-1)
        where = surface & (shade > SHADE[0]) & (shade < SHADE[1]) & (apart < 1.5 * SAME_HUE)
        smooth = 1 + np.sign(shade - 1) * (abs(shade - 1) - grain).clip(0)
        first, second = _paints(usual, rng)
        pattern = _pattern(surface.shape, rng)[..., None]
        paint = (pattern * first + (1 - pattern) * second).clip(0.02, 1)
        film = _painted(film, where, paint * smooth[..., None])
    return film if scene.surfaces else None


def _painted(film: np.ndarray, where: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """The film, or the frame, with `paint` at the marked pixels."""
    return np.where(where[..., None], paint, film)


def _paints(
    usual: Float64[np.ndarray, " 3"], rng: np.random.Generator
) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
    """Two colours of a surface: the usual one in another tone, a muted one or any; often alike."""
    tone = usual * np.exp(rng.choice([-1, 1]) * rng.uniform(0.2, 0.5))
    muted = rng.uniform(0.3, 0.8) + rng.normal(0, 0.08, 3)
    first = (tone, muted, rng.uniform(0.1, 0.95, 3))[rng.choice(3, p=[0.2, 0.4, 0.4])]
    alike = first * np.exp(rng.normal(0, 0.1))
    return first, alike if rng.random() < 0.6 else rng.uniform(0.1, 0.95, 3)


def _pattern(shape: tuple[int, ...], rng: np.random.Generator) -> Mapped:
    """Flat, stripes, checks or blotches, in [0, 1]."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] / max(shape)
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 8)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    across = np.cos(angle) * columns - np.sin(angle) * rows
    first = np.sin(2 * np.pi * waves * along + rng.uniform(0, 6))
    second = np.sin(2 * np.pi * waves * across + rng.uniform(0, 6))
    kind = rng.integers(4)
    if kind == 0:
        return np.ones(shape)
    if kind == 1:
        return (first > 0).astype(np.float64)
    if kind == 2:
        return (first * second > 0).astype(np.float64)
    return 0.5 + 0.5 * first * second


def strew(scene: EditedScene, rng: np.random.Generator) -> Film:
    """One to eight small things on the still surfaces, behind whatever moves; or a large one."""
    shape = scene.still.shape[:2]
    ground = np.any(scene.surfaces, axis=0) if scene.surfaces else np.ones(shape, bool)
    behind = ~scene.foreground & ~scene.target & ~scene.arm
    places, film = np.argwhere(ground), scene.film
    large = rng.random() < 0.2
    for _ in range(1 if large else rng.integers(1, 9)):
        y, x = _turned(shape, places[rng.integers(len(places))], rng.uniform(0, np.pi))
        radius = rng.uniform(*(0.1, 0.25) if large else (0.03, 0.07)) * max(shape)
        flatness = rng.uniform(1, 2.5)
        norm = (np.hypot, lambda *sides: np.maximum(*np.abs(sides)))[rng.integers(2)]
        thing = norm(x, y * flatness) < radius
        shading = np.where(y > 0, 0.65, 1)[..., None]
        film = _painted(film, thing & (behind | large), _any_colour(rng) * shading)
    return film


def _turned(
    shape: tuple[int, ...],
    centre: Float64[np.ndarray, " 2"] | Int64[np.ndarray, " 2"],
    angle: float,
) -> tuple[Mapped, Mapped]:
    """Each pixel's place in axes through `centre`, turned by `angle`: y and x in pixels."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    y, x = rows - centre[0], columns - centre[1]
    return np.cos(angle) * y - np.sin(angle) * x, np.cos(angle) * x + np.sin(angle) * y


def _any_colour(rng: np.random.Generator) -> Float64[np.ndarray, " 3"]:
    """Any colour, vivid ones more often than grey ones."""
    from colorsys import hsv_to_rgb

    return np.array(hsv_to_rgb(rng.random(), np.sqrt(rng.random()), rng.uniform(0.15, 1)))


def swap_target(scene: EditedScene, rng: np.random.Generator) -> Film | None:
    """The small thing that is always there in another colour, and often another shape."""
    from scipy.ndimage import binary_dilation, binary_erosion

    if not scene.target.any():
        return None
    colour, kind = _any_colour(rng), rng.choice(["same", "flat", "worn"])
    light = scene.film.mean(axis=-1)
    shade = (light / np.median(light[scene.target])).clip(0.5, 1.3)[..., None]
    around = np.ones((1, 3, 3), bool)
    if kind == "flat":
        return _painted(scene.film, binary_dilation(scene.target, around) & ~scene.arm, colour)
    film = _painted(scene.film, scene.target, colour * shade)
    if kind == "same":
        return film
    rim = scene.target & ~binary_erosion(scene.target, around)
    return _painted(film, rim & (rng.random(rim.shape[1:]) < 0.6), scene.still)


def refit_arm(scene: EditedScene, rng: np.random.Generator) -> Film | None:
    """An arm of another colour at its tip, or all over; often with a plate mounted at the tip."""
    if not scene.arm.any():
        return None
    shape, moving = scene.still.shape[:2], (scene.arm | scene.foreground) & ~scene.target
    size, reach = max(shape), rng.uniform(0.06, 0.2) * max(shape)
    whole, mounted = rng.random() < 0.4, rng.random() < 0.7
    arm_colour, tip_colour = _any_colour(rng), _any_colour(rng)
    half_width, half_height = rng.uniform(0.06, 0.16) * size, rng.uniform(0.015, 0.05) * size
    back, angle = rng.uniform(0, 0.1) * size, rng.normal(0, 0.3)
    often = scene.arm.mean(axis=0)
    base = np.argwhere(often >= 0.9 * often.max()).mean(axis=0)
    film = scene.film.copy()
    for number in np.flatnonzero(scene.arm.any(axis=(1, 2))):
        tip, inward = _tip(scene.arm[number], base)
        near = np.hypot(*_turned(shape, tip, 0.0)) < reach
        shade = (scene.film[number].mean(axis=-1, keepdims=True) / 0.3).clip(0.5, 1.3)
        paint = np.where(near[..., None], tip_colour, arm_colour) * shade
        film[number] = _painted(film[number], moving[number] & (near | whole), paint)
        if mounted:
            y, x = _turned(shape, tip + back * inward, angle)
            plate = (abs(x) < half_width) & (abs(y) < half_height) & ~scene.target[number]
            shading = np.where(y > 0, 0.7, 1)[..., None]
            film[number] = _painted(film[number], plate, tip_colour * shading)
    return film


def _tip(
    arm: Bool[np.ndarray, "height width"], base: Float64[np.ndarray, " 2"]
) -> tuple[Float64[np.ndarray, " 2"], Float64[np.ndarray, " 2"]]:
    """The end of an arm's largest piece that is farthest from its base; the direction back."""
    from scipy.ndimage import label

    pieces = label(arm)[0]
    largest = np.argwhere(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))
    distance = np.linalg.norm(largest - base, axis=1)
    tip = largest[distance >= np.quantile(distance, 0.9)].mean(axis=0)
    return tip, (base - tip) / max(np.linalg.norm(base - tip), 1e-6)


def move_camera(scene: EditedScene, rng: np.random.Generator) -> Film:
    """The picture of a plane from elsewhere: turned, tilted, rolled, nearer or farther, shifted."""
    elevation, focal = rng.uniform(0.6, 1.1), rng.uniform(0.9, 1.6)
    turn = rng.choice([-1, 1]) * rng.uniform(0.1, 0.8) * (rng.random() < 0.8)
    tilt, roll, distance = rng.normal(0, 0.12), rng.normal(0, 0.1), np.exp(rng.normal(0.05, 0.15))
    zoom = np.diag([focal, focal, 1])
    old = zoom @ _plane_view(elevation)
    new = zoom @ _plane_view(elevation + tilt, turn, roll, distance)
    new[:2] += rng.normal(0, 0.04, (2, 1)) * new[2]
    return _warped(scene.film, old @ np.linalg.inv(new))


def distort(scene: EditedScene, rng: np.random.Generator) -> Film:
    """What is none of the other causes: noise, blur, a negative, exchanged colours."""
    from scipy.ndimage import gaussian_filter

    film, kind = scene.film, rng.integers(4)
    if kind == 0:
        return film + rng.normal(0, rng.uniform(0.03, 0.2), film.shape)
    if kind == 1:
        blur = rng.uniform(0.01, 0.05) * max(film.shape[1:3])
        return gaussian_filter(film, (0, blur, blur, 0))
    return 1 - film if kind == 2 else film[..., ::-1]


def _plane_view(
    elevation: float, azimuth: float = 0.0, roll: float = 0.0, distance: float = 1.0
) -> Float64[np.ndarray, "3 3"]:
    """Homography from the plane z = 0 to the picture of a camera that looks at its origin."""
    side, height = np.cos(elevation), np.sin(elevation)
    eye = distance * np.array([side * np.sin(azimuth), -side * np.cos(azimuth), height])
    ahead = -eye / distance
    right = np.cross(ahead, [0, 0, 1]) / side
    down = np.cross(ahead, right)
    axes = np.stack(
        [
            np.cos(roll) * right + np.sin(roll) * down,
            np.cos(roll) * down - np.sin(roll) * right,
            ahead,
        ]
    )
    return np.column_stack([axes[:, :2], -axes @ eye])


def _warped(film: Film, matrix: Float64[np.ndarray, "3 3"]) -> Film:
    """The film looked up at matrix @ (x, y, 1); the longer side is 1, the rest is mirrored."""
    from scipy.ndimage import map_coordinates

    height, width = film.shape[1:3]
    size, middle = max(height, width), np.array([width / 2, height / 2]).reshape(2, 1, 1)
    rows, columns = np.mgrid[:height, :width]
    place = (np.stack([columns, rows]) - middle) / size
    x, y, depth = np.einsum("ij,jhw->ihw", matrix, np.stack([*place, np.ones_like(place[0])]))
    depth = np.maximum(depth, 0.05 * np.median(depth))  # above the horizon there is no plane
    source = (np.stack([x, y]) / depth * size + middle)[::-1]
    channels = np.moveaxis(film, -1, 1).reshape(-1, height, width)
    moved = [map_coordinates(channel, source, order=1, mode="mirror") for channel in channels]
    return np.moveaxis(np.reshape(moved, (len(film), 3, height, width)), 1, -1)


EDITS: dict[str, Callable[[EditedScene, np.random.Generator], Film | None]] = {
    "lighting": relight,
    "background": repaint,
    "clutter": strew,
    "target": swap_target,
    "embodiment": refit_arm,
    "camera": move_camera,
    "unknown": distort,
}
"""Cause -> edit; None where the scene has nothing to edit."""
