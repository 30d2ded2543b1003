"""Synthetic edits of nominal episodes, one cause each, to train the cause classifier.

They replace labelled examples of faults, which do not exist: new light, other surfaces, new
objects, another target, another arm, a moved camera. Edits are painted into nominal frames, guided
by colour clusters and motion. Distorted frames train the class "unknown".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from worldmodel.monitors.causes.descriptors import reduced
from worldmodel.monitors.causes.palette import SAME_HUE, Palette, coordinates, departs

Video = Float64[np.ndarray, "time height width 3"]
"""Frames of one camera in [0, 1]."""
Mask = Bool[np.ndarray, "time height width"]
Episode = UInt8[np.ndarray, "_ view height width 3"]
Clip = UInt8[np.ndarray, "_ _ 64 64 3"]
Mapped = Float64[np.ndarray, "height width"]

SHADE = (0.3, 1.4)
"""Relative brightness of a surface, from deep shadow to full light."""


@dataclass(frozen=True)
class EditedScene:
    """One nominal episode of one camera, segmented."""

    video: Video
    still: Float64[np.ndarray, "height width 3"]
    """Median over the whole episode."""
    foreground: Mask
    """Mask of what covers the still picture, without shadows."""
    surfaces: tuple[Bool[np.ndarray, "height width"], ...]
    """Large surfaces in the still picture, the largest first."""
    arm: Mask
    target: Mask


def edited_episodes(
    episodes: Sequence[Episode], *, clip_frames: int, seed: int
) -> dict[str, list[Clip]]:
    """One edited clip per episode and cause.

    Args:
        episodes: Nominal episodes, at full length: motion is used to segment them.
        clip_frames: Length of a clip; it starts anywhere in the episode.
        seed: Seed of the edits.

    Returns:
        Cause -> clips of 64 x 64 pixels, the classifier's resolution. Causes that do not apply
        (no visible arm or target) are left out.
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
        scenes = [segment(episode[:, view], palettes[view], cut) for view in views]
        for cause, edit in EDITS.items():
            videos = [edit(scene, rng) for scene in scenes]
            if all(video is None for video in videos):
                continue
            whole = [s.video if f is None else f for s, f in zip(scenes, videos, strict=True)]
            clip = np.stack(whole, axis=1).clip(0, 1)
            clips[cause].append(np.round(255 * clip).astype(np.uint8))
    return {cause: some for cause, some in clips.items() if some}


def segment(
    frames: UInt8[np.ndarray, "time height width 3"], palette: Palette, cut: slice
) -> EditedScene:
    """Segment one camera's episode; keep the frames of `cut`."""
    from scipy.ndimage import binary_opening

    still = np.median(frames, axis=0) / 255
    video, labels = frames[cut] / 255, palette.labels(frames[cut])
    shade = video.mean(-1) / still.mean(-1).clip(0.02)
    lit = np.abs(video - shade[..., None] * still).max(-1) < 0.08
    shadow = lit & (shade > SHADE[0]) & (shade < SHADE[1])
    foreground = binary_opening(departs(frames)[cut] & ~shadow, np.ones((1, 2, 2), bool))
    still_labels = palette.labels(np.round(255 * still).astype(np.uint8))
    width = max(still_labels.shape) // 8
    surfaces = [_closed(np.isin(still_labels, surface), width) for surface in palette.surfaces_]
    surfaces = sorted((mask for mask in surfaces if mask.any()), key=np.count_nonzero, reverse=True)
    return EditedScene(
        video=video,
        still=still,
        foreground=foreground,
        surfaces=tuple(surfaces),
        arm=np.isin(labels, palette.arm_),
        target=np.isin(labels, palette.target_),
    )


def _closed(mask: Bool[np.ndarray, "height width"], width: int) -> Bool[np.ndarray, "height width"]:
    """Remove specks from a mask and fill gaps of up to `width` pixels."""
    from scipy.ndimage import binary_closing, binary_opening

    padded = np.pad(binary_opening(mask, np.ones((3, 3), bool)), width, mode="edge")
    closed = binary_closing(padded, np.ones((width, width), bool))
    return closed[width:-width, width:-width]


def relight(scene: EditedScene, rng: np.random.Generator) -> Video:
    """Lighting: change strength, colour, direction and contrast."""
    height, width = scene.still.shape[:2]
    strength = rng.choice([-1, 1]) * rng.uniform(0.2, 1.2)
    gain = np.exp(0.6 * strength) if strength > 0 else np.exp(strength)
    colour = np.exp(rng.normal(0, rng.choice([0.05, 0.3]), 3))
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.4)
    rows, columns = np.mgrid[:height, :width] / max(height, width) - 0.5
    ramp = 1 + slope * (np.cos(angle) * rows + np.sin(angle) * columns)
    light = gain * ramp[..., None] * colour / colour.mean()
    return (scene.video * light).clip(0, 1) ** np.exp(rng.normal(0, 0.1))


