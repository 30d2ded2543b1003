"""Sensor channel: detects broken camera frames, time stamps and actions."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, UInt8

from worldmodel.monitors.channels.camera_mounting import CameraSetupCheck
from worldmodel.monitors.channels.stillness import LENGTH, PictureStep, StillnessCheck

BLANK_DEVIATION = 2.0
"""Grey levels: a view with a smaller standard deviation is blank."""
BLACK_MEAN = 16.0
"""Grey levels: a blank view with a smaller mean is black."""
FROZEN_REPEATS = 3
"""Consecutive repeats of a frame that count as frozen, if the robot was commanded to move."""
FROZEN_PATH = 0.02
"""Commanded motion in metres or radians that must change a picture."""
LARGEST_COMMAND = 10.0
"""Metres, radians or gripper openings: larger commands per step are impossible for any arm."""
LARGEST_GAP = 1.5
"""Frame periods between frames; a longer gap means a dropped frame."""
LATEST = 1e11
"""Seconds: a larger time stamp is in another unit, such as milliseconds."""
LARGEST_LAG = 0.5
"""Frame periods between the first and the last camera's frame of one step."""


class SensorError(ValueError):
    """Raised for a broken input; `code` is machine-readable, the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class SensorChannel:
    """Detects frames and actions that no working camera or policy sends. Constant memory.

    Args:
        frame_shape: Shape of a valid frame, [height, width, 3] or [view, height, width, 3].
        rate_hz: Expected frames per second; None: only the order of time stamps is checked.
        mounting: Fitted camera setup check; None: the setup is not checked.
        stillness: Fitted stillness check; None: only exact repeats of whole frames are detected.
        action_rows: Canonical actions commanded per frame, concatenated.
    """

    def __init__(
        self,
        frame_shape: tuple[int, ...],
        *,
        rate_hz: float | None = None,
        mounting: CameraSetupCheck | None = None,
        stillness: StillnessCheck | None = None,
        action_rows: int = 1,
    ) -> None:
        if rate_hz is not None and not 0 < rate_hz < np.inf:
            raise ValueError(f"`rate_hz` must be above 0 and finite, or None, got {rate_hz}.")
        self.frame_shape, self.rate_hz, self.mounting = tuple(frame_shape), rate_hz, mounting
        self.stillness, self.action_rows = stillness, action_rows
        self.num_views = int(np.prod(self.frame_shape[:-3]))
        self.clear()

    def clear(self) -> None:
        """Forget all frames."""
        self._last: UInt8[np.ndarray, "view height width 3"] | None = None
        self._times: Float64[np.ndarray, " view"] | None = None
        self._motion = np.zeros(6)
        self._repeats = np.zeros(self.num_views, dtype=np.int64)
        self._path = np.zeros((self.num_views, 6))
        self._steps: deque[PictureStep] = deque(maxlen=LENGTH)
        self._num_frames = 0

    def reset(self) -> None:
        """Start a new episode.

        Frames of an episode that was too short to find a frozen camera in count in the next one:
        a reset with every step does not hide it.
        """
        if self._num_frames >= LENGTH:
            self.clear()
        self._times = None
        self._num_frames = 0

    def check(
        self, observation: object, action: object
    ) -> UInt8[np.ndarray, "*view height width 3"]:
        """Return the frame of a valid observation; raise `SensorError` otherwise.

        `action` is canonical, or None if nothing is commanded.
        """
        lateness = self._lateness(observation)
        frame = self._frame(observation)
        views = frame.reshape(-1, *frame.shape[-3:])
        before = self._last
        self._track(views)
        self._motion = commanded_motion(action, self.action_rows)
        if self.stillness is not None:
            step = PictureStep.of(views, before, self._motion, starts=not self._num_frames)
            self._steps.append(step)
        self._num_frames += 1
        for view, pixels in enumerate(views):
            if pixels.std() < BLANK_DEVIATION:
                code = "black" if pixels.mean() < BLACK_MEAN else "blank"
                raise SensorError(code, f"view {view} is {code}: its pixels barely vary.")
            if (
                self._repeats[view] >= FROZEN_REPEATS
                and np.abs(self._path[view]).max() > FROZEN_PATH
            ):
                same = self._repeats[view] + 1
                raise SensorError(
                    "frozen",
                    f"view {view} shows the same frame {same} times while the robot moves.",
                )
        if self.stillness is not None and (stopped := self.stillness.find(self._steps)):
            raise SensorError("frozen", stopped)
        if lateness:
            raise SensorError("late", lateness)
        mix_up = self.mounting.find(views) if self.mounting else None
        if mix_up:
            raise SensorError("swapped", str(mix_up))
        return frame

    def _frame(self, observation: object) -> UInt8[np.ndarray, "*view height width 3"]:
        frame = observation.get("image") if isinstance(observation, Mapping) else observation
        if not isinstance(frame, np.ndarray) or isinstance(frame, np.ma.MaskedArray):
            got = type(frame).__name__
            raise SensorError("dropped", f"there is no image: expected an array, got {got}.")
        frame = np.asarray(frame)  # a subclass may override == and mean
        if not frame.size:
            raise SensorError("dropped", f"the image is empty, of shape {frame.shape}.")
        if np.issubdtype(frame.dtype, np.floating) and not np.isfinite(frame).all():
            raise SensorError("nan", "the image holds NaN or infinite values.")
        if frame.dtype != np.uint8:
            raise SensorError("dtype", f"the image must be uint8, got {frame.dtype}.")
        if self.frame_shape == (1, *frame.shape):
            frame = frame[None]  # the view axis may be omitted for a single view
        if frame.shape != self.frame_shape:
            num_received = len(frame) if frame.ndim == 4 else 1
            picture = frame.ndim in (3, 4) and frame.shape[-3:] == self.frame_shape[-3:]
            if picture and num_received < self.num_views:
                raise SensorError(
                    "dropped", f"only {num_received} of {self.num_views} views arrived."
                )
            raise SensorError(
                "shape", f"the image must have shape {self.frame_shape}, got {frame.shape}."
            )
        return frame

    def _lateness(self, observation: object) -> str:
        """Fault in the frame's time stamps, '' if none; stores them for the next frame."""
        times, before = None, self._times
        self._times = None
        if isinstance(observation, Mapping) and "time_s" in observation:
            times = capture_times(observation["time_s"], self.num_views)
            if times is None:
                needed = "one number" + f" or {self.num_views}" * (self.num_views > 1)
                got = _short(observation["time_s"])
                return f"`time_s` must be {needed} of at most {LATEST:g} seconds, got {got}."
            self._times = times
        if times is None:
            return ""
        lag = float(times.max() - times.min())
        if self.rate_hz and lag * self.rate_hz > LARGEST_LAG:
            return f"the views were taken {lag:.3g} s apart, at {self.rate_hz:g} frames per second."
        if before is None:
            return ""
        gaps = times - before
        view = int(gaps.argmin())
        if gaps[view] == 0:
            return f"view {view} was taken at the same time as the frame before it."
        if gaps[view] < 0:
            return f"view {view} was taken {-gaps[view]:.3g} s before the frame before it."
        view = int(gaps.argmax())
        if self.rate_hz and gaps[view] * self.rate_hz > LARGEST_GAP:
            return (
                f"view {view} was taken {gaps[view]:.3g} s after the frame before it, at "
                f"{self.rate_hz:g} frames per second."
            )
        return ""

    def _track(self, views: UInt8[np.ndarray, "view height width 3"]) -> None:
        """Count repeated frames per view, and sum the motion commanded meanwhile."""
        still = np.zeros(len(views), dtype=bool)
        if self._last is not None:
            still = (views == self._last).all(axis=(1, 2, 3))
        self._repeats = np.where(still, self._repeats + 1, 0)
        self._path = np.where(still[:, None], self._path + self._motion, 0.0)
        self._last = views.copy()


