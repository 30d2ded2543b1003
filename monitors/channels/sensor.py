"""Sensor channel: is the input itself broken?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, UInt8

from worldmodel.monitors.channels.camera_mounting import CameraSetupCheck

BLANK_DEVIATION = 2.0
"""Grey levels: a view whose pixels vary less shows nothing."""
BLACK_MEAN = 16.0
"""Grey levels: a blank view darker than this is called black."""
FROZEN_REPEATS = 3
"""So many frames in a row equal to the one before them count as frozen, if the robot was told to
move."""
FROZEN_PATH = 0.02
"""Commanded motion (metres, or radians) that must change a picture."""
LARGEST_COMMAND = 10.0
"""Metres, radians or openings: no arm is told more in one step, whatever it was trained on."""
LARGEST_GAP = 1.5
"""Periods from a frame to the next; more, and at least one frame was left out."""
LATEST = 1e11
"""Seconds: no clock shows more since any origin, unless it counts milliseconds or less."""
LARGEST_LAG = 0.5
"""Periods from the first camera's frame to the last one's of the same step."""


class SensorError(ValueError):
    """A broken input; `code` names the fault for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class SensorChannel:
    """Finds frames and actions that no camera or policy in order would send. Constant memory.

    Args:
        frame_shape: Shape of a frame in order, [height, width, 3] or [view, height, width, 3].
        rate_hz: Frames per second; None: not known, and of times only their order is checked.
        mounting: How the cameras are wired and mounted; None: that is not checked.
        action_rows: Canonical actions, side by side, that are commanded at a frame.
    """

    def __init__(
        self,
        frame_shape: tuple[int, ...],
        *,
        rate_hz: float | None = None,
        mounting: CameraSetupCheck | None = None,
        action_rows: int = 1,
    ) -> None:
        if rate_hz is not None and not 0 < rate_hz < np.inf:
            raise ValueError(f"`rate_hz` must be above 0 and finite, or None, got {rate_hz}.")
        self.frame_shape, self.rate_hz, self.mounting = tuple(frame_shape), rate_hz, mounting
        self.action_rows = action_rows
        self.num_views = int(np.prod(self.frame_shape[:-3]))
        self.reset()

    def reset(self) -> None:
        """Forget the last frame: a new episode starts."""
        self._last: UInt8[np.ndarray, "view height width 3"] | None = None
        self._times: Float64[np.ndarray, " view"] | None = None
        self._motion = np.zeros(6)
        self._repeats = np.zeros(self.num_views, dtype=np.int64)
        self._path = np.zeros((self.num_views, 6))

    def check(
        self, observation: object, action: object
    ) -> UInt8[np.ndarray, "*view height width 3"]:
        """The frame of a healthy observation; raises `SensorError` otherwise.

        `action` is canonical, or None if nothing is commanded.
        """
        lateness = self._lateness(observation)
        frame = self._frame(observation)
        views = frame.reshape(-1, *frame.shape[-3:])
        self._track(views)
        self._motion = commanded_motion(action, self.action_rows)
        for view, pixels in enumerate(views):
            if pixels.std() < BLANK_DEVIATION:
                code = "black" if pixels.mean() < BLACK_MEAN else "blank"
                raise SensorError(code, f"view {view} is {code}: its pixels hardly vary.")
            if (
                self._repeats[view] >= FROZEN_REPEATS
                and np.abs(self._path[view]).max() > FROZEN_PATH
            ):
                same = self._repeats[view] + 1
                raise SensorError(
                    "frozen", f"view {view} shows {same} equal frames while the robot moves."
                )
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
        frame = np.asarray(frame)  # a subclass may mean other things by == and mean
        if not frame.size:
            raise SensorError("dropped", f"the image is empty, of shape {frame.shape}.")
        if np.issubdtype(frame.dtype, np.floating) and not np.isfinite(frame).all():
            raise SensorError("nan", "the image holds NaN or infinite values.")
        if frame.dtype != np.uint8:
            raise SensorError("dtype", f"the image must be uint8, got {frame.dtype}.")
        if self.frame_shape == (1, *frame.shape):
            frame = frame[None]  # the only view needs no axis of its own
        if frame.shape != self.frame_shape:
            given = len(frame) if frame.ndim == 4 else 1
            picture = frame.ndim in (3, 4) and frame.shape[-3:] == self.frame_shape[-3:]
            if picture and given < self.num_views:
                raise SensorError("dropped", f"only {given} of {self.num_views} views are there.")
            raise SensorError(
                "shape", f"the image must have shape {self.frame_shape}, got {frame.shape}."
            )
        return frame

    def _lateness(self, observation: object) -> str:
        """What is wrong with the times of a frame, which are kept; nothing if it has none."""
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
        """Count how long each view stood still, and how far the robot was told to go."""
        still = np.zeros(len(views), dtype=bool)
        if self._last is not None:
            still = (views == self._last).all(axis=(1, 2, 3))
        self._repeats = np.where(still, self._repeats + 1, 0)
        self._path = np.where(still[:, None], self._path + self._motion, 0.0)
        self._last = views.copy()


def commanded_motion(action: object, rows: int = 1) -> Float64[np.ndarray, " 6"]:
    """Translation and rotation of `rows` canonical actions side by side; zero if there is none.

    Rotations are added up as if small.
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
        raise SensorError("action", f"the action asks for {largest}, as no arm can do.")
    return numbers.astype(np.float64).reshape(rows, 7)[:, :6].sum(axis=0)


def capture_times(time_s: object, num_views: int) -> Float64[np.ndarray, " view"] | None:
    """One time per view, in seconds, of a number or one number per view; None if it is neither."""
    if isinstance(time_s, np.ma.MaskedArray) or not isinstance(
        time_s, int | float | np.number | list | tuple | np.ndarray
    ):
        return None
    try:
        with np.errstate(over="ignore"):
            given = np.asarray(time_s)
            times = given.astype(np.float64) if given.dtype.kind in "iuf" else np.array(np.nan)
    except ValueError:  # lists of several lengths
        return None
    if times.shape not in ((), (num_views,)) or not (np.abs(times) <= LATEST).all():
        return None
    return np.broadcast_to(times, (num_views,))


def _short(value: object) -> str:
    """A value for people: what it is, and only a plain number itself."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    return repr(value) if isinstance(value, float) else f"a value of type {type(value).__name__}"