def repaint(scene: EditedScene, rng: np.random.Generator) -> Video | None:
    """Background: other materials on the largest surface, and often on others; keep shadows."""
    chroma = coordinates(scene.video)[..., 1:]
    grain = rng.choice([0, 0.15])  # of the old material, in its brightness
    video = scene.video
    for number, surface in enumerate(scene.surfaces):
        if number and rng.random() < 0.5:
            continue
        usual = scene.still[surface].mean(axis=0)
        shade = scene.video.mean(axis=-1) / usual.mean()
        chroma_distance = np.linalg.norm(chroma - coordinates(usual)[1:], axis=-1)
        where = (
            surface & (shade > SHADE[0]) & (shade < SHADE[1]) & (chroma_distance < 1.5 * SAME_HUE)
        )
        smooth = 1 + np.sign(shade - 1) * (abs(shade - 1) - grain).clip(0)
        first, second = _paints(usual, rng)
        pattern = _pattern(surface.shape, rng)[..., None]
        paint = (pattern * first + (1 - pattern) * second).clip(0.02, 1)
        video = _painted(video, where, paint * smooth[..., None])
    return video if scene.surfaces else None


def _painted(video: np.ndarray, where: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """Paint the marked pixels of a video or frame."""
    return np.where(where[..., None], paint, video)


def _paints(
    usual: Float64[np.ndarray, " 3"], rng: np.random.Generator
) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
    """Two random surface colours: another tone, muted, or any; often similar."""
    tone = usual * np.exp(rng.choice([-1, 1]) * rng.uniform(0.2, 0.5))
    muted = rng.uniform(0.3, 0.8) + rng.normal(0, 0.08, 3)
    first = (tone, muted, rng.uniform(0.1, 0.95, 3))[rng.choice(3, p=[0.2, 0.4, 0.4])]
    alike = first * np.exp(rng.normal(0, 0.1))
    return first, alike if rng.random() < 0.6 else rng.uniform(0.1, 0.95, 3)


def _pattern(shape: tuple[int, ...], rng: np.random.Generator) -> Mapped:
    """Random pattern in [0, 1]: flat, stripes, checks or blotches."""
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


def strew(scene: EditedScene, rng: np.random.Generator) -> Video:
    """Clutter: one to eight small objects behind everything that moves, or one large object."""
    shape = scene.still.shape[:2]
    ground = np.any(scene.surfaces, axis=0) if scene.surfaces else np.ones(shape, bool)
    behind = ~scene.foreground & ~scene.target & ~scene.arm
    places, video = np.argwhere(ground), scene.video
    large = rng.random() < 0.2
    for _ in range(1 if large else rng.integers(1, 9)):
        y, x = _turned(shape, places[rng.integers(len(places))], rng.uniform(0, np.pi))
        radius = rng.uniform(*(0.1, 0.25) if large else (0.03, 0.07)) * max(shape)
        flatness = rng.uniform(1, 2.5)
        norm = (np.hypot, lambda *sides: np.maximum(*np.abs(sides)))[rng.integers(2)]
        thing = norm(x, y * flatness) < radius
        shading = np.where(y > 0, 0.65, 1)[..., None]
        video = _painted(video, thing & (behind | large), _any_colour(rng) * shading)
    return video


def _turned(
    shape: tuple[int, ...],
    centre: Float64[np.ndarray, " 2"] | Int64[np.ndarray, " 2"],
    angle: float,
) -> tuple[Mapped, Mapped]:
    """Coordinates y and x of each pixel in axes through `centre`, rotated by `angle`."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    y, x = rows - centre[0], columns - centre[1]
    return np.cos(angle) * y - np.sin(angle) * x, np.cos(angle) * x + np.sin(angle) * y


def _any_colour(rng: np.random.Generator) -> Float64[np.ndarray, " 3"]:
    """Random colour, vivid more often than grey."""
    from colorsys import hsv_to_rgb

    return np.array(hsv_to_rgb(rng.random(), np.sqrt(rng.random()), rng.uniform(0.15, 1)))


def swap_target(scene: EditedScene, rng: np.random.Generator) -> Video | None:
    """Target: another colour, and often another shape."""
    from scipy.ndimage import binary_dilation, binary_erosion

    if not scene.target.any():
        return None
    colour, kind = _any_colour(rng), rng.choice(["same", "flat", "worn"])
    light = scene.video.mean(axis=-1)
    shade = (light / np.median(light[scene.target])).clip(0.5, 1.3)[..., None]
    around = np.ones((1, 3, 3), bool)
    if kind == "flat":
        return _painted(scene.video, binary_dilation(scene.target, around) & ~scene.arm, colour)
    video = _painted(scene.video, scene.target, colour * shade)
    if kind == "same":
        return video
    rim = scene.target & ~binary_erosion(scene.target, around)
    return _painted(video, rim & (rng.random(rim.shape[1:]) < 0.6), scene.still)


def refit_arm(scene: EditedScene, rng: np.random.Generator) -> Video | None:
    """Embodiment: recolour the arm's tip or all of it; often mount a plate at the tip."""
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
    video = scene.video.copy()
    for number in np.flatnonzero(scene.arm.any(axis=(1, 2))):
        tip, inward = _tip(scene.arm[number], base)
        near = np.hypot(*_turned(shape, tip, 0.0)) < reach
        shade = (scene.video[number].mean(axis=-1, keepdims=True) / 0.3).clip(0.5, 1.3)
        paint = np.where(near[..., None], tip_colour, arm_colour) * shade
        video[number] = _painted(video[number], moving[number] & (near | whole), paint)
        if mounted:
            y, x = _turned(shape, tip + back * inward, angle)
            plate = (abs(x) < half_width) & (abs(y) < half_height) & ~scene.target[number]
            shading = np.where(y > 0, 0.7, 1)[..., None]
            video[number] = _painted(video[number], plate, tip_colour * shading)
    return video


def _tip(
    arm: Bool[np.ndarray, "height width"], base: Float64[np.ndarray, " 2"]
) -> tuple[Float64[np.ndarray, " 2"], Float64[np.ndarray, " 2"]]:
    """Tip of the arm's largest piece, farthest from its base, and the direction back."""
    from scipy.ndimage import label

    pieces = label(arm)[0]
    largest = np.argwhere(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))
    distance = np.linalg.norm(largest - base, axis=1)
    tip = largest[distance >= np.quantile(distance, 0.9)].mean(axis=0)
    return tip, (base - tip) / max(np.linalg.norm(base - tip), 1e-6)


