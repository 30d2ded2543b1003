"""Descriptors of a frame's departure from nominal frames, used to tell causes apart.

They measure where the frame departs (in still or in moving places), how much of the departure a
change of light or a small camera motion explains, unseen colours and missing colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from worldmodel.monitors.causes.palette import BINS, NUM_COLOURS, Palette, colour_bins

GRID = 16
"""Places (grid cells) along each side."""
SIDE = 64
"""Side in pixels to which frames are downsampled; finer detail does not separate causes better."""
FLOOR = 0.01
"""Smallest standard deviation of a place's mean colour, in [0, 1]."""
FAR = 3.0
"""Smallest departure, in standard deviations, of a changed place."""
UNSEEN = 6.0
"""Distance in colour bins at which a colour is fully new (newness 1)."""
KNOWN, NEW = 0.1, 0.3
"""Newness below which a colour belongs to its cluster, and above which it is a new object."""
TRACE = 0.002
"""Share of the picture below which a colour counts as absent."""
SPECK = 3
"""Smallest number of pixels in a piece of new colour."""
NUM_DESCRIPTORS = 18 + NUM_COLOURS

Picture = UInt8[np.ndarray, "height width 3"]
Small = UInt8[np.ndarray, "64 64 3"]
Video = UInt8[np.ndarray, "_ height width 3"]
Colours = Float64[np.ndarray, "16 16 3"]
Places = Float64[np.ndarray, "16 16"]
LEARNED = [
    *("labels_", "mean_", "deviation_", "still_", "surfaces_", "slopes_", "motions_"),
    *("unseen_", "usual_", "texture_"),
]


@dataclass(frozen=True)
class Departure:
    """Departure of one camera's frame from nominal frames."""

    descriptors: Float64[np.ndarray, " d"]
    places: Places
    """Departure of each place in standard deviations."""
    unseen: Float64[np.ndarray, "64 64"]
    """Newness of each pixel's colour, in [0, 1]."""


