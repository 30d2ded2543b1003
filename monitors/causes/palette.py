"""Colour clusters of a scene: surfaces, arm and target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64, UInt8

from worldmodel.monitors.channels.subsampling import distance_sample

BITS = 5
"""Upper bits of each channel that define a colour bin."""
BINS = 1 << BITS
"""Bins per channel."""
NUM_COLOURS = 14
"""Largest number of clusters."""
SAMPLE, RARE = 20_000, 400
"""Pixels sampled from the frames, and size of their coreset for clustering."""
MOVED = 0.1
"""Smallest departure of a moving pixel from its median over the episode, in [0, 1]."""
SURFACE_SHARE, ARM_SHARE, TARGET_SHARE = 0.1, 0.03, 0.001
"""Smallest share of the picture of a surface, an arm, and a target in view."""
STILL, MOVING = 0.25, 0.3
"""Share of moving pixels in a cluster: maximum for a surface, minimum for an arm or a target."""
SAME_HUE, OTHER_HUE = 0.12, 0.3
"""Chroma distance below which two colours may be one material in different light, and above which
they are different materials."""

Video = UInt8[np.ndarray, "_ height width 3"]


def colour_bins(frames: UInt8[np.ndarray, "*any 3"]) -> Int32[np.ndarray, "*any"]:
    """Index of each pixel's colour bin, below BINS^3."""
    upper = (frames >> (8 - BITS)).astype(np.int32)
    return (upper[..., 0] << (2 * BITS)) | (upper[..., 1] << BITS) | upper[..., 2]


def bin_colours() -> Float64[np.ndarray, "bins 3"]:
    """Centre colour of each bin, in [0, 1]."""
    indices = np.unravel_index(np.arange(BINS**3), (BINS, BINS, BINS))
    return (np.stack(indices, axis=-1) + 0.5) / BINS


def coordinates(rgb: Float[np.ndarray, "*any 3"]) -> Float64[np.ndarray, "*any 3"]:
    """Lightness and two chroma coordinates of colours in [0, 1]; shadows change mostly lightness.

    >>> coordinates(np.array([1.0, 0.0, 0.2])).round(2)
    array([ 0.24,  1.09, -0.36])
    """
    light = rgb.mean(axis=-1, keepdims=True, dtype=np.float64)
    return np.concatenate([0.6 * light, (rgb[..., ::2] - light) / (light + 0.15)], axis=-1)


def departs(video: Video) -> Bool[np.ndarray, "_ height width"]:
    """Mask of pixels that differ from their median over the episode."""
    still = np.median(video, axis=0)
    return np.abs(video - still).max(axis=-1) > 255 * MOVED


class Palette:
    """Clusters of the colours of one camera's nominal episodes.

    `surfaces_` lists the clusters of each large still surface, `arm_` those of the moving arm, and
    `target_` those of a small moving object of its own colour in nearly every frame. Each may be
    empty.
    """

    def fit(self, episodes: Sequence[Video], *, rng: np.random.Generator) -> Palette:
        """Fit to nominal episodes of one camera."""
        from scipy.cluster.vq import kmeans2
        from scipy.spatial import KDTree

        pixels = np.concatenate([video[::4].reshape(-1, 3) for video in episodes])
        chosen = pixels[rng.choice(len(pixels), min(SAMPLE, len(pixels)), replace=False)]
        points = coordinates(chosen / 255)
        rare = distance_sample(points, RARE, rng=rng)
        number = min(NUM_COLOURS, len(np.unique(rare, axis=0)))
        centres, _ = kmeans2(rare, number, minit="++", seed=rng)
        nearest = KDTree(centres).query(points)[1]
        for cluster in np.unique(nearest):  # the coreset underweights common colours
            centres[cluster] = points[nearest == cluster].mean(axis=0)
        self.labels_ = KDTree(centres).query(coordinates(bin_colours()))[1].astype(np.uint8)
        self._assign_parts(episodes, centres)
        return self

    def labels(self, frames: UInt8[np.ndarray, "*any 3"]) -> UInt8[np.ndarray, "*any"]:
        """Cluster of each pixel, below `NUM_COLOURS`."""
        return np.take(self.labels_, colour_bins(frames))

    def _assign_parts(self, episodes: Sequence[Video], centres: Float64[np.ndarray, "k 3"]) -> None:
        """Assign clusters to surfaces, arm and target by size, motion and presence."""

        def chroma_distance(parts: Bool[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
            differences = centres[:, None, 1:] - centres[parts, 1:]
            return np.linalg.norm(differences, axis=-1).min(axis=1, initial=np.inf)

        size, motion, presence = self._statistics(episodes, len(centres))
        self.surfaces_ = _materials(centres, np.where(motion < STILL, size, 0))
        surface = np.isin(np.arange(len(centres)), np.concatenate([[], *self.surfaces_]))
        brightness = centres[surface, 0].min(initial=1.0)
        shadow = (chroma_distance(surface) < SAME_HUE) & (centres[:, 0] > 0.35 * brightness)
        moving = (motion > MOVING) & (presence > 0.8) & ~shadow
        arm = moving & (chroma_distance(moving & (size > ARM_SHARE)) < SAME_HUE)
        target = moving & ~arm & (chroma_distance(surface | arm) > OTHER_HUE)
        self.arm_, self.target_ = np.flatnonzero(arm), np.flatnonzero(target)

    def _statistics(
        self, episodes: Sequence[Video], number: int
    ) -> tuple[Float64[np.ndarray, " k"], ...]:
        """Each cluster's share of the picture, moving share, and share of frames in view."""
        total = np.zeros((3, number))
        for video in episodes:
            for labels, moved in zip(self.labels(video[::4]), departs(video)[::4], strict=True):
                share = np.bincount(labels.ravel(), minlength=number) / labels.size
                moving = np.bincount(labels[moved], minlength=number) / labels.size
                total += np.stack([share, moving, share > TARGET_SHARE])
        frames = sum(len(video[::4]) for video in episodes)
        return total[0] / frames, total[1] / total[0].clip(1e-12), total[2] / frames


def _materials(
    centres: Float64[np.ndarray, "k 3"], size: Float64[np.ndarray, " k"]
) -> list[Int64[np.ndarray, " n"]]:
    """Groups of similar clusters that together cover a large share, the largest first."""
    materials, left = [], size.copy()
    while left.max(initial=0) > 0:
        near = np.linalg.norm(centres - centres[left.argmax()], axis=-1) < SAME_HUE
        members = np.flatnonzero(near & (left > 0))
        if left[members].sum() > SURFACE_SHARE:
            materials.append(members)
        left[members] = 0
    return sorted(materials, key=lambda members: -size[members].sum())
