"""Misbehaving peers, and the required response of the monitor service to each.

`python -m benchmarks.service.run` starts all of them at once.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from worldmodel.runtime.client import pack
from worldmodel.runtime.wire import unpack

PATIENCE_S = 100.0
"""Timeout: a peer without an answer or a close for this long counts as a hang."""
MIB = 2**20
ACTION = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
OBJECTS = {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}
BOMB = b"\xdd" + (16 * MIB - 5).to_bytes(4, "big") + b"\x80" * (16 * MIB - 5)
"""msgpack of a list of 16 million empty maps."""
FRAME_HEAD = b"\x82\xfe\xff\xff"
"""Start of a websocket message of 65,535 bytes."""
PONG, PING, FRAGMENT = b"\x8a\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\x00\x80\0\0\0\0"
"""Websocket frames without content: six bytes each."""
FIRST_FRAGMENT = b"\x02\x80\0\0\0\0"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Response of the service to one peer."""

    peer: str
    wanted: str
    found: str
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the response is the required one."""
        return self.found.startswith(self.wanted)


def says(message: bytes | str) -> Callable[[str, str], str]:
    """Robot that sends `message`."""

    def outcome(address: str, key: str) -> str:
        headers = {"Authorization": f"Api-Key {key}"}
        with connect(
            address, additional_headers=headers, compression=None, close_timeout=5
        ) as peer:
            peer.recv(timeout=PATIENCE_S)
            try:
                peer.send(message)
                reply = unpack(peer.recv(timeout=PATIENCE_S, decode=False))
            except ConnectionClosed as ending:
                close = ending.rcvd
                return (
                    "closed without a close frame"
                    if close is None
                    else f"closed {close.code}: {close.reason}"
                )
            if "error" in reply:
                return f"error: {reply['error']}"
            return f"{reply['level']}: {', '.join(reply['causes'])}"

    return outcome


def shows(observation: object) -> Callable[[str, str], str]:
    """Robot that sends `observation`."""
    return says(pack({"observation": observation, "action": ACTION}))


def with_key(key: str | None) -> Callable[[str, str], str]:
    """Robot with a wrong API key, or none."""

    def outcome(address: str, _: str) -> str:
        headers = {"Authorization": f"Api-Key {key}"} if key else None
        try:
            with connect(address, additional_headers=headers) as peer:
                peer.recv(timeout=PATIENCE_S)
        except InvalidStatus as refused:
            return f"HTTP {refused.response.status_code}"
        return "let in"

    return outcome


def upgrade(key: str) -> bytes:
    """Opening request of a websocket."""
    return (
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Api-Key {key}\r\n\r\n"
    ).encode()


def endlessly(chunk: bytes) -> Iterator[bytes]:
    """Repeat the same bytes forever."""
    while True:
        yield chunk


@dataclass(frozen=True, kw_only=True)
class RawConnection:
    """TCP connection without a websocket client, until the service closes it."""

    first: bytes = b""
    """Bytes sent first, after the opening request if there is one."""
    opens: bool = True
    """Whether to send the opening request."""
    half_close: bool = False
    """Whether to close the sending side after that."""
    drips: bytes = b""
    """Bytes sent repeatedly after that, one per half second."""
    deaf: bytes = b""
    """Bytes sent as fast as possible after that, without reading answers."""

    def __call__(self, address: str, key: str) -> str:
        """Connect and return the response of the service."""
        host, port = address.removeprefix("ws://").split(":")
        with socket.socket() as peer:
            peer.settimeout(PATIENCE_S)
            if self.deaf:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect((host, int(port)))
            try:
                peer.sendall((upgrade(key) if self.opens else b"") + self.first)
                if self.half_close:
                    peer.shutdown(socket.SHUT_WR)
                return self._until_closed(peer)
            except (ConnectionResetError, BrokenPipeError):
                return "closed"

    def _until_closed(self, peer: socket.socket) -> str:
        drips, end = endlessly(self.drips), time.monotonic() + PATIENCE_S
        peer.settimeout(0.5)
        while time.monotonic() < end:
            try:
                if self.deaf:
                    peer.send(self.deaf)
                elif not peer.recv(65536):
                    return "closed"
            except TimeoutError:
                pass
            if self.drips:
                peer.send(next(drips))
        raise TimeoutError


ERROR, CLOSED = "error: ", "closed"
PEERS: dict[str, tuple[Callable[[str, str], str], str]] = {
    "no key": (with_key(None), "HTTP 401"),
    "a wrong key": (with_key("wrong"), "HTTP 401"),
    "text": (says("hello"), "closed 1003"),
    "an empty message": (says(b""), "closed 1007"),
    "no msgpack": (says(b"\xc1" * 100), "closed 1007"),
    "msgpack cut off": (says(pack({"observation": ACTION})[:-3]), "closed 1007"),
    "16 million empty maps": (says(BOMB), "closed 1007"),
    "lists in lists, 100,000 deep": (says(b"\x91" * 100_000), "closed 1007"),
    "a message of 17 MiB": (says(bytes(17 * MIB)), "closed 1009"),
    "no observation": (says(pack({"obs": 1})), ERROR),
    "an array of objects": (says(pack({"observation": OBJECTS})), ERROR),
    "an array without its bytes": (shows({**OBJECTS, b"dtype": "|u1", b"shape": [2**40]}), ERROR),
    "text of no length, 2^40 times": (shows({**OBJECTS, b"dtype": "S0", b"shape": [2**40]}), ERROR),
    "a dtype of a million fields": (shows({**OBJECTS, b"dtype": "f4," * MIB}), ERROR),
    "no frame at all": (shows(None), "stop"),
    "a frame of NaN": (shows(np.full((64, 64, 3), np.nan, np.float32)), "stop"),
    "a frame of 15 MiB": (shows(np.zeros((2048, 2560, 3), np.uint8)), "stop"),
    "no HTTP": (RawConnection(first=b"\x00" * 1000, opens=False), CLOSED),
    "half-closed before the handshake": (
        RawConnection(first=b"GET", opens=False, half_close=True),
        CLOSED,
    ),
    "half-closed after the handshake": (RawConnection(half_close=True), CLOSED),
    "half-closed within a message": (RawConnection(first=FRAME_HEAD, half_close=True), CLOSED),
    "silent before the handshake": (RawConnection(opens=False), CLOSED),
    "silent after the handshake": (RawConnection(), CLOSED),
    "silent within a message": (RawConnection(first=FRAME_HEAD), CLOSED),
    "a handshake byte by byte": (RawConnection(opens=False, drips=b"G"), CLOSED),
    "a message byte by byte": (RawConnection(first=FRAME_HEAD, drips=b"x"), CLOSED),
    "floods with pongs": (RawConnection(deaf=PONG * 10_000), CLOSED),
    "floods with pings": (RawConnection(deaf=PING * 10_000), CLOSED),
    "floods with empty fragments": (
        RawConnection(first=FIRST_FRAGMENT, deaf=FRAGMENT * 10_000),
        CLOSED,
    ),
    "reads no answer": (RawConnection(deaf=b"\x82\x81\0\0\0\0\x90" * 1000), CLOSED),
}
"""Misbehaviour -> peer, and the required start of the response."""
SLOW = (
    "silent before the handshake",
    "silent after the handshake",
    "silent within a message",
    "a handshake byte by byte",
    "a message byte by byte",
    "reads no answer",
)
"""Peers that run into the service's timeouts of 10 s to 40 s."""
HEAVY = (
    "16 million empty maps",
    "a message of 17 MiB",
    "a frame of 15 MiB",
    "a dtype of a million fields",
)
"""Peers that send large messages."""


def abuse(address: str, key: str, names: Sequence[str]) -> list[Outcome]:
    """Run peers at once; returns the outcome of each."""
    responses: dict[str, tuple[str, float]] = {}

    def one(name: str) -> None:
        started = time.monotonic()
        try:
            outcome = PEERS[name][0](address, key)
        except TimeoutError:
            outcome = "HANGS"
        except (OSError, ConnectionClosed) as error:
            outcome = f"{type(error).__name__}: {error}"
        responses[name] = outcome, time.monotonic() - started

    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 2 * PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    hangs = "HANGS", 2 * PATIENCE_S
    return [
        Outcome(peer=name, wanted=PEERS[name][1], found=response, seconds=seconds)
        for name in names
        for response, seconds in [responses.get(name, hangs)]
    ]