class ViewReference:
    """Statistics of one camera's nominal frames: places, colours and surfaces."""

    def fit(self, episodes: Sequence[Video], *, rng: np.random.Generator) -> ViewReference:
        """Fit to nominal episodes of one camera."""
        from scipy.ndimage import distance_transform_edt, gaussian_filter

        videos = [np.stack([reduced(frame) for frame in video]) for video in episodes]
        palette = Palette().fit(videos, rng=rng)
        self.labels_ = palette.labels_
        frames = np.concatenate(videos)
        colours = np.stack([block_means(frame / 255) for frame in frames])
        self.mean_ = colours.mean(axis=0)
        self.deviation_ = np.sqrt(colours.var(axis=0) + FLOOR**2)
        episode_of = np.repeat(np.arange(len(videos)), [len(video) for video in videos])
        within = [colours[episode_of == k].mean(axis=-1).std(axis=0) for k in range(len(videos))]
        lively = np.mean(within, axis=0)
        self.still_ = lively <= np.median(lively)
        self.surfaces_ = _surfaces(videos, palette)
        self.motions_, self.slopes_ = _motions(self.mean_, self.deviation_)
        count = np.bincount(colour_bins(frames).ravel(), minlength=BINS**3)
        smooth = gaussian_filter(count.reshape(BINS, BINS, BINS) / count.sum(), 0.7)
        self.unseen_ = (distance_transform_edt(smooth <= 1e-6).ravel() / UNSEEN).clip(0, 1)
        some = frames[::4]
        self.usual_ = np.median([self._presence(colour_bins(frame)) for frame in some], axis=0)
        self.texture_ = np.mean([texture(frame) for frame in some], axis=0)
        return self

    def depart(self, frame: Picture) -> Departure:
        """Departure of a frame from the nominal ones."""
        frame = reduced(frame)
        bins, still = colour_bins(frame), self.still_
        z = (block_means(frame / 255) - self.mean_) / self.deviation_
        places = np.sqrt((z**2).mean(axis=-1))
        unseen = self.unseen_[bins]
        gain, lit = self._light(z)
        relit = np.minimum(frame / gain.clip(0.05), 255).astype(np.uint8)
        new = block_means(unseen[..., None])[..., 0]
        rough = np.log((texture(frame) + 0.003) / (self.texture_ + 0.003))
        surfaces = [np.median(places[surface]) for surface in self.surfaces_] or [0.0]
        descriptors = [
            *np.log1p([places[still].mean(), places[~still].mean()]),
            *((places[still] > FAR).mean(), (places[~still] > FAR).mean()),
            np.sqrt((places**2).mean() ** 2 / max((places**4).mean(), 1e-9)),
            *(lit, np.log(gain.clip(0.05)).mean(), np.log(gain.clip(0.05)).std()),
            self._moved(z),
            *np.sqrt(
                [new[still].mean(), new[~still].mean(), self.unseen_[colour_bins(relit)].mean()]
            ),
            *pieces(unseen > NEW),
            *(rough[still].mean(), rough[~still].mean()),
            *np.log1p([min(surfaces), max(surfaces)]),
            *(self._presence(bins) - self.usual_),
        ]
        return Departure(np.array(descriptors, dtype=np.float64), places, unseen)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        return {name: getattr(self, name) for name in LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ViewReference:
        """Inverse of `arrays`."""
        reference = cls()
        for name in LEARNED:
            setattr(reference, name, arrays[name])
        return reference

    def _presence(self, bins: np.ndarray) -> Float64[np.ndarray, " k"]:
        """Logarithm of each colour cluster's share of the picture, counting known colours only."""
        known = bins[self.unseen_[bins] < KNOWN]
        share = np.bincount(np.take(self.labels_, known), minlength=NUM_COLOURS) / bins.size
        return np.log(share + TRACE)

    def _light(self, z: Colours) -> tuple[Float64[np.ndarray, " 3"], float]:
        """Robust gain of each colour channel, and the share of departure that it explains.

        Iteratively reweighted least squares; places that the gain does not explain weigh less.
        """
        usual, departure = self.mean_ / self.deviation_, np.abs(z)
        frame, weight = z + usual, np.ones_like(z)
        for _ in range(3):
            weighted = weight * usual
            gain = (weighted * frame).sum(axis=(0, 1)) / (weighted * usual).sum(axis=(0, 1)).clip(
                1e-9
            )
            left = np.abs(frame - gain * usual)
            weight = 1 / np.maximum(left, 1)
        total = np.minimum(departure, 10).sum()
        return gain, float(1 - np.minimum(left, 10).sum() / max(total, 1e-9))

    def _moved(self, z: Colours) -> float:
        """Share of the departure explained by a small affine motion of the mean picture."""
        target = ((z * self.deviation_).mean(axis=-1) / self.deviation_.mean(axis=-1)).ravel()
        fit = self.motions_ @ (self.slopes_ @ target)
        return float((fit**2).sum() / max((target**2).sum(), 1e-9))


def _surfaces(videos: Sequence[Video], palette: Palette) -> Bool[np.ndarray, "n 16 16"]:
    """Place masks of large surfaces, those covering at least four places."""
    still = np.stack([np.median(video, axis=0).astype(np.uint8) for video in videos])
    labels = palette.labels(still)
    masks = [np.isin(labels, surface) for surface in palette.surfaces_]
    cover = [block_means(mask.mean(axis=0)[..., None])[..., 0] for mask in masks]
    surfaces = [places > 0.6 for places in cover if (places > 0.6).sum() >= 4]
    return np.array(surfaces, dtype=bool).reshape(-1, GRID, GRID)


def _motions(
    mean: Colours, deviation: Colours
) -> tuple[Float64[np.ndarray, "256 6"], Float64[np.ndarray, "6 256"]]:
    """Basis of small affine motions of the mean picture, in deviations; its pseudo-inverse."""
    slopes = np.gradient(mean.mean(axis=-1))
    y, x = np.mgrid[:GRID, :GRID] / GRID - 0.5
    weight = 1 / deviation.mean(axis=-1)
    motions = [slope * field * weight for slope in slopes for field in (np.ones_like(x), y, x)]
    basis = np.stack(motions, axis=-1).reshape(-1, 6)
    return basis, np.linalg.pinv(basis)


def reduced(frame: Picture) -> Small:
    """Resize to 64 x 64 pixels: block means, or nearest pixels for smaller frames."""
    height, width = frame.shape[:2]
    if (height, width) == (SIDE, SIDE):
        return frame
    if min(height, width) < SIDE:
        rows, columns = (np.arange(SIDE) * side // SIDE for side in (height, width))
        return frame[rows][:, columns]
    rows, columns = (np.arange(SIDE + 1) * side // SIDE for side in (height, width))
    total = np.add.reduceat(frame, rows[:-1], axis=0, dtype=np.uint32)
    total = np.add.reduceat(total, columns[:-1], axis=1)
    area = np.diff(rows)[:, None] * np.diff(columns)
    return (total // area[..., None]).astype(np.uint8)


def block_means(picture: Float[np.ndarray, "64 64 c"]) -> Float[np.ndarray, "16 16 c"]:
    """Mean over each place.

    >>> block_means(np.ones((64, 64, 1))).sum()
    np.float64(256.0)
    """
    step = SIDE // GRID
    rows = np.add.reduce(picture.reshape(GRID, step, SIDE, -1), axis=1)
    return np.add.reduce(rows.reshape(GRID, GRID, step, -1), axis=2) / step**2


def texture(frame: Small) -> Places:
    """Mean brightness difference between neighbouring pixels in each place, in [0, 1]."""
    light = frame @ np.full(3, 1 / (3 * 255))
    edges = np.zeros_like(light)
    edges[:-1] += np.abs(np.diff(light, axis=0))
    edges[:, :-1] += np.abs(np.diff(light, axis=1))
    return block_means(edges[..., None])[..., 0]


def pieces(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    """Number and largest size of connected pieces.

    Returns:
        log(1 + number of pieces of at least `SPECK` pixels); square root of the largest's share.
    """
    from scipy.ndimage import label

    parts, number = label(mask)
    if not number:
        return 0.0, 0.0
    sizes = np.bincount(parts.ravel())[1:]
    return float(np.log1p((sizes >= SPECK).sum())), float(np.sqrt(sizes.max() / mask.size))
