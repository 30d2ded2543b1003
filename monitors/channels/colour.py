"""Colour channel: colours that no reference frame shows, and familiar colours that are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8

from worldmodel.monitors.channels.subsampling import distance_sample
from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.nuisances import Nuisance

SHIFT = 2
"""Bits dropped of every colour component: cells of 4 x 4 x 4 grey levels."""
SIDE = 256 >> SHIFT
WINDOW = 3
"""Side in pixels of the areas whose mean colours are compared: edges and noise average out."""
AREA_SHARE = 1 / 128
"""Share of a view's areas, the least familiar ones, over which its score is averaged."""
ANCHORS = 48
"""Familiar colours per view that are looked for in every frame."""
MEMORY = 16
"""Frames in a row without a familiar colour before it counts as missing."""
GRID = 32
"""Approximate number of areas per side in which familiar colours are looked for."""
STRENGTHS = (0.5, 1.0)
"""Shares of a nuisance's amount whose copies are familiar, too; colours change in finer steps."""
COLOUR_STEPS = np.linspace(0.25, 1, 4)
DARK = 16
"""Grey levels added before the logarithm: in dark pixels, noise is larger than any difference."""
LEAST_MOVED = 2.0
"""Smallest typical effect of the nuisances, in hundredths of the logarithm."""
LEAST_USUAL, USUAL = 0.5, 0.995
"""Floor and quantile over episodes of the distance at which a familiar colour may usually be."""

Video = UInt8[np.ndarray, "time *view height width 3"]


