"""Session of one robot with the monitor: message in, verdict out, line in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldmodel.monitors.alert_log import Alert, AlertLog
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Evidence, Level, Verdict
from worldmodel.runtime.observation import checked_frames, named_observation
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
    if not isinstance(message, Mapping):
        raise ValueError('A message must be a map with the key "observation".')
    reset, number = message.get("reset", False), message.get("id")
    if not isinstance(reset, bool):
        raise ValueError(f'"reset" must be true or false, got {type(reset).__name__}.')
    if number is not None and type(number) is not int:
        raise ValueError(f'"id" must be an integer, got {type(number).__name__}.')
    return Request(named_observation(message), message.get("action"), reset, number)


def as_message(verdict: Verdict) -> dict[str, Any]:
    """All fields of a verdict, without loss of precision."""
    return {
        "level": verdict.level.name.lower(),
        "causes": list(verdict.causes),
        "evidence": {name: vars(evidence) for name, evidence in verdict.evidence.items()},
        "trust_map": verdict.trust_map,
        "latency_s": verdict.latency_s,
    }


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

    def answer(self, data: bytes) -> dict[str, Any]:
        """Reply to a message: a verdict, or {"error": one sentence}.

        The latency of the verdict, and its deadline, count from here: parsing and scaling included.

        Raises:
            NotMsgpackError: `data` is not msgpack.
        """
        started = self.monitor.clock()
        try:
            message = unpack(data)
        except ArrayError as error:
            return {"error": str(error), "id": None}
        except ValueError as error:
            raise NotMsgpackError(str(error) or type(error).__name__) from error
        try:
            request = read_request(message)
        except ValueError as error:
            return {"error": str(error), "id": None}
        verdict = self._judge(request, started)
        return {**as_message(verdict), "step": self.step, "id": request.number}

    def _judge(self, request: Request, started: float) -> Verdict:
        if request.reset and self.step >= 0:
            self.monitor.reset()
            self.episode, self.step = self.episode + 1, -1
        self.step += 1
        shown = checked_frames(request.observation, self.cameras, self.monitor.frame_shape_)
        frames = shown.frames
        if isinstance(request.observation, Mapping) and "time_s" in request.observation:
            frames = {"image": frames, "time_s": request.observation["time_s"]}
        verdict = self.monitor.update(frames, request.action, started=started)
        verdict = _named(verdict, shown.camera, shown.note)
        try:
            self._keep(verdict)
        except (OSError, ValueError) as error:
            note = f"the verdict was not logged: {error}"
            failure = {"monitor.log": Evidence(None, None, note)}
            return replace(verdict, level=Level.STOP, causes=("monitor.log",), evidence=failure)
        return verdict

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


def _named(verdict: Verdict, camera: str | None, note: str | None) -> Verdict:
    """Verdict with the invalid camera, and what is wrong with it, in its evidence."""
    if camera is None:
        return verdict
    cause = verdict.causes[0]
    evidence = verdict.evidence[cause]
    note = f"camera {camera!r}: {note or evidence.note}"
    return replace(verdict, evidence={**verdict.evidence, cause: replace(evidence, note=note)})
