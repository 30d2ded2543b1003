"""Frames that are decoded only when indexed: windows of an mp4, and lists of JPEG images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from jaxtyping import UInt8

ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
"""PyAV converts colours in as many threads as there are cores since 17; before, always in one."""
REORDER_FRAMES = 16
"""H.264 reorders at most 16 frames: a key frame this much early is never shown too late."""


@dataclass(frozen=True)
class VideoFrames:
    """Frames `first` to `first + num_frames` of a video file, in display order."""

    path: Path
    num_frames: int
    first: int = 0

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        """RGB frames of a contiguous window; ValueError if the file does not hold them all."""
        start, stop = contiguous(window, self.num_frames)
        if start == stop:
            return np.empty((0, *self.size, 3), np.uint8)
        return decode_window(self.path, self.first + start, self.first + stop)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        with _opened(self.path) as container:
            context = _video_stream(container, self.path).codec_context
            return context.height, context.width


@dataclass(frozen=True)
class JpegFrames:
    """One JPEG image per frame, decoded bit for bit as TensorFlow does (fast integer transform)."""

    payloads: tuple[bytes, ...]
    where: str = "a list of JPEG images"
    """Where the images come from, for error messages."""

    def __len__(self) -> int:
        return len(self.payloads)

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        """RGB frames of a contiguous window."""
        start, stop = contiguous(window, len(self))
        if start == stop:
            return np.empty((0, *self.size, 3), np.uint8)
        return np.stack([self._decode(index) for index in range(start, stop)])

    def jpeg(self, index: int) -> bytes:
        """The image of one frame as it is stored; a writer of JPEG can pass it through."""
        return self.payloads[index]

    def _decode(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        try:
            return simplejpeg.decode_jpeg(self.payloads[index], fastdct=True)
        except ValueError as error:
            raise ValueError(f"{self.where}: frame {index} is no JPEG image ({error}).") from error

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width, _ = self._decode(0).shape
        return height, width


def contiguous(window: slice, length: int) -> tuple[int, int]:
    """Start and stop of a window clipped to `length`, as Python slices do.

    >>> contiguous(slice(-2, None), 5)
    (3, 5)
    """
    start, stop, step = window.indices(length)
    if step != 1:
        raise ValueError(f"`window` must be contiguous (step 1), got step {step}.")
    return start, max(start, stop)


def count_frames(path: Path) -> int:
    """Frames a video file really holds: its packets, since the header survives truncation."""
    with _opened(path) as container:
        try:
            return sum(
                packet.size > 0 for packet in container.demux(_video_stream(container, path))
            )
        except av.error.FFmpegError as error:
            raise _undecodable(path, error) from error


def decode_window(path: Path, start: int, stop: int) -> UInt8[np.ndarray, "time height width 3"]:
    """RGB frames `start` to `stop - 1` of a video of constant rate, in display order."""
    frames: list[np.ndarray] = []
    with _opened(path) as container:
        try:
            for index, frame in _indexed_frames(container, path, start):
                if index >= stop:
                    break
                if index == start + len(frames):
                    frames.append(frame.to_ndarray(format="rgb24", **ONE_THREAD))
        except av.error.FFmpegError as error:
            raise _undecodable(path, error) from error
    if len(frames) < stop - start:
        raise ValueError(
            f"{path} has no frame {start + len(frames)}; it is truncated or shorter than declared."
        )
    return np.stack(frames)


def _opened(path: Path) -> Any:
    """The open container of a video file."""
    try:
        return av.open(str(path), metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise _undecodable(path, error) from error


def _video_stream(container: Any, path: Path) -> Any:
    """The first video stream, set to report damage."""
    if not container.streams.video:
        raise ValueError(f"{path} holds no video stream.")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError(f"{path} is not a readable video (unknown codec); it is damaged.")
    stream.codec_context.options = {"err_detect": "explode"}  # errors, not grey patches
    # Small frames cost more to hand to another thread than to decode; work splits over processes.
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def _indexed_frames(container: Any, path: Path, start: int) -> Iterator[tuple[int, Any]]:
    """Display index and frame, from a key frame at or before `start`."""
    stream = _video_stream(container, path)
    seconds_per_tick, rate, origin = stream.time_base, stream.average_rate, stream.start_time or 0
    if not (rate and seconds_per_tick):
        raise ValueError(f"{path} declares no frame rate, so its frames cannot be found by number.")
    if start > REORDER_FRAMES:
        container.seek(
            origin + int((start - REORDER_FRAMES) / rate / seconds_per_tick), stream=stream
        )
    for frame in container.decode(stream):
        if frame.pts is None:
            raise ValueError(f"{path} has a frame without a time stamp.")
        yield round((frame.pts - origin) * seconds_per_tick * rate), frame


def _undecodable(path: Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or error
    return ValueError(
        f"{path} is not a readable video ({reason}); it is missing, truncated or damaged."
    )
