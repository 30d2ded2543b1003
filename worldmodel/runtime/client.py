"""Ask a running `worldmodel serve` for its verdict on every step of a robot.

Copy this one file beside the robot's code: it needs numpy, msgpack and websockets, nothing else.

    with MonitorClient("ws://127.0.0.1:8765", timeout_s=0.2) as monitor:
        monitor.reset()  # at the start of every episode
        try:
            level = monitor.update({"front": frame}, action)["level"]
        except MonitorError:
            level = "stop"  # no verdict is no trust
        if level in ("degrade", "stop"): ...  # hand over to the fallback

Messages are msgpack with numpy arrays in the wire format of openpi's policy servers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

CONNECT_TIMEOUT_S = 10.0


class MonitorError(RuntimeError):
    """There is no verdict, and the message says why: take it for a stop."""


def pack(message: object) -> bytes:
    """A message as bytes; `ValueError` for anything but numbers, text, bytes and their arrays."""
    return msgpack.packb(message, default=_encode)


def _encode(value: object) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "biufSU":
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"A message holds numbers, text and their arrays, got {kind}.")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    data, dtype = value.tobytes(), value.dtype.str
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": value.shape}


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    dtype = np.dtype(str(value[b"dtype"]))
    if dtype.kind not in "biuf":  # numbers alone: nothing is ever unpickled or run
        raise ValueError(f"an array of {dtype}")
    if b"__npgeneric__" in value:
        return dtype.type(value[b"data"])
    return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"])


class MonitorClient:
    """One robot's connection to the monitor at "ws://HOST:PORT"; for one thread at a time.

    `api_key` is the service's, needed unless it listens on the loopback address. `timeout_s` is the
    longest time to wait for a verdict. `metadata` is what the service says of itself: cameras,
    frame shape, rate, action spec, hashes.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 1.0) -> None:
        self.url, self.timeout_s, self._number, self._reset = url, timeout_s, 0, True
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        with self._explained(CONNECT_TIMEOUT_S), ExitStack() as opened:
            connection = connect(
                url, additional_headers=headers, open_timeout=CONNECT_TIMEOUT_S, close_timeout=1,
                compression=None, max_size=2**24,
            )  # fmt: skip
            self._connection = opened.enter_context(connection)
            self.metadata: dict[str, Any] = self._receive(CONNECT_TIMEOUT_S)
            self._open = opened.pop_all()

    def reset(self) -> None:
        """Start a new episode with the next step."""
        self._reset = True

    def update(self, observation: object, action: object, reset: bool = False) -> dict[str, Any]:
        """The verdict on one step: "level" ("trust", "notice", "degrade", "stop"), "causes", ...

        Args:
            observation: uint8 RGB [height, width, 3] of every camera by its name, or one array
                [view, height, width, 3] in the order of `metadata["cameras"]`.
            action: The canonical action commanded at this frame, [7], or None.
            reset: Whether a new episode starts with this step, as after `reset()`.

        Raises:
            MonitorError: The service says no or nothing in time, or the connection is lost (and
                stays so: make a new client).
            ValueError: An array of objects, records or complex numbers.
        """
        self._reset, self._number = self._reset or reset, self._number + 1
        message = {"observation": observation, "action": action, "reset": self._reset}
        data, end = pack({**message, "id": self._number}), time.monotonic() + self.timeout_s
        with self._explained(self.timeout_s):
            self._send(data)
            reply = self._receive(end - time.monotonic())
            while reply["id"] not in (self._number, None):  # a late answer to an earlier step
                reply = self._receive(end - time.monotonic())
        if "error" in reply:
            raise MonitorError(f"{self.url} says no: {reply['error']}")
        self._reset = False
        return reply

    def _send(self, data: bytes) -> None:
        # A service that no longer reads would block `send` for ever: cut such a connection.
        cut = threading.Timer(self.timeout_s, self._connection.socket.shutdown, (2,))
        cut.start()
        try:
            self._connection.send(data)
        finally:
            cut.cancel()

    def _receive(self, limit_s: float) -> Any:
        return msgpack.unpackb(self._connection.recv(max(limit_s, 0)), object_hook=_decode)

    @contextmanager
    def _explained(self, limit_s: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise MonitorError(f"{self.url} gave no answer within {limit_s:g} s.") from error
        except InvalidStatus as error:
            said = f"HTTP {error.response.status_code} {error.response.body!r}"
            raise MonitorError(f"{self.url} says no: {said}") from error
        except (OSError, WebSocketException) as error:
            raise MonitorError(f"There is no connection to {self.url}: {error}.") from error
        except (ValueError, LookupError, TypeError, SyntaxError) as error:
            raise MonitorError(f"{self.url} sent what is no answer: {error!r}.") from error

    def close(self) -> None:
        """Leave the service."""
        self._open.close()

    def __enter__(self) -> MonitorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
