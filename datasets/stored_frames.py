"""Stored frames of the clip store: concatenated JPEG bytes, or raw pixels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import simplejpeg
import zarr
from jaxtyping import UInt8

from worldmodel.datasets.trajectory import Frames
from worldmodel.datasets.video import contiguous
from worldmodel.datasets.zarr_folder import (
    new_array,
    open_array,
    read_rows,
    rows_per_chunk,
    typed_attributes,
)
from worldmodel.structured_files import Count

JPEG_QUALITY = 95
JPEG_CHUNK_BYTES = 2**18
BLOCK_BYTES = 2**27
"""Bytes of decoded pixels that a writer holds in memory at a time."""


def encode_jpeg(frame: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """One RGB frame as JPEG of quality 95 without chroma subsampling."""
    frame = np.ascontiguousarray(frame)
    return simplejpeg.encode_jpeg(
        frame, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
    )


class JpegLayout(msgspec.Struct):
    """Attributes of the array of JPEG bytes."""

    offsets: list[Count]
    fastdct: bool


class StoredJpegFrames:
    """Frames of one camera and episode, stored as concatenated JPEG bytes.

    Frame i is bytes offsets[i] to offsets[i + 1]; `offsets` is an attribute of the array. So is
    `fastdct`: true for bytes copied from a source whose reader uses the fast transform, as
    TensorFlow does. That transform is on average 1 grey level too dark in red and blue, so bytes
    encoded here are decoded by the accurate one.
    """

    def __init__(self, path: Path, size: tuple[int, int], num_frames: int) -> None:
        self.path = path
        self.size = size
        self.num_frames = num_frames

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        start, stop = contiguous(window, len(self))
        offsets = self._jpegs.offsets[start : stop + 1]
        data = read_rows(self._blob, slice(offsets[0], offsets[-1]))
        frames = np.empty((stop - start, *self.size, 3), np.uint8)
        for i, frame in enumerate(frames):
            image = data[offsets[i] - offsets[0] : offsets[i + 1] - offsets[0]]
            try:
                simplejpeg.decode_jpeg(image, "RGB", fastdct=self.fastdct, buffer=frame)
            except ValueError as error:
                where = f"{self.path}: frame {start + i}"
                raise ValueError(f"{where} is no JPEG image ({error}).") from error
        return frames

    def jpeg(self, index: int) -> bytes:
        """The stored JPEG bytes of one frame."""
        start, stop = self._jpegs.offsets[index : index + 2]
        return read_rows(self._blob, slice(start, stop)).tobytes()

    @property
    def fastdct(self) -> bool:
        """Whether frames are decoded with the fast integer transform."""
        return self._jpegs.fastdct

    @cached_property
    def _blob(self) -> zarr.Array[Any]:
        return open_array(self.path)

    @cached_property
    def _jpegs(self) -> JpegLayout:
        """Offsets, which rise within the stored bytes."""
        layout = typed_attributes(self.path, JpegLayout)
        offsets, num_bytes = layout.offsets, self._blob.shape[0] if self._blob.shape else 0
        rises = all(low < high for low, high in pairwise(offsets))
        if len(offsets) != self.num_frames + 1 or not rises or offsets[-1] > num_bytes:
            raise ValueError(
                f"{self.path}: its `offsets` do not place {self.num_frames} frames in {num_bytes} "
                "bytes; copy it again."
            )
        return layout


class StoredRawFrames:
    """Frames of one camera and episode, stored as pixels."""

    def __init__(self, path: Path, size: tuple[int, int], num_frames: int) -> None:
        self.path = path
        self.size = size
        self.num_frames = num_frames

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        start, stop = contiguous(window, len(self))
        return read_rows(self._pixels, slice(start, stop))

    @cached_property
    def _pixels(self) -> zarr.Array[Any]:
        array = open_array(self.path)
        expected = (self.num_frames, *self.size, 3)
        if array.shape != expected or array.dtype != np.uint8:
            raise ValueError(
                f"{self.path} holds {array.dtype} of shape {array.shape}, expected uint8 of "
                f"{expected}; copy it again."
            )
        return array


FRAME_CLASSES: dict[str, type[StoredJpegFrames] | type[StoredRawFrames]] = {
    "jpeg": StoredJpegFrames,
    "raw": StoredRawFrames,
}
"""Encoding of a store -> class that reads its frames."""


def write_frames(group: zarr.Group, name: str, frames: Frames, encoding: str) -> None:
    """Write one camera of one episode as array `name` of a group."""
    if encoding == "jpeg":
        write_jpeg_frames(group, name, frames)
    else:
        write_raw_frames(group, name, frames)


def write_jpeg_frames(group: zarr.Group, name: str, frames: Frames) -> None:
    """Write JPEG bytes; those of a source with `jpeg(index)` are copied unchanged."""
    stored = getattr(frames, "jpeg", None)
    images: list[bytes] = []
    for block in blocks(frames, 1):
        pixels = frames[block]  # decode copied bytes too, to reject broken images
        numbers = range(block.start, block.stop)
        images += [stored(i) for i in numbers] if stored else [encode_jpeg(p) for p in pixels]
    offsets = np.cumsum([0, *map(len, images)]).tolist()
    num_chunks = -(-offsets[-1] // JPEG_CHUNK_BYTES)
    fastdct = getattr(frames, "fastdct", True) if stored else False
    new_array(
        group,
        name,
        data=np.frombuffer(b"".join(images), np.uint8),
        chunks=(min(offsets[-1], JPEG_CHUNK_BYTES),),
        shards=(num_chunks * JPEG_CHUNK_BYTES,) if num_chunks > 1 else None,
        attributes={"encoding": "jpeg", "offsets": offsets, "fastdct": fastdct},
    )


def write_raw_frames(group: zarr.Group, name: str, frames: Frames) -> None:
    """Write pixels in zstd-compressed chunks of about a megabyte."""
    height, width = frames.size
    shape = (len(frames), height, width, 3)
    rows = rows_per_chunk(len(frames), height * width * 3)
    chunks = (rows, *shape[1:])
    array = new_array(group, name, shape=shape, chunks=chunks, dtype=np.uint8, compress=True)
    for block in blocks(frames, rows):
        array[block] = frames[block]


def blocks(frames: Frames, rows: int) -> Iterator[slice]:
    """Large windows, each a multiple of `rows` frames: small windows of a video decode slowly."""
    height, width = frames.size
    length = rows * max(1, BLOCK_BYTES // (rows * height * width * 3))
    for start in range(0, len(frames), length):
        yield slice(start, min(start + length, len(frames)))
