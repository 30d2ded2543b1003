"""The colours of a scene, and the part that each seems to play."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64, UInt8

from worldmodel.monitors.channels.subsampling import distance_sample

BITS = 5
"""Colours are told apart by the upper bits of each channel."""
BINS = 1 << BITS
"""Steps of each channel."""
NUM_COLOURS = 14
"""Clusters; fewer where the frames have fewer colours."""
SAMPLE, RARE = 20_000, 400
"""Pixels that stand for the frames, and those of them that the clusters are found in."""
MOVED = 0.1
"""Departure from the pixel's median over the episode, of 1, from which a pixel counts as moving."""
SURFACE_SHARE, ARM_SHARE, TARGET_SHARE = 0.1, 0.03, 0.001
"""Least share of the picture of a surface, of an arm, and of a target where it is in view."""
STILL, MOVING = 0.25, 0.3
"""Share of a cluster's pixels that move, at most of a surface, at least of an arm and a target."""
SAME_HUE, OTHER_HUE = 0.12, 0.3
"""Distance in chroma up to which two colours may be one material in different light, and from
which they are surely two."""

Film = UInt8[np.ndarray, "_ height width 3"]


def colour_bins(frames: UInt8[np.ndarray, "*any 3"]) -> Int32[np.ndarray, "*any"]:
    """Number of each pixel's colour bin, below BINS^3."""
    upper = (frames >> (8 - BITS)).astype(np.int32)
    return (upper[..., 0] << (2 * BITS)) | (upper[..., 1] << BITS) | upper[..., 2]


def bin_colours() -> Float64[np.ndarray, "bins 3"]:
    """The colour in the middle of each bin, in [0, 1]."""
    indices = np.unravel_index(np.arange(BINS**3), (BINS, BINS, BINS))
    return (np.stack(indices, axis=-1) + 0.5) / BINS


def coordinates(rgb: Float[np.ndarray, "*any 3"]) -> Float64[np.ndarray, "*any 3"]:
    """Lightness, then two of chroma, of colours in [0, 1]; a shadow changes mostly the first.

    >>> coordinates(np.array([1.0, 0.0, 0.2])).round(2)
    array([ 0.24,  1.09, -0.36])
    """
    light = rgb.mean(axis=-1, keepdims=True, dtype=np.float64)
    return np.concatenate([0.6 * light, (rgb[..., ::2] - light) / (light + 0.15)], axis=-1)


def departs(film: Film) -> Bool[np.ndarray, "_ height width"]:
    """Whether a pixel is unlike its median over the episode: something came, or went."""
    still = np.median(film, axis=0)
    return np.abs(film - still).max(axis=-1) > 255 * MOVED


class Palette:
    """Clusters of the colours of one camera's nominal episodes.

    `surfaces_`, `arm_` and `target_` list the clusters that look like one large still surface
    each, like what moves, and like a small thing of its own colour that moves and is in nearly
    every frame. Any of them may be empty: then nothing in view looks like it.
    """

    def fit(self, episodes: Sequence[Film], *, rng: np.random.Generator) -> Palette:
        """Learn from nominal episodes of one camera."""
        from scipy.cluster.vq import kmeans2
        from scipy.spatial import KDTree

        pixels = np.concatenate([film[::4].reshape(-1, 3) for film in episodes])
        chosen = pixels[rng.choice(len(pixels), min(SAMPLE, len(pixels)), replace=False)]
        points = coordinates(chosen / 255)
        rare = distance_sample(points, RARE, rng=rng)
        number = min(NUM_COLOURS, len(np.unique(rare, axis=0)))
        centres, _ = kmeans2(rare, number, minit="++", seed=rng)
        nearest = KDTree(centres).query(points)[1]
        for cluster in np.unique(nearest):  # among the rare ones, the common count too little
            centres[cluster] = points[nearest == cluster].mean(axis=0)
        self.labels_ = KDTree(centres).query(coordinates(bin_colours()))[1].astype(np.uint8)
        self._assign_parts(episodes, centres)
        return self

    def labels(self, frames: UInt8[np.ndarray, "*any 3"]) -> UInt8[np.ndarray, "*any"]:
        """Cluster of every pixel, below `NUM_COLOURS`."""
        return np.take(self.labels_, colour_bins(frames))

    def _assign_parts(self, episodes: Sequence[Film], centres: Float64[np.ndarray, "k 3"]) -> None:
        """Tell from each cluster's habits which part it plays."""

        def apart(parts: Bool[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
            differences = centres[:, None, 1:] - centres[parts, 1:]
            return np.linalg.norm(differences, axis=-1).min(axis=1, initial=np.inf)

        size, motion, presence = self._habits(episodes, len(centres))
        self.surfaces_ = _materials(centres, np.where(motion < STILL, size, 0))
        surface = np.isin(np.arange(len(centres)), np.concatenate([[], *self.surfaces_]))
        brightness = centres[surface, 0].min(initial=1.0)
        shadow = (apart(surface) < SAME_HUE) & (centres[:, 0] > 0.35 * brightness)
        moving = (motion > MOVING) & (presence > 0.8) & ~shadow
        arm = moving & (apart(moving & (size > ARM_SHARE)) < SAME_HUE)
        target = moving & ~arm & (apart(surface | arm) > OTHER_HUE)
        self.arm_, self.target_ = np.flatnonzero(arm), np.flatnonzero(target)

    def _habits(
        self, episodes: Sequence[Film], number: int
    ) -> tuple[Float64[np.ndarray, " k"], ...]:
        """Each cluster's share of the picture, of it that moves, and of frames with it in view."""
        total = np.zeros((3, number))
        for film in episodes:
            for labels, moved in zip(self.labels(film[::4]), departs(film)[::4], strict=True):
                share = np.bincount(labels.ravel(), minlength=number) / labels.size
                moving = np.bincount(labels[moved], minlength=number) / labels.size
                total += np.stack([share, moving, share > TARGET_SHARE])
        frames = sum(len(film[::4]) for film in episodes)
        return total[0] / frames, total[1] / total[0].clip(1e-12), total[2] / frames


def _materials(
    centres: Float64[np.ndarray, "k 3"], size: Float64[np.ndarray, " k"]
) -> list[Int64[np.ndarray, " n"]]:
    """Clusters of nearly the same colour that together fill a large share, the largest first."""
    materials, left = [], size.copy()
    while left.max(initial=0) > 0:
        near = np.linalg.norm(centres - centres[left.argmax()], axis=-1) < SAME_HUE
        members = np.flatnonzero(near & (left > 0))
        if left[members].sum() > SURFACE_SHARE:
            materials.append(members)
        left[members] = 0
    return sorted(materials, key=lambda members: -size[members].sum())