def move_camera(scene: EditedScene, rng: np.random.Generator) -> Video:
    """Camera: warp the picture as a plane seen from another pose."""
    elevation, focal = rng.uniform(0.6, 1.1), rng.uniform(0.9, 1.6)
    turn = rng.choice([-1, 1]) * rng.uniform(0.1, 0.8) * (rng.random() < 0.8)
    tilt, roll, distance = rng.normal(0, 0.12), rng.normal(0, 0.1), np.exp(rng.normal(0.05, 0.15))
    zoom = np.diag([focal, focal, 1])
    old = zoom @ _plane_view(elevation)
    new = zoom @ _plane_view(elevation + tilt, turn, roll, distance)
    new[:2] += rng.normal(0, 0.04, (2, 1)) * new[2]
    return _warped(scene.video, old @ np.linalg.inv(new))


def distort(scene: EditedScene, rng: np.random.Generator) -> Video:
    """Unknown: noise, blur, negative or exchanged colour channels."""
    from scipy.ndimage import gaussian_filter

    video, kind = scene.video, rng.integers(4)
    if kind == 0:
        return video + rng.normal(0, rng.uniform(0.03, 0.2), video.shape)
    if kind == 1:
        blur = rng.uniform(0.01, 0.05) * max(video.shape[1:3])
        return gaussian_filter(video, (0, blur, blur, 0))
    return 1 - video if kind == 2 else video[..., ::-1]


def _plane_view(
    elevation: float, azimuth: float = 0.0, roll: float = 0.0, distance: float = 1.0
) -> Float64[np.ndarray, "3 3"]:
    """Homography from the plane z = 0 to the picture of a camera aimed at its origin."""
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


def _warped(video: Video, matrix: Float64[np.ndarray, "3 3"]) -> Video:
    """Resample the video at matrix @ (x, y, 1), longer side 1; mirror beyond the edges."""
    from scipy.ndimage import map_coordinates

    height, width = video.shape[1:3]
    size, middle = max(height, width), np.array([width / 2, height / 2]).reshape(2, 1, 1)
    rows, columns = np.mgrid[:height, :width]
    place = (np.stack([columns, rows]) - middle) / size
    x, y, depth = np.einsum("ij,jhw->ihw", matrix, np.stack([*place, np.ones_like(place[0])]))
    depth = np.maximum(
        depth, 0.05 * np.median(depth)
    )  # pixels above the horizon do not see the plane
    source = (np.stack([x, y]) / depth * size + middle)[::-1]
    channels = np.moveaxis(video, -1, 1).reshape(-1, height, width)
    moved = [map_coordinates(channel, source, order=1, mode="mirror") for channel in channels]
    return np.moveaxis(np.reshape(moved, (len(video), 3, height, width)), 1, -1)


EDITS: dict[str, Callable[[EditedScene, np.random.Generator], Video | None]] = {
    "lighting": relight,
    "background": repaint,
    "clutter": strew,
    "object": swap_target,
    "end_effector": refit_arm,
    "camera": move_camera,
    "unknown": distort,
}
"""Cause -> edit; an edit returns None if the scene has nothing to edit."""
