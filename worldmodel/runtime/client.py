"""Client of `worldmodel serve`: a verdict on every step of a robot.

Copy this file next to the robot's code; it needs only numpy, msgpack and websockets 15 or later.

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

import ipaddress
import math
import ssl as tls
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

CONNECT_TIMEOUT_S = 10.0
LEVELS = ("trust", "notice", "degrade", "stop")
SCORES = ("score", "threshold")
MAX_PARTS = 1000
"""Largest number of entries in a map or list of an answer."""


class MonitorError(RuntimeError):
    """No verdict, for the reason in the message; treat it as a stop."""

    def __init__(self, sentence: str) -> None:  # it may quote the server: no control characters
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence))


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
    dtype = np.dtype(str(value[b"dtype"])[:16])
    if dtype.kind not in "biufSU":
        raise ValueError(f"it holds an array of {dtype}")
    if b"__npgeneric__" in value:
        return dtype.type(value[b"data"])
    return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"])


class MonitorClient:
    """Connection of one robot to the monitor at "ws://HOST:PORT"; use it from one thread at a time.

    `api_key` is the key of the server, required unless it listens on a loopback address.
    `timeout_s` is the maximum time to wait for a verdict. `ssl` is the context of a "wss://"
    connection, for example with the certificate of your own server:
    `ssl.create_default_context(cafile="cert.pem")`; None: the authorities that the system trusts.
    Connections to this machine ignore the proxy settings of the environment. `metadata` describes
    the server: cameras, frame shape, rate, action spec, hashes.

    Raises:
        MonitorError: An argument is wrong, or there is no connection to a monitor.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 1.0,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        self.url, self.timeout_s, self._number, self._reset = url, timeout_s, 0, True
        _require(isinstance(url, str), f"`url` must be text such as ws://HOST:PORT, got {url!r}.")
        self._check_timeout()
        is_key = api_key is None or (isinstance(api_key, str) and api_key.isascii())
        _require(is_key and (api_key or "x").isprintable(), "`api_key` must be printable ASCII.")
        is_context = ssl is None or isinstance(ssl, tls.SSLContext)
        _require(is_context, f"`ssl` must be an ssl.SSLContext or None, got {type(ssl).__name__}.")
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        with ExitStack() as opened:
            with self._explained(CONNECT_TIMEOUT_S, "cannot be reached"):
                connection = connect(
                    url, additional_headers=headers, open_timeout=CONNECT_TIMEOUT_S,
                    close_timeout=1, compression=None, max_size=2**24, ssl=ssl,
                    proxy=None if _is_local(url) else True,
                )  # fmt: skip
                self._connection = opened.enter_context(connection)
            with self._explained(CONNECT_TIMEOUT_S):
                self.metadata: dict[str, Any] = self._receive(CONNECT_TIMEOUT_S)
                _check_metadata(self.metadata)
            self._open = opened.pop_all()

    def reset(self) -> None:
        """Start a new episode with the next step."""
        self._reset = True

    def update(self, observation: object, action: object, reset: bool = False) -> dict[str, Any]:
        """Verdict on one step: "level" ("trust", "notice", "degrade", "stop"), "causes", ...

        Args:
            observation: Camera name -> RGB [height, width, 3], uint8 or floats in [0, 1]; or one
                array [view, height, width, 3] in the order of `metadata["cameras"]`. The names may
                be openpi's: "observation/wrist_image" is the camera "wrist_image".
            action: The canonical action commanded at this frame, [7], or None.
            reset: Whether this step starts a new episode, as after `reset()`.

        Raises:
            MonitorError: An argument cannot be sent, the server refuses or does not answer in time,
                the answer is no valid verdict, or the connection is lost. After a lost connection,
                create a new client.
        """
        self._check_timeout()
        is_flag = isinstance(reset, bool | np.bool_)
        _require(is_flag, f"`reset` must be true or false, got {type(reset).__name__}.")
        self._reset, self._number = self._reset or bool(reset), self._number + 1
        message = {"observation": observation, "action": action, "reset": self._reset}
        try:
            data = pack({**message, "id": self._number})
        except Exception as error:  # objects of the caller may raise anything
            raise MonitorError(f"The step cannot be sent: {error}") from error
        end = time.monotonic() + self.timeout_s
        with self._explained(self.timeout_s):
            self._send(data)
            reply = self._receive(end - time.monotonic())
            while _is_late(reply, self._number):  # an answer to an earlier step
                reply = self._receive(end - time.monotonic())
            _check_reply(reply, self._number)
        if "error" in reply:
            raise MonitorError(f"{self.url} refused the step: {reply['error']}")
        self._reset = False
        return reply

    def _check_timeout(self) -> None:
        limit = self.timeout_s
        _require(_is_number(limit) and 0 < limit < threading.TIMEOUT_MAX,
                 f"`timeout_s` must be a number of seconds above 0, got {limit!r}.")  # fmt: skip

    def _send(self, data: bytes) -> None:
        # `send` blocks without limit if the server stops reading: close such a connection.
        cut = threading.Timer(self.timeout_s, self._connection.socket.shutdown, (2,))
        cut.start()
        try:
            self._connection.send(data)
        finally:
            cut.cancel()

    def _receive(self, limit_s: float) -> Any:
        data = self._connection.recv(max(limit_s, 0))
        return msgpack.unpackb(
            data, object_hook=_decode, max_array_len=MAX_PARTS, max_map_len=MAX_PARTS
        )

    @contextmanager
    def _explained(
        self, limit_s: float, otherwise: str = "sent an invalid answer"
    ) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise MonitorError(f"{self.url} did not answer within {limit_s:g} s.") from error
        except InvalidStatus as error:
            status = f"HTTP {error.response.status_code} {error.response.body!r}"
            raise MonitorError(f"{self.url} refused the connection: {status}") from error
        except (OSError, WebSocketException, ImportError) as error:
            raise MonitorError(f"No connection to {self.url}: {error}.") from error
        except Exception as error:  # whatever the trouble, there is no verdict
            reason = f"{type(error).__name__}: {error}"
            raise MonitorError(f"{self.url} {otherwise}: {reason}.") from error

    def close(self) -> None:
        """Close the connection."""
        self._open.close()

    def __enter__(self) -> MonitorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise MonitorError(sentence)


