"""Frames that are decoded only when indexed: windows of an mp4, and lists of JPEG images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8

from worldmodel import budgets

ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
"""PyAV converts colours in as many threads as there are cores since 17; before, always in one."""
REORDER_FRAMES = 16
"""H.264 reorders at most 16 frames: a seek this many frames early never lands too late."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""Demuxers that may open a video file."""
MAX_FILES = 64
"""Video files whose frame times are kept in memory."""


@dataclass(frozen=True)
class VideoFrames:
    """Frames `first` to `first + num_frames` of a video file, counted in display order."""

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
class EncodedFrames(ABC):
    """One encoded image per frame."""

    payloads: tuple[bytes, ...]
    where: str = "a list of images"
    """Source of the images, for error messages."""

    def __len__(self) -> int:
        return len(self.payloads)

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        """RGB frames of a contiguous window."""
        start, stop = contiguous(window, len(self))
        if start == stop:
            return np.empty((0, *self.size, 3), np.uint8)
        return np.stack([self._decode(index) for index in range(start, stop)])

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width, _ = self._decode(0).shape
        return height, width

    @abstractmethod
    def _decode(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """RGB pixels of one frame."""


class JpegFrames(EncodedFrames):
    """JPEG images, decoded bit for bit as TensorFlow does (fast integer transform)."""

    def jpeg(self, index: int) -> bytes:
        """JPEG bytes of one frame, unchanged; a JPEG writer can copy them."""
        return self.payloads[index]

    def _decode(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(self.payloads[index])
            budgets.require(height * width, budgets.IMAGE_PIXELS, f"{self.where}: frame {index}")
            return simplejpeg.decode_jpeg(self.payloads[index], fastdct=True)
        except ValueError as error:
            raise ValueError(f"{self.where}: frame {index} is no JPEG image ({error}).") from error


class PngFrames(EncodedFrames):
    """PNG images, colours as stored."""

    def _decode(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(BytesIO(self.payloads[index]), formats=["PNG"]) as image:
                budgets.require(image.width * image.height, budgets.IMAGE_PIXELS, self.where)
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
            raise ValueError(f"{self.where}: frame {index} is no PNG image ({error}).") from error


def encoded_frames(payloads: tuple[bytes, ...], where: str) -> EncodedFrames:
    """Frames of encoded images; the signature of the first image decides the type."""
    is_png = payloads[0].startswith(PNG_SIGNATURE)
    return PngFrames(payloads, where) if is_png else JpegFrames(payloads, where)


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
    """Number of frames in a video file, from its packets: a truncated file keeps its header."""
    return len(frame_times(path)[0])


def frame_times(path: Path) -> tuple[Int64[np.ndarray, " frames"], float]:
    """Time stamps of the frames in display order, in ticks from the first, and seconds per tick.

    Read from the packets, without decoding. Frames that an edit list hides are left out. Later
    calls for an unchanged file reuse the result.

    Raises:
        ValueError: if the video is unreadable, or frames lack a time stamp of their own.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _undecodable(path, error) from error
    return _frame_times(path, status.st_mtime_ns, status.st_size)


@lru_cache(MAX_FILES)
def _frame_times(path: Path, changed: int, size: int) -> tuple[np.ndarray, float]:
    with _opened(path) as container:
        stream = _video_stream(container, path)
        try:
            stamps = [
                packet.pts
                for packet in container.demux(stream)
                if packet.size and not packet.is_discard
            ]
        except av.error.FFmpegError as error:
            raise _undecodable(path, error) from error
        seconds_per_tick = float(stream.time_base or 0)
    if not stamps or not seconds_per_tick:
        raise ValueError(f"{path} holds no frames.")
    if None in stamps or len(set(stamps)) < len(stamps):
        raise ValueError(
            f"{path} has frames without a time stamp of their own, so rows cannot be matched with "
            "frames; write the video anew with one time stamp per frame."
        )
    times = np.sort(np.array(stamps, np.int64))
    times.flags.writeable = False
    return times, seconds_per_tick


def matched_rows(num_rows: int, num_frames: Mapping[str, int]) -> tuple[int, tuple[str, ...]]:
    """Number of rows of an episode that have a frame, and notes on dropped rows and frames.

    A camera may have one frame more or fewer than there are rows, because recorders can stop
    between the two. A surplus last frame, or a last row without a frame, is dropped.

    Args:
        num_rows: Rows of the episode.
        num_frames: Camera -> number of frames in its video.

    Raises:
        ValueError: if the numbers differ by more than one.

    >>> matched_rows(20, {"front": 21, "wrist": 19})
    (19, ('front has 21 frames for 20 rows: ...', 'wrist has 19 frames for 20 rows: ...'))
    """
    notes = []
    for camera, count in num_frames.items():
        if abs(count - num_rows) > 1 or not count:
            raise ValueError(f"camera {camera} has {count} frames for {num_rows} rows.")
        if count != num_rows:
            left_out = "the last frame" if count > num_rows else "the last row"
            notes.append(f"{camera} has {count} frames for {num_rows} rows: {left_out} is dropped.")
    return min(num_rows, *num_frames.values()), tuple(notes)


def decode_window(path: Path, start: int, stop: int) -> UInt8[np.ndarray, "time height width 3"]:
    """RGB frames `start` to `stop - 1` of a video, counted in display order.

    Frames are found by their time stamps, not by a frame rate, so pauses, jitter and concatenated
    videos cause no shift.
    """
    times, _ = frame_times(path)
    if stop > len(times):
        raise ValueError(
            f"{path} has no frame {len(times)}; it is truncated or shorter than declared."
        )
    frames: dict[int, np.ndarray] = {}
    with _opened(path) as container:
        stream = _video_stream(container, path)
        if start > REORDER_FRAMES:
            container.seek(int(times[start - REORDER_FRAMES]), stream=stream)
        try:
            for frame in container.decode(stream):
                index = _index(times, frame.pts, path)
                if start <= index < stop:
                    frames[index] = frame.to_ndarray(format="rgb24", **ONE_THREAD)
                if index >= stop - 1:
                    break
        except av.error.FFmpegError as error:
            raise _undecodable(path, error) from error
    if missing := set(range(start, stop)) - set(frames):
        raise ValueError(f"{path}: frame {min(missing)} cannot be decoded; the file is damaged.")
    return np.stack([frames[index] for index in range(start, stop)])


def _index(times: Int64[np.ndarray, " frames"], stamp: int | None, path: Path) -> int:
    """Index of a decoded frame in display order."""
    index = -1 if stamp is None else int(np.searchsorted(times, stamp))
    if not 0 <= index < len(times) or times[index] != stamp:
        raise ValueError(f"{path} has a frame at a time that no packet announces; it is damaged.")
    return index


def _opened(path: Path) -> Any:
    """Open the container of a video file.

    Only regular files are opened, and only by the demuxers in `CONTAINERS`, so a path or a playlist
    cannot reach a URL, a socket or a device.
    """
    try:
        real = path.resolve(strict=True)
        if not real.is_file():
            raise ValueError(f"{path} is no regular file; give a video file.")
        container = av.open(
            str(real),
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS},
        )
    except (OSError, RuntimeError, av.error.FFmpegError) as error:
        raise _undecodable(path, error) from error
    for stream in container.streams.video[:1]:
        context = stream.codec_context
        if context is not None:
            budgets.require(context.width * context.height, budgets.IMAGE_PIXELS, f"{path}: frame")
    return container


def _video_stream(container: Any, path: Path) -> Any:
    """The first video stream, set to report damage."""
    if not container.streams.video:
        raise ValueError(f"{path} holds no video stream.")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError(f"{path} is not a readable video (unknown codec); it is damaged.")
    stream.codec_context.options = {"err_detect": "explode"}  # errors, not grey patches
    # For small frames, threads cost more than decoding; the work is split over processes instead.
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def _undecodable(path: Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or error
    return ValueError(
        f"{path} is not a readable video ({reason}); it is missing, truncated or damaged."
    )
