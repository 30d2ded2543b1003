"""Session of one robot with the monitor: message in, verdict out, line in the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.episodes.episode import MAX_STRETCH
from worldmodel.monitors.alert_log import Alert, AlertLog
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Evidence, Level, Verdict
from worldmodel.networks.images import resize, to_model, to_pixels
from worldmodel.runtime.client import pack
from worldmodel.runtime.wire import ArrayError, unpack


class NotMsgpackError(ValueError):
    """Bytes that are not msgpack."""


@dataclass(frozen=True)
class Request:
    """One step of a robot."""

    observation: Any
    """Camera -> frame, or an array of all views; the monitor handles anything else. The optional
    key "time_s" is the time at which the frames were taken."""
    action: Any
    """The canonical action commanded at this frame, or None."""
    reset: bool
    """Whether this step starts a new episode."""
    number: int | None
    """Number of the message, chosen by the client and returned with the reply."""


def read_request(message: object) -> Request:
    """Parse a message; unknown keys are ignored.

    Raises:
        ValueError: A key is missing or has the wrong type.
    """
    if not isinstance(message, Mapping) or "observation" not in message:
        raise ValueError('A message must be a map with the key "observation".')
    reset, number = message.get("reset", False), message.get("id")
    if not isinstance(reset, bool):
        raise ValueError(f'"reset" must be true or false, got {type(reset).__name__}.')
    if number is not None and type(number) is not int:
        raise ValueError(f'"id" must be an integer, got {type(number).__name__}.')
    return Request(message["observation"], message.get("action"), reset, number)


def as_message(verdict: Verdict) -> dict[str, Any]:
    """All fields of a verdict, without loss of precision."""
    return {
        "level": verdict.level.name.lower(),
        "causes": list(verdict.causes),
        "evidence": {name: vars(evidence) for name, evidence in verdict.evidence.items()},
        "trust_map": verdict.trust_map,
        "latency_s": verdict.latency_s,
    }


def scaled(frame: object, size: tuple[int, ...]) -> object:
    """Resize a frame to the monitor's size (height, width).

    A frame of another aspect ratio, and anything that is no frame, is returned unchanged: the
    sensor channel reports it.
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3:
        return frame
    height, width, channels = frame.shape
    if channels != 3 or 0 in frame.shape or (height, width) == size:
        return frame
    if abs(math.log(width * size[0] / (height * size[1]))) >= MAX_STRETCH:
        return frame
    return to_pixels(resize(to_model(torch.from_numpy(frame)), (size[0], size[1]))).numpy()


class WatchSession:
    """Monitor of one robot, its step counter and its log.

    Args:
        monitor: Monitor of this session alone.
        cameras: Camera names, in the order of its views.
        log: JSON Lines file with one line per verdict, created with the first verdict; None: no
            log.
    """

    def __init__(
        self, monitor: RuntimeMonitor, cameras: Sequence[str], log: Path | None = None
    ) -> None:
        self.monitor, self.cameras, self.log = monitor, tuple(cameras), log
        self.episode, self.step = 0, -1
        self._lines: AlertLog | None = None

    def answer(self, data: bytes) -> bytes:
        """Reply to a message: a verdict, or {"error": one sentence}.

        Raises:
            NotMsgpackError: `data` is not msgpack.
        """
        try:
            message = unpack(data)
        except ArrayError as error:
            return pack({"error": str(error), "id": None})
        except ValueError as error:
            raise NotMsgpackError(str(error) or type(error).__name__) from error
        try:
            request = read_request(message)
        except ValueError as error:
            return pack({"error": str(error), "id": None})
        verdict = self._judge(request)
        return pack({**as_message(verdict), "step": self.step, "id": request.number})

    def _judge(self, request: Request) -> Verdict:
        if request.reset and self.step >= 0:
            self.monitor.reset()
            self.episode, self.step = self.episode + 1, -1
        self.step += 1
        camera, frames = self._frames(request.observation)
        if isinstance(request.observation, Mapping) and "time_s" in request.observation:
            frames = {"image": frames, "time_s": request.observation["time_s"]}
        verdict = _named(self.monitor.update(frames, request.action), camera)
        try:
            self._keep(verdict)
        except (OSError, ValueError) as error:
            note = f"the verdict was not logged: {error}"
            failure = {"monitor.log": Evidence(None, None, note)}
            return replace(verdict, level=Level.STOP, causes=("monitor.log",), evidence=failure)
        return verdict

    def _frames(self, observation: object) -> tuple[str | None, object]:
        """All views at the monitor's size; or one invalid view and the name of its camera."""
        expected = self.monitor.frame_shape_
        views = self._views(observation)
        if views is None:
            return None, observation
        valid = []
        for camera, view in views.items():
            if not isinstance(view, np.ndarray):
                return camera, view
            if view.shape != expected[-3:] or view.dtype != np.uint8:
                return camera, view[None] if view.shape == expected else view
            valid.append(view)
        return None, np.stack(valid).reshape(expected)

    def _views(self, observation: object) -> dict[str, object] | None:
        """Camera -> frame at the monitor's size, in its order; None if there are none."""
        if isinstance(observation, np.ndarray):
            array = observation[None] if observation.ndim == 3 else observation
            if array.ndim != 4 or len(array) != len(self.cameras):
                return None
            observation = dict(zip(self.cameras, array, strict=True))
        if not isinstance(observation, Mapping):
            return None
        size = self.monitor.frame_shape_[-3:-1]
        return {camera: scaled(observation.get(camera), size) for camera in self.cameras}

    def _keep(self, verdict: Verdict) -> None:
        if self.log is None:
            return
        if self._lines is None:
            self._lines = AlertLog(self.log, trust_maps=True)
        self._lines.write(Alert(step=self.step, verdict=verdict, episode=str(self.episode)))

    def imagine(self) -> None:
        """Predict the next frame while the robot moves, if the monitor has an `OnlinePredictor`."""
        self.monitor.imagine()

    def close(self) -> None:
        """Close the log."""
        if self._lines is not None:
            self._lines.close()


def _named(verdict: Verdict, camera: str | None) -> Verdict:
    """Verdict with the name of the invalid camera in its evidence."""
    if camera is None:
        return verdict
    cause = verdict.causes[0]
    evidence = verdict.evidence[cause]
    note = f"camera {camera!r}: {evidence.note}"
    return replace(verdict, evidence={**verdict.evidence, cause: replace(evidence, note=note)})
