"""Websocket server of the monitor, with one connection per robot."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from worldmodel.runtime.client import pack
from worldmodel.runtime.session import NotMsgpackError, WatchSession

KEY_VARIABLE = "WORLDMODEL_API_KEY"
REASON_BYTES = 120
"""Maximum length of a close reason; the websocket protocol allows 123."""
CLOSE_TIMEOUT_S = 2.0
"""Time limit for a peer to answer a close."""
REPLY_TIMEOUT_S = 10.0
"""Time limit for a peer to receive a reply."""
LOG = logging.getLogger(__name__)
LOG.addFilter(lambda record: record.getMessage() != "opening handshake failed")


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Address, access and limits of the server."""

    host: str
    port: int
    """0: any free port."""
    api_key: str | None = field(default=None, repr=False)
    """None: no key is required, which only loopback addresses allow."""
    max_sessions: int = 32
    """Maximum number of concurrent robots."""
    max_message_bytes: int = 16 * 2**20
    idle_timeout_s: float = 60.0
    """A peer that sends no complete message for this long is disconnected."""
    out: Path | None = None
    """Folder for one JSON Lines file per session; None: verdicts are not logged."""

    def __post_init__(self) -> None:
        if self.max_sessions < 1:
            raise ValueError(f"`max_sessions` must be at least 1, got {self.max_sessions}.")
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"Anyone who can reach {self.host} could connect, so an API key is required: set "
                f"{KEY_VARIABLE} or `--api-key-file`, or listen on 127.0.0.1."
            )
        if self.out and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"`out` must be a folder, but {self.out} is a file.")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is reachable only from this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        entries = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"The address {host!r} is unknown: {error}.") from error
    addresses = {str(entry[4][0]).partition("%")[0] for entry in entries}
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def split_address(address: str) -> tuple[str, int]:
    """Split "HOST:PORT" into host and port.

    >>> split_address("127.0.0.1:8765"), split_address("[::1]:8765")
    (('127.0.0.1', 8765), ('::1', 8765))
    """
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    wrapped = host == f"[{bare}]"
    if not bare or (":" in bare and not wrapped) or not (port.isascii() and port.isdigit()):
        raise ValueError(f"`listen` must be HOST:PORT, such as 127.0.0.1:8765, got {address!r}.")
    if int(port) > 65535:
        raise ValueError(f"`listen` must have a port of at most 65535, got {port}.")
    return bare, int(port)


def read_api_key(file: Path | None) -> str | None:
    """API key in `file`, or in the environment if `file` is None; None if neither is set."""
    key = os.environ.get(KEY_VARIABLE) if file is None else file.read_text(encoding="utf-8")
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        source = KEY_VARIABLE if file is None else file
        raise ValueError(f"The API key in {source} must be one line of printable ASCII characters.")
    return key


class MonitorService:
    """Server that answers the messages of every robot in order.

    Args:
        new_session: Creates the session of a new robot, given the path of its log.
        metadata: First message to every robot.
        config: Address, access and limits.
    """

    def __init__(
        self,
        new_session: Callable[[Path | None], WatchSession],
        metadata: dict[str, Any],
        config: ServiceConfig,
    ) -> None:
        self.new_session, self.config = new_session, config
        self._metadata = pack({**metadata, "max_message_bytes": config.max_message_bytes})
        self._started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._num_open, self._num_made = 0, 0

    async def run(
        self, stop: asyncio.Event, on_ready: Callable[[str, int], None] = lambda host, port: None
    ) -> None:
        """Serve until `stop` is set; `on_ready` gets the address once robots can connect.

        One thread computes the verdicts of all robots, so that the event loop stays free. Each
        robot has at most one message in its queue, so no robot waits for more than one step of
        every other robot. The model predicts a robot's next frame after it sends the reply.
        """
        config = self.config
        if config.out:
            config.out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1, "monitor") as self._worker:
            async with serve(
                self._watch,
                config.host,
                config.port,
                compression=None,
                origins=[None],  # browsers send an origin; a web page must not connect
                process_request=self._admit,
                max_size=config.max_message_bytes,
                max_queue=1,
                close_timeout=CLOSE_TIMEOUT_S,
                logger=LOG,
            ) as server:
                on_ready(*_address(server))
                await stop.wait()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer health checks; refuse connections without the key."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self.config.api_key is None:
            return None
        header = " ".join(request.headers.get_all("Authorization"))
        expected = f"Api-Key {self.config.api_key}"
        if hmac.compare_digest(header.encode("utf-8", "surrogateescape"), expected.encode()):
            return None
        text = "The header must hold this server's key: Authorization: Api-Key KEY.\n"
        return connection.respond(HTTPStatus.UNAUTHORIZED, text)

    async def _watch(self, connection: ServerConnection) -> None:
        """Serve one connection until it closes."""
        limit = self.config.max_sessions
        if self._num_open >= limit:
            reason = f"all {limit} sessions are in use; try again later"
            await connection.close(CloseCode.TRY_AGAIN_LATER, reason)
            return
        self._num_open += 1
        self._num_made += 1
        out, name = self.config.out, f"session-{self._started}-{self._num_made}.jsonl"
        session = self.new_session(out and out / name)
        try:
            await self._answer_all(connection, session)
        except ConnectionClosed:
            pass
        finally:
            session.close()
            self._num_open -= 1

    async def _answer_all(self, connection: ServerConnection, session: WatchSession) -> None:
        loop, limit_s = asyncio.get_running_loop(), self.config.idle_timeout_s
        await _send(connection, self._metadata)
        try:
            while True:
                message = await asyncio.wait_for(connection.recv(), limit_s)
                if isinstance(message, str):
                    reason = "send msgpack in binary messages, not text"
                    await connection.close(CloseCode.UNSUPPORTED_DATA, reason)
                    return
                reply = await loop.run_in_executor(self._worker, session.answer, message)
                await _send(connection, reply)
                await loop.run_in_executor(self._worker, session.imagine)
        except NotMsgpackError as error:
            text = f"the message is not msgpack: {error}".encode()[:REASON_BYTES]
            await connection.close(CloseCode.INVALID_DATA, text.decode(errors="ignore"))
        except TimeoutError:
            reason = f"no message for {limit_s:g} s"
            await connection.close(CloseCode.POLICY_VIOLATION, reason)


async def _send(connection: ServerConnection, reply: bytes) -> None:
    """Send a reply, or abort: a close handshake would hang if the peer does not read."""
    try:
        await asyncio.wait_for(connection.send(reply), REPLY_TIMEOUT_S)
    except TimeoutError:
        LOG.warning("disconnected a robot that read no reply for %g s", REPLY_TIMEOUT_S)
        reset = struct.pack("ii", 1, 0)  # discard unsent data
        peer = connection.transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.transport.abort()
        await connection.wait_closed()
        raise ConnectionClosedError(None, None) from None


def _address(server: Server) -> tuple[str, int]:
    host, port = server.sockets[0].getsockname()[:2]
    return str(host), int(port)
