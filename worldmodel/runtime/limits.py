"""Limits per client address and per connection: connects, sessions, small frames."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame

LOG = logging.getLogger(__name__)
SMALL_FRAME_BYTES = 1024
"""Smaller websocket frames (pings, pongs, fragments) cost more to parse than to send."""
SMALL_FRAMES_PER_S = 200
"""Maximum rate of small frames of a connection, and the largest burst."""
PIECE_BYTES = 4096
"""Received bytes parsed between two looks at the limit: at most 682 empty frames."""
MAX_ADDRESSES = 10_000
"""Addresses remembered before those that are within their limit are forgotten."""
MAX_REFUSED = 100
"""Connections refused before the event loop continues."""


class TokenBucket:
    """Allows `burst` events at once, and `per_s` events per second after that.

    >>> bucket = TokenBucket(per_s=1.0, burst=2, clock=lambda: 0.0)
    >>> [bucket.take() for _ in range(3)]
    [True, True, False]
    """

    def __init__(
        self, *, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_s, self.burst, self.clock = per_s, burst, clock
        self._left, self._last = float(burst), clock()

    def take(self) -> bool:
        """Whether one more event is allowed now."""
        allowed = self._refill() >= 1
        self._left -= allowed
        return allowed

    def is_full(self) -> bool:
        """Whether nothing happened for so long that the bucket is as good as new."""
        return self._refill() >= self.burst

    def _refill(self) -> float:
        now = self.clock()
        self._left = min(float(self.burst), self._left + (now - self._last) * self.per_s)
        self._last = now
        return self._left


class AddressLimits:
    """Connects per minute and open sessions of every client address.

    IPv6 clients count by their /64 network, which one host may own as a whole.
    """

    def __init__(
        self,
        *,
        max_connects_per_minute: int,
        max_sessions: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_connects_per_minute, self.max_sessions = max_connects_per_minute, max_sessions
        self.clock = clock
        self._connects: dict[str, TokenBucket] = {}
        self._sessions = Counter[str]()

    def may_connect(self, address: str) -> bool:
        """Count a connect; False if the address connects too often."""
        key = network(address)
        if key not in self._connects:
            if len(self._connects) >= MAX_ADDRESSES:
                self._forget()
            most = self.max_connects_per_minute
            self._connects[key] = TokenBucket(per_s=most / 60, burst=most, clock=self.clock)
        return self._connects[key].take()

    def _forget(self) -> None:
        buckets = self._connects.items()
        self._connects = {key: bucket for key, bucket in buckets if not bucket.is_full()}
        while len(self._connects) >= MAX_ADDRESSES:  # the longest known first
            del self._connects[next(iter(self._connects))]

    @contextmanager
    def session(self, address: str) -> Iterator[bool]:
        """Count a session while it lasts; yields False, uncounted, if there are too many."""
        key = network(address)
        if self._sessions[key] >= self.max_sessions:
            yield False
            return
        self._sessions[key] += 1
        try:
            yield True
        finally:
            self._sessions[key] -= 1
            if not self._sessions[key]:
                del self._sessions[key]


@lru_cache(1024)
def network(address: str) -> str:
    """An IPv4 address itself, or the /64 network of an IPv6 address.

    >>> network("192.0.2.7"), network("::ffff:192.0.2.7"), network("2001:db8::1%eth0")
    ('192.0.2.7', '192.0.2.7', '2001:db8::/64')
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class LimitedListener(socket.socket):
    """Listening socket that closes the connections that `may_connect(address)` refuses.

    It does so on accepting, before any handshake and TLS: a refusal takes microseconds.
    """

    may_connect: Callable[[str], bool]

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next allowed connection."""
        for _ in range(MAX_REFUSED):
            connection, address = super().accept()
            if self.may_connect(str(address[0])):
                return connection, address
            connection.close()
        raise BlockingIOError  # the event loop calls again


def listen(host: str, port: int, may_connect: Callable[[str], bool]) -> list[LimitedListener]:
    """Sockets bound to every address of a host.

    Raises:
        OSError: An address is in use or not of this machine.
    """
    flags = socket.AI_PASSIVE
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    listeners: list[LimitedListener] = []
    for family, _, _, _, address in dict.fromkeys(entries):
        listener = LimitedListener(family, socket.SOCK_STREAM)
        listeners.append(listener)
        listener.may_connect = may_connect
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind(address)
        except OSError as error:
            for opened in listeners:
                opened.close()
            reason = str(error.strerror).lower()
            raise OSError(error.errno, f"cannot listen at {host}:{port}: {reason}") from None
    return listeners


class LimitedConnection(ServerConnection):
    """Websocket that is cut off if it sends small frames faster than `SMALL_FRAMES_PER_S`.

    Without the limit a peer can keep the event loop busy with empty frames, which are sent far
    faster than they are parsed.
    """

    def __init__(self, on_flood: Callable[[], None], *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.on_flood = on_flood
        self._small = TokenBucket(per_s=float(SMALL_FRAMES_PER_S), burst=SMALL_FRAMES_PER_S)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes in small pieces until the connection is cut off."""
        for start in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + PIECE_BYTES])

    def process_event(self, event: Any) -> None:
        """Handle a frame, or cut off the connection."""
        if isinstance(event, Frame) and len(event.data) < SMALL_FRAME_BYTES:
            if self.transport.is_closing():
                return
            if not self._small.take():
                self._cut_off()
                return
        super().process_event(event)

    def _cut_off(self) -> None:
        reason = f"more than {SMALL_FRAMES_PER_S} small frames per second"
        LOG.warning("disconnected %s: %s", self.remote_address[0], reason)
        self.on_flood()
        self.protocol.fail(CloseCode.POLICY_VIOLATION, reason)
        self.send_data()
        self.transport.abort()  # a close handshake would go on reading
