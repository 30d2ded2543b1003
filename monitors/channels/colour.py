"""Colour signal of the appearance channel: are there colours that no familiar frame holds?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float64, Int, UInt8

from worldmodel.monitors.errors import require_fitted

SHIFT = 2
"""Bits dropped of every colour component: cells of 4 x 4 x 4 grey levels."""
SIDE = 256 >> SHIFT
PIXEL_SHARE = 1 / 128
"""Share of a view's pixels, those of the least familiar colours, that its score is the mean of."""

Film = UInt8[np.ndarray, "time *view height width 3"]


class ColourChannel:
    """Distance of a frame's pixels to the nearest colour of any reference frame, in grey levels.

    A small object of an unusual colour changes neither the frame as a whole nor what a tokenizer
    makes of its place by much; its pixels still are of colours that were never there. The distance
    from every cell of the colour cube is tabled once (exact Euclidean distance transform,
    Felzenszwalb and Huttenlocher 2012), so that a frame costs one look-up per pixel.
    """

    def fit(self, films: Iterable[Film]) -> ColourChannel:
        """Learn from the frames of reference episodes."""
        from scipy.ndimage import distance_transform_edt

        seen = np.zeros(SIDE**3, dtype=bool)
        for film in films:
            seen[np.unique(_cells(film))] = True
        if not seen.any():
            raise ValueError("`films` needs at least one frame.")
        cube = (~seen).reshape(SIDE, SIDE, SIDE)
        distance = (1 << SHIFT) * distance_transform_edt(cube)
        self.table_ = distance.astype(np.float16)  # half of it on disk, and exact enough
        return self

    def pixel_scores(self, film: Film) -> Float64[np.ndarray, "time *view height width"]:
        """Distance of every pixel; 0 where its colour is familiar."""
        require_fitted(self, "table_")
        return self.table_.reshape(-1)[_cells(film)].astype(np.float64)

    def score(self, film: Film) -> Float64[np.ndarray, " time"]:
        """Mean distance of the least familiar pixels of each frame's least familiar view."""
        pixels = self.pixel_scores(film)
        views = pixels.reshape(len(film), -1, pixels.shape[-2] * pixels.shape[-1])
        count = max(1, round(PIXEL_SHARE * views.shape[-1]))
        worst = np.partition(views, -count, axis=-1)[..., -count:]
        return worst.mean(axis=-1).max(axis=-1)

    def place_scores(
        self, film: Film, shape: tuple[int, ...]
    ) -> Float64[np.ndarray, "time *view h w"]:
        """Mean distance of the least familiar eighth of the pixels at each place of a coarser map.

        `shape` is that of the map: [h, w] or [view, h, w]. A place takes in every pixel that any
        part of it covers, and where the sides do not divide a row or column more.
        """
        pixels = self.pixel_scores(film).reshape(len(film), *shape[:-2], *film.shape[-3:-1])
        rows, columns = (
            _windows(side, count) for side, count in zip(pixels.shape[-2:], shape[-2:], strict=True)
        )
        blocks = pixels[..., rows[:, None, :, None], columns[None, :, None, :]]
        flat = blocks.reshape(*blocks.shape[:-2], -1)
        count = max(1, flat.shape[-1] // 8)
        return np.partition(flat, -count, axis=-1)[..., -count:].mean(axis=-1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "table_")
        return {"table_": self.table_}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ColourChannel:
        """The inverse of `arrays`."""
        channel = cls()
        channel.table_ = arrays["table_"]
        return channel


def _cells(film: Film) -> np.ndarray:
    """Index of the colour cell of every pixel."""
    parts = (film >> SHIFT).astype(np.int32)
    return (parts[..., 0] * SIDE + parts[..., 1]) * SIDE + parts[..., 2]


def _windows(side: int, count: int) -> Int[np.ndarray, "count length"]:
    """Indices of `count` windows of one length that cover `side` pixels evenly."""
    starts = np.arange(count) * side // count
    length = int((-(-(np.arange(count) + 1) * side // count) - starts).max())
    return np.minimum(starts, side - length)[:, None] + np.arange(length)