class ColourChannel:
    """Two signals of colours, which tolerate what declared nuisances do to them.

    Colours are means of 3 x 3 pixels. Their distances are taken in logarithmic colour, whitened by
    the covariance of what the nuisances change, so that 1 is a typical effect of a nuisance.

    `score`: distance of the least familiar areas to the colours of the reference frames and of
    their copies under nuisances. Detects small objects of unseen colour, which barely change the
    pooled features or the tokens at their position. A table holds the distance of each cell of the
    colour cube: one look-up per area.

    `missing_score`: how much farther than usual a colour that all familiar episodes show is from
    the nearest area of the last 16 frames. Detects objects repainted in colours that are familiar
    elsewhere. Colours are taken relative to the frame's median, so exposure does not matter.
    """

    LEARNED = ("whitener_", "table_", "anchors_", "usual_")

    def fit(self, videos: Sequence[Video], nuisances: Sequence[Nuisance] = ()) -> ColourChannel:
        """Fit to the frames of reference episodes and to their copies under each nuisance."""
        if not len(videos):
            raise ValueError("`videos` needs at least one video.")
        spatial = [nuisance for nuisance in nuisances if not nuisance.acts_on_colours]
        seen = np.zeros(SIDE**3, dtype=bool)
        moved = [np.zeros((0, 3))]
        rng = np.random.default_rng(0)
        for number, video in enumerate(videos):
            original = area_means(video)
            seen[_cells(original)] = True
            for nuisance in spatial:
                for strength in STRENGTHS:
                    copy = area_means(nuisance(video, strength, seed=number))
                    seen[_cells(copy)] = True
                rows = rng.integers(0, copy.size // 3, 100)
                before, after = (_logarithm(x.reshape(-1, 3)[rows]) for x in (original, copy))
                moved.append(after - before)
        self.whitener_ = _whitener(np.concatenate(moved))
        self._points = _points(self.whitener_)
        familiar = _with_colour_changes(seen, [n for n in nuisances if n.acts_on_colours])
        self.table_ = self._distances(familiar)
        self._fit_anchors(videos, nuisances, rng)
        return self

    def _distances(self, familiar: Bool[np.ndarray, " cell"]) -> np.ndarray:
        """Distance of every cell of the colour cube to the nearest familiar one."""
        from scipy.spatial import KDTree

        distance, _ = KDTree(self._points[familiar]).query(self._points)
        return np.asarray(distance, dtype=np.float16)  # half the size on disk, and exact enough

    def _fit_anchors(
        self, videos: Sequence[Video], nuisances: Sequence[Nuisance], rng: np.random.Generator
    ) -> None:
        """Choose the familiar colours of each view, and measure how far they usually are."""
        places = [self._places(video[::8]) for video in videos]
        self.anchors_ = np.stack(
            [
                _anchors([place[:, view].reshape(-1, 3) for place in places], rng)
                for view in range(places[0].shape[1])
            ]
        )
        copies = (
            nuisances[number % len(nuisances)](video, seed=number)
            for number, video in enumerate(videos)
            if nuisances
        )
        worst = [
            running_minimum(self.anchor_distances(video)).max(axis=0)
            for video in chain(videos, copies)
        ]
        self.usual_ = np.quantile(worst, USUAL, axis=0).clip(LEAST_USUAL)

    def area_scores(self, video: Video) -> Float64[np.ndarray, "time *view rows columns"]:
        """Distance of each 3 x 3 area to the familiar colours; 0 for familiar ones."""
        require_fitted(self, "table_")
        return self.table_[_cells(area_means(video))].astype(np.float64)

    def pixel_scores(self, video: Video) -> Float64[np.ndarray, "time *view height width"]:
        """Distance of each pixel's area; areas end at the picture's edge."""
        areas = self.area_scores(video)
        edges = []
        for side, count in zip(video.shape[-3:-1], areas.shape[-2:], strict=True):
            before = (side - count) // 2
            edges.append((before, side - count - before))
        return np.pad(areas, [(0, 0)] * (areas.ndim - 2) + edges, mode="edge")

    def score(self, video: Video) -> Float64[np.ndarray, " time"]:
        """Mean distance of the least familiar areas, the largest over views."""
        areas = self.area_scores(video)
        views = areas.reshape(len(video), -1, areas.shape[-2] * areas.shape[-1])
        count = max(1, round(AREA_SHARE * views.shape[-1]))
        worst = np.partition(views, -count, axis=-1)[..., -count:]
        return worst.mean(axis=-1).max(axis=-1)

    def anchor_distances(self, video: Video) -> Float64[np.ndarray, "time view anchor"]:
        """Distance of each familiar colour to the nearest area of each frame."""
        require_fitted(self, "anchors_")
        places = self._places(video)
        squares = (self.anchors_**2).sum(axis=-1)[..., None]
        distances = []
        for frame in places:  # one at a time: the products are large
            products = self.anchors_ @ frame.swapaxes(-1, -2)
            gaps = squares - 2 * products + (frame**2).sum(axis=-1)[:, None]
            distances.append(np.sqrt(gaps.min(axis=-1).clip(0)))
        return np.stack(distances).astype(np.float64)

    def missing_score(
        self, absences: Float[np.ndarray, "time view anchor"]
    ) -> Float64[np.ndarray, " time"]:
        """Excess over the usual distance of the most missed colour.

        Args:
            absences: `running_minimum` of `anchor_distances`.
        """
        return (absences - self.usual_).max(axis=(1, 2))

    def place_scores(
        self, video: Video, shape: tuple[int, ...]
    ) -> Float64[np.ndarray, "time *view h w"]:
        """Mean distance of the least familiar eighth of the pixels in each cell of a coarser map.

        `shape` is the shape of the map: [h, w] or [view, h, w]. Cells include every pixel they
        touch, so they overlap by a row or column where the sides do not divide evenly.
        """
        pixels = self.pixel_scores(video).reshape(len(video), *shape[:-2], *video.shape[-3:-1])
        rows, columns = (
            _windows(side, count) for side, count in zip(pixels.shape[-2:], shape[-2:], strict=True)
        )
        blocks = pixels[..., rows[:, None, :, None], columns[None, :, None, :]]
        flat = blocks.reshape(*blocks.shape[:-2], -1)
        count = max(1, flat.shape[-1] // 8)
        return np.partition(flat, -count, axis=-1)[..., -count:].mean(axis=-1)

    def _places(self, video: Video) -> Float32[np.ndarray, "time view place 3"]:
        """Whitened colours of a grid of areas, relative to their median in the frame and view."""
        areas = area_means(video.reshape(len(video), -1, *video.shape[-3:]))
        rows, columns = (max(2, side // GRID) for side in areas.shape[-3:-1])
        found = self._points[_cells(areas[..., ::rows, ::columns, :])]
        found = found.reshape(*found.shape[:2], -1, 3)
        return found - np.median(found, axis=2, keepdims=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "usual_")
        return {name: getattr(self, name) for name in self.LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ColourChannel:
        """Inverse of `arrays`."""
        channel = cls()
        for name in cls.LEARNED:
            setattr(channel, name, arrays[name])
        channel._points = _points(channel.whitener_)
        return channel


def running_minimum(
    distances: Float64[np.ndarray, "time view anchor"],
) -> Float64[np.ndarray, "time view anchor"]:
    """Minimum over the last `MEMORY` frames, or over all of them at the start of an episode."""
    return np.stack(
        [distances[max(0, t - MEMORY + 1) : t + 1].min(axis=0) for t in range(len(distances))]
    )


def area_means(video: Video) -> UInt8[np.ndarray, "time *view rows columns 3"]:
    """Mean colours of all 3 x 3 areas; smaller ones in smaller pictures."""
    height, width = (min(WINDOW, side) for side in video.shape[-3:-1])
    rows, columns = video.shape[-3] - height + 1, video.shape[-2] - width + 1
    wide = video.astype(np.uint16)
    tall = np.add.reduce([wide[..., i : i + rows, :, :] for i in range(height)], dtype=np.uint16)
    both = np.add.reduce([tall[..., i : i + columns, :] for i in range(width)], dtype=np.uint16)
    return ((both + height * width // 2) // (height * width)).astype(np.uint8)


def _cells(colours: UInt8[np.ndarray, "*any 3"]) -> Int[np.ndarray, "*any"]:
    """Index of each colour's cell in the colour cube."""
    parts = (colours >> SHIFT).astype(np.int32)
    return (parts[..., 0] * SIDE + parts[..., 1]) * SIDE + parts[..., 2]


def _centres() -> Float64[np.ndarray, "cell 3"]:
    """Colour at the centre of each cell."""
    return (np.indices((SIDE, SIDE, SIDE)).reshape(3, -1).T << SHIFT) + ((1 << SHIFT) - 1) / 2


def _logarithm(colours: np.ndarray) -> Float64[np.ndarray, "*any 3"]:
    """Colours in hundredths of their logarithm: 1 is about 1% brighter."""
    return 100 * np.log(colours.astype(np.float64) + DARK)


def _whitener(moved: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3 3"]:
    """Matrix that gives the effects of nuisances unit covariance.

    The largest hundredth is left out: edges that moved are no change of colour.
    """
    size = np.linalg.norm(moved, axis=1)
    moved = moved[size <= np.quantile(size, 0.99)] if len(size) else moved
    covariance = moved.T @ moved / max(1, len(moved)) + LEAST_MOVED**2 * np.eye(3)
    return np.linalg.inv(np.linalg.cholesky(covariance))


def _points(whitener: Float64[np.ndarray, "3 3"]) -> Float32[np.ndarray, "cell 3"]:
    """Whitened logarithmic colour of each cell."""
    return (_logarithm(_centres()) @ whitener.T).astype(np.float32)


def _with_colour_changes(
    seen: Bool[np.ndarray, " cell"], nuisances: Sequence[Nuisance]
) -> Bool[np.ndarray, " cell"]:
    """Add the cells that nuisances of colours move the seen ones to, in small steps."""
    familiar, colours = seen.copy(), np.rint(_centres()[seen]).astype(np.uint8)
    for nuisance in nuisances:
        for strength in COLOUR_STEPS:
            familiar[_cells(nuisance(colours[None, None], float(strength)))] = True
    return familiar


def _anchors(
    places: Sequence[Float32[np.ndarray, "n 3"]], rng: np.random.Generator
) -> Float32[np.ndarray, "anchor 3"]:
    """Colours that cover those of all episodes."""
    rows = np.concatenate([place[rng.integers(0, len(place), 600)] for place in places])
    chosen = distance_sample(rows.astype(np.float64), ANCHORS, rng=rng)
    return np.resize(chosen, (ANCHORS, 3)).astype(np.float32)  # repeats them if there are fewer


def _windows(side: int, count: int) -> Int[np.ndarray, "count length"]:
    """Indices of `count` windows of equal length that cover `side` pixels evenly."""
    starts = np.arange(count) * side // count
    length = int((-(-(np.arange(count) + 1) * side // count) - starts).max())
    return np.minimum(starts, side - length)[:, None] + np.arange(length)
