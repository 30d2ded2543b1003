"""Sensor channel: is the input itself broken?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, UInt8

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


class SensorError(ValueError):
    """A broken input; `code` names the fault for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class SensorChannel:
    """Finds frames and actions that no camera or policy in order would send. Constant memory."""

    def __init__(self, frame_shape: tuple[int, ...]) -> None:
        self.frame_shape = frame_shape
        self.reset()

    def reset(self) -> None:
        """Forget the last frame: a new episode starts."""
        num_views = int(np.prod(self.frame_shape[:-3]))
        self._last: UInt8[np.ndarray, "view height width 3"] | None = None
        self._motion = np.zeros(6)
        self._repeats = np.zeros(num_views, dtype=np.int64)
        self._path = np.zeros((num_views, 6))

    def check(
        self, observation: object, action: object
    ) -> UInt8[np.ndarray, "*view height width 3"]:
        """The frame of a healthy observation; raises `SensorError` otherwise.

        `action` is canonical, or None if nothing is commanded.
        """
        frame = self._frame(observation)
        views = frame.reshape(-1, *frame.shape[-3:])
        self._track(views)
        self._motion = commanded_motion(action)
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
        return frame

    def _frame(self, observation: object) -> UInt8[np.ndarray, "*view height width 3"]:
        frame = observation.get("image") if isinstance(observation, Mapping) else observation
        if not isinstance(frame, np.ndarray) or isinstance(frame, np.ma.MaskedArray):
            raise SensorError("missing", f"expected an image array, got {type(frame).__name__}.")
        frame = np.asarray(frame)  # a subclass may mean other things by == and mean
        if np.issubdtype(frame.dtype, np.floating) and not np.isfinite(frame).all():
            raise SensorError("nan", "the image holds NaN or infinite values.")
        if frame.dtype != np.uint8:
            raise SensorError("dtype", f"the image must be uint8, got {frame.dtype}.")
        if frame.shape != self.frame_shape:
            raise SensorError(
                "shape", f"the image must have shape {self.frame_shape}, got {frame.shape}."
            )
        return frame

    def _track(self, views: UInt8[np.ndarray, "view height width 3"]) -> None:
        """Count how long each view stood still, and how far the robot was told to go."""
        still = np.zeros(len(views), dtype=bool)
        if self._last is not None:
            still = (views == self._last).all(axis=(1, 2, 3))
        self._repeats = np.where(still, self._repeats + 1, 0)
        self._path = np.where(still[:, None], self._path + self._motion, 0.0)
        self._last = views.copy()


def commanded_motion(action: object) -> Float64[np.ndarray, " 6"]:
    """Translation and rotation of a canonical action; zero if there is none."""
    if action is None:
        return np.zeros(6)
    if not isinstance(action, np.ndarray) or isinstance(action, np.ma.MaskedArray):
        got = type(action).__name__
        raise SensorError("action", f"the action must be an array of 7 numbers, got {got}.")
    numbers = np.asarray(action)
    if numbers.shape != (7,):
        got = str(numbers.shape)
        raise SensorError("action", f"the action must be an array of 7 numbers, got shape {got}.")
    if not np.issubdtype(numbers.dtype, np.floating) or not np.isfinite(numbers).all():
        raise SensorError("action", "the action must hold finite floating-point numbers.")
    if np.abs(numbers).max() > LARGEST_COMMAND:
        largest = f"more than {LARGEST_COMMAND:g} metres, radians or openings"
        raise SensorError("action", f"the action asks for {largest}, as no arm can do.")
    return numbers[:6].astype(np.float64)
