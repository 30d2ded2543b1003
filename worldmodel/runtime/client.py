"""Client of `worldmodel serve`: a verdict on every step of a robot.

Copy this file next to the robot's code; it needs only numpy, msgpack and websockets.

    with MonitorClient("ws://127.0.0.1:8765", timeout_s=0.2) as monitor:
        monitor.reset()  # at the start of every episode
        try:
            level = monitor.update({"front": frame}, action)["level"]
        except MonitorError:
            level = "stop"  # no verdict: do not trust the model
        if level in ("degrade", "stop"): ...  # switch to the fallback policy

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
    """No verdict, for the reason in the message; treat it as a stop."""


def pack(message: object) -> bytes:
    """Serialize a message of numbers, text, bytes and their arrays; else raise `ValueError`."""
    return msgpack.packb(message, default=_encode)


def _encode(value: object) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "biufSU":
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"A message must hold numbers, text and their arrays, got {kind}.")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    data, dtype = value.tobytes(), value.dtype.str
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": value.shape}


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    dtype = np.dtype(str(value[b"dtype"]))
    if dtype.kind not in "biuf":  # only numbers: nothing is unpickled or executed
        raise ValueError(f"an array of {dtype}")
    if b"__npgeneric__" in value:
        return dtype.type(value[b"data"])
    return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"])


class MonitorClient:
    """Connection of one robot to the monitor at "ws://HOST:PORT"; use it from one thread at a time.

    `api_key` is the key of the server, required unless it listens on a loopback address.
    `timeout_s` is the maximum time to wait for a verdict. `metadata` describes the server: cameras,
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
        """Verdict on one step: "level" ("trust", "notice", "degrade", "stop"), "causes", ...

        Args:
            observation: Camera name -> uint8 RGB [height, width, 3], or one array
                [view, height, width, 3] in the order of `metadata["cameras"]`.
            action: The canonical action commanded at this frame, [7], or None.
            reset: Whether this step starts a new episode, as after `reset()`.

        Raises:
            MonitorError: The server refuses or does not answer in time, or the connection is lost.
                After a lost connection, create a new client.
            ValueError: An array holds objects, records or complex numbers.
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
            raise MonitorError(f"{self.url} refused the step: {reply['error']}")
        self._reset = False
        return reply

    def _send(self, data: bytes) -> None:
        # `send` blocks without limit if the server stops reading: close such a connection.
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
            raise MonitorError(f"{self.url} did not answer within {limit_s:g} s.") from error
        except InvalidStatus as error:
            status = f"HTTP {error.response.status_code} {error.response.body!r}"
            raise MonitorError(f"{self.url} refused the connection: {status}") from error
        except (OSError, WebSocketException) as error:
            raise MonitorError(f"No connection to {self.url}: {error}.") from error
        except (ValueError, LookupError, TypeError, SyntaxError) as error:
            raise MonitorError(f"{self.url} sent an invalid answer: {error!r}.") from error

    def close(self) -> None:
        """Close the connection."""
        self._open.close()

    def __enter__(self) -> MonitorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