def _is_local(url: str) -> bool:
    """Whether a URL names this machine, without asking a name server."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_number(value: object) -> bool:
    is_float = isinstance(value, int | float | np.integer | np.floating)
    return is_float and not isinstance(value, bool)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not _is_texts(metadata.get("cameras")):
        raise ValueError('no monitor: its first message must name "cameras"')


def _is_late(reply: Any, number: int) -> bool:
    return isinstance(reply, dict) and type(reply.get("id")) is int and 0 < reply["id"] < number


def _check_reply(reply: Any, number: int) -> None:
    """Raise `ValueError` unless a reply is a verdict on step `number`, or an error."""
    if not isinstance(reply, dict):
        raise ValueError(f"expected a map, got {type(reply).__name__}")

    def is_ours(value: object) -> bool:
        return type(value) is int and value == number

    if "error" in reply:
        _check(reply, "error", lambda value: isinstance(value, str))
        _check(reply, "id", lambda value: value is None or is_ours(value))  # None: it read no id
        return
    _check(reply, "id", is_ours)
    _check(reply, "level", lambda value: isinstance(value, str) and value in LEVELS)
    _check(reply, "causes", _is_texts)
    _check(reply, "step", lambda value: type(value) is int and value >= 0)
    _check(reply, "latency_s", lambda value: _is_number(value) and 0 <= value < math.inf)
    _check(reply, "evidence", _is_evidence)
    _check(reply, "trust_map", lambda value: value is None or _is_trust_map(value))


def _check(reply: dict[Any, Any], name: str, is_valid: Callable[[Any], bool]) -> None:
    if name not in reply:
        raise ValueError(f"it lacks the field {name!r}")
    if not is_valid(reply[name]):
        raise ValueError(f"its field {name!r} is {str(reply[name])[:80]!r}")


def _is_evidence(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and isinstance(part, dict)
        and isinstance(part.get("note"), str)
        and all(part.get(key, "") is None or _is_number(part.get(key)) for key in SCORES)
        for name, part in value.items()
    )


def _is_trust_map(value: object) -> bool:
    """Finite trust in [0, 1]; NaN would pass comparisons that mean a stop."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and (
        value.size > 0 and bool(((value >= 0) & (value <= 1)).all())
    )  # fmt: skip
