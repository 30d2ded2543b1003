"""Colour channel: distance of pixels to the colours of reference frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float64, Int, UInt8

from worldmodel.monitors.errors import require_fitted

SHIFT = 2
"""Bits dropped of every colour component: cells of 4 x 4 x 4 grey levels."""
SIDE = 256 >> SHIFT
PIXEL_SHARE = 1 / 128
"""Share of a view's pixels, the least familiar ones, over which its score is averaged."""

Video = UInt8[np.ndarray, "time *view height width 3"]


class ColourChannel:
    """Distance of a frame's pixels to the nearest colour of any reference frame, in grey levels.

    Detects small objects of unseen colour, which barely change the pooled features or the tokens at
    their position. A look-up table holds the distance of each cell of the colour cube (exact
    Euclidean distance transform, Felzenszwalb and Huttenlocher 2012): one look-up per pixel.
    """

    def fit(self, videos: Iterable[Video]) -> ColourChannel:
        """Fit to the frames of reference episodes."""
        from scipy.ndimage import distance_transform_edt

        seen = np.zeros(SIDE**3, dtype=bool)
        for video in videos:
            seen[np.unique(_cells(video))] = True
        if not seen.any():
            raise ValueError("`videos` needs at least one frame.")
        cube = (~seen).reshape(SIDE, SIDE, SIDE)
        distance = (1 << SHIFT) * distance_transform_edt(cube)
        self.table_ = distance.astype(np.float16)  # half the size on disk, and exact enough
        return self

    def pixel_scores(self, video: Video) -> Float64[np.ndarray, "time *view height width"]:
        """Distance of each pixel; 0 for familiar colours."""
        require_fitted(self, "table_")
        return self.table_.reshape(-1)[_cells(video)].astype(np.float64)

    def score(self, video: Video) -> Float64[np.ndarray, " time"]:
        """Mean distance of the least familiar pixels, the largest over views."""
        pixels = self.pixel_scores(video)
        views = pixels.reshape(len(video), -1, pixels.shape[-2] * pixels.shape[-1])
        count = max(1, round(PIXEL_SHARE * views.shape[-1]))
        worst = np.partition(views, -count, axis=-1)[..., -count:]
        return worst.mean(axis=-1).max(axis=-1)

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

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "table_")
        return {"table_": self.table_}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ColourChannel:
        """Inverse of `arrays`."""
        channel = cls()
        channel.table_ = arrays["table_"]
        return channel


def _cells(video: Video) -> np.ndarray:
    """Index of each pixel's cell in the colour cube."""
    parts = (video >> SHIFT).astype(np.int32)
    return (parts[..., 0] * SIDE + parts[..., 1]) * SIDE + parts[..., 2]


def _windows(side: int, count: int) -> Int[np.ndarray, "count length"]:
    """Indices of `count` windows of equal length that cover `side` pixels evenly."""
    starts = np.arange(count) * side // count
    length = int((-(-(np.arange(count) + 1) * side // count) - starts).max())
    return np.minimum(starts, side - length)[:, None] + np.arange(length)
