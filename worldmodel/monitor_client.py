"""Ask a running `worldmodel watch --listen` for its verdict on every step of a robot.

Copy this one file beside the robot's code: it needs numpy, msgpack and websockets, nothing else.

    with MonitorClient("ws://127.0.0.1:8765") as monitor:
        monitor.reset()  # at the start of every episode
        verdict = monitor.update({"front": frame}, action)
        if verdict.level >= Level.DEGRADE: ...  # hand over to the fallback

Messages are msgpack with numpy arrays in the wire format of openpi's policy servers.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

NO_ANSWER = "no answer from the monitor"
"""Cause of the `stop` that stands for every missing, late or unreadable answer."""


class Level(IntEnum):
    """How much to rely on the model at this step, from full to not at all."""

    TRUST = 0
    NOTICE = 1
    DEGRADE = 2
    STOP = 3


@dataclass(frozen=True)
class Verdict:
    """What the monitor said about one step."""

    level: Level
    causes: tuple[str, ...]
    evidence: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Channel -> its "score", its "threshold" (None if it did not run) and a "note" for people."""
    trust_map: np.ndarray | None = None
    """Trust in [0, 1] per latent position; None if no channel that maps could run."""
    latency_s: float = 0.0
    """Time the monitor took; for a missing answer, the time waited."""
    step: int = -1
    """Number of the step in its episode, from 0; -1 without an answer."""


class ArrayError(ValueError):
    """An array that the wire format does not carry, or whose parts do not fit together."""


def pack(message: object) -> bytes:
    """A message as bytes; `ArrayError` for arrays of objects, records or complex numbers."""
    return msgpack.packb(message, default=_encode)


def unpack(data: bytes) -> Any:
    """The message of `pack`: `ArrayError` for a wrong array, `ValueError` if it is no msgpack."""
    return msgpack.unpackb(data, object_hook=_decode)


def _encode(value: object) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biufSU":
        kind = getattr(value, "dtype", type(value).__name__)
        raise ArrayError(f"A message holds numbers, text and their arrays, got {kind}.")
    if isinstance(value, np.ndarray):
        head: dict[bytes, Any] = {b"__ndarray__": True, b"data": value.tobytes()}
        return head | {b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _decode(value: dict[Any, Any]) -> Any:
    is_array = b"__ndarray__" in value
    if not is_array and b"__npgeneric__" not in value:
        return value
    try:
        data, dtype = value[b"data"], np.dtype(str(value[b"dtype"]))
        if dtype.kind not in ("biufSU" if is_array else "biuf"):
            raise ArrayError(f"An array must hold numbers or text, got dtype {dtype}.")
        if not is_array:
            return dtype.type(data)
        shape = tuple(value[b"shape"])
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes do not fill shape {shape} of {dtype}")
        return np.ndarray(shape, dtype, buffer=data).copy()
    except ArrayError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise ArrayError(f"An array cannot be read: {error}.") from error


class MonitorClient:
    """One robot's connection to the monitor. Not for several threads at once.

    Fails safe: without an answer in time the verdict is `STOP` with the cause `NO_ANSWER`; a lost
    connection stays lost, and every verdict a `STOP`, until `reset` connects again.

    Args:
        uri: "ws://HOST:PORT", or "wss://..." through a proxy that speaks TLS.
        api_key: The server's key; needed unless it listens on the loopback address.
        timeout_s: Longest time to wait for a verdict.
        connect_timeout_s: Longest time to wait for the server to take the connection.
        fail_safe: False raises OSError, ValueError or WebSocketException instead of the `STOP`.
    """

    def __init__(
        self,
        uri: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 1.0,
        connect_timeout_s: float = 10.0,
        fail_safe: bool = True,
    ) -> None:
        self.uri, self.timeout_s, self.fail_safe = uri, timeout_s, fail_safe
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._connect_timeout_s = connect_timeout_s
        self._number = 0
        self._connect()

    def _connect(self) -> None:
        self._new_episode, self._lost = True, True
        limit = self._connect_timeout_s
        options: dict[str, Any] = {"compression": None, "max_size": None, "close_timeout": 1}
        options |= {"additional_headers": self._headers, "open_timeout": limit}
        with ExitStack() as stack:
            self._connection = stack.enter_context(connect(self.uri, **options))
            self.metadata: dict[str, Any] = unpack(self._receive(limit))
            """What the server says of itself: cameras, frame shape, action spec, hashes."""
            self._open = stack.pop_all()
        self._lost = False

    def _receive(self, timeout_s: float) -> bytes:
        data = self._connection.recv(timeout=max(timeout_s, 0))
        if isinstance(data, str):
            raise ValueError(f"the server sent text: {data}")
        return data

    def reset(self) -> None:
        """Start a new episode, with a new connection if the last one was lost."""
        self._new_episode = True
        if not self._lost:
            return
        self._open.close()
        try:
            self._connect()
        except (OSError, ValueError, WebSocketException):
            if not self.fail_safe:
                raise

    def update(
        self, frames: Mapping[str, np.ndarray] | np.ndarray, action: np.ndarray | None
    ) -> Verdict:
        """Judge one step.

        Args:
            frames: uint8 RGB [height, width, 3] of every camera, or one array [view, height,
                width, 3] with the views in the order of `metadata["cameras"]`.
            action: The canonical action commanded at this frame, [7], or None.
        """
        started = time.monotonic()
        try:
            reply = self._exchange({"observation": frames, "action": action}, started)
        except (OSError, ValueError, WebSocketException) as error:
            self._lost |= not isinstance(error, TimeoutError | ValueError)
            if not self.fail_safe:
                raise
            waited = time.monotonic() - started
            note = f"{type(error).__name__}: {error}"
            return Verdict(Level.STOP, (NO_ANSWER,), {NO_ANSWER: {"note": note}}, None, waited)
        self._new_episode = False
        causes, level = tuple(reply["causes"]), Level[reply["level"].upper()]
        rest = {name: reply[name] for name in ("evidence", "trust_map", "latency_s", "step")}
        return Verdict(level, causes, **rest)

    def _exchange(self, message: dict[str, Any], started: float) -> dict[str, Any]:
        """Send, and wait for the reply; late replies to earlier messages are skipped."""
        if self._lost:
            raise ConnectionError("the connection was lost; `reset` connects again")
        self._number += 1
        data = pack({**message, "reset": self._new_episode, "id": self._number})
        self._send(data)
        while True:
            reply = unpack(self._receive(started + self.timeout_s - time.monotonic()))
            if reply["id"] not in (self._number, None):
                continue
            if "error" in reply:
                raise ValueError(reply["error"])
            return reply

    def _send(self, data: bytes) -> None:
        """Send within the time limit: a server that no longer reads is cut off."""
        cut = threading.Timer(self.timeout_s, self._connection.socket.shutdown, (2,))
        cut.daemon = True
        cut.start()
        try:
            self._connection.send(data)
        finally:
            cut.cancel()

    def close(self) -> None:
        """Leave the server."""
        self._lost = True
        self._open.close()

    def __enter__(self) -> MonitorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