def commanded_motion(action: object, rows: int = 1) -> Float64[np.ndarray, " 6"]:
    """Total translation and rotation of `rows` concatenated canonical actions; zero for None.

    Rotations are added as small angles.
    """
    width = 7 * rows
    if action is None:
        return np.zeros(6)
    if not isinstance(action, np.ndarray) or isinstance(action, np.ma.MaskedArray):
        got = type(action).__name__
        raise SensorError("action", f"the action must be an array of {width} numbers, got {got}.")
    numbers = np.asarray(action)
    if numbers.shape != (width,):
        got = f"shape {numbers.shape}"
        raise SensorError("action", f"the action must be an array of {width} numbers, got {got}.")
    if not np.issubdtype(numbers.dtype, np.floating) or not np.isfinite(numbers).all():
        raise SensorError("action", "the action must hold finite floating-point numbers.")
    if np.abs(numbers).max() > LARGEST_COMMAND:
        largest = f"more than {LARGEST_COMMAND:g} metres, radians or openings"
        raise SensorError("action", f"the action asks for {largest}, which no arm can do.")
    return numbers.astype(np.float64).reshape(rows, 7)[:, :6].sum(axis=0)


def capture_times(time_s: object, num_views: int) -> Float64[np.ndarray, " view"] | None:
    """Capture time per view in seconds, from one number or one per view; None if invalid."""
    if isinstance(time_s, np.ma.MaskedArray) or not isinstance(
        time_s, int | float | np.number | list | tuple | np.ndarray
    ):
        return None
    try:
        with np.errstate(over="ignore"):
            stamps = np.asarray(time_s)
            times = stamps.astype(np.float64) if stamps.dtype.kind in "iuf" else np.array(np.nan)
    except ValueError:  # ragged lists
        return None
    if times.shape not in ((), (num_views,)) or not (np.abs(times) <= LATEST).all():
        return None
    return np.broadcast_to(times, (num_views,))


def _short(value: object) -> str:
    """Describe a value in a message: its type, or the number itself."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    return repr(value) if isinstance(value, float) else f"a value of type {type(value).__name__}"
