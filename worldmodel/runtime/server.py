"""Websocket server of the monitor, with one connection per robot."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from worldmodel.runtime.client import pack
from worldmodel.runtime.limits import AddressLimits, LimitedConnection, LimitedListener, listen
from worldmodel.runtime.metrics import CONTENT_TYPE, ServiceMetrics
from worldmodel.runtime.session import NotMsgpackError, WatchSession

KEY_VARIABLE = "WORLDMODEL_API_KEY"
REASON_BYTES = 120
"""Maximum length of a close reason; the websocket protocol allows 123."""
CLOSE_TIMEOUT_S = 2.0
"""Time limit for a peer to answer a close."""
REPLY_TIMEOUT_S = 10.0
"""Time limit for a peer to receive a reply."""
TLS_TIMEOUT_S = 10.0
"""Time limit of a TLS handshake."""
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
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """None: traffic is not encrypted. See `tls_context`."""
    max_sessions: int = 32
    """Maximum number of concurrent robots."""
    max_sessions_per_address: int = 8
    """Maximum number of concurrent robots of one client address."""
    max_connects_per_minute: int = 120
    """Maximum number of connections that one client address opens in a minute."""
    max_message_bytes: int = 16 * 2**20
    idle_timeout_s: float = 60.0
    """A peer that sends no complete message for this long is disconnected."""
    out: Path | None = None
    """Folder for one JSON Lines file per session; None: verdicts are not logged."""

    def __post_init__(self) -> None:
        for name in ("max_sessions", "max_sessions_per_address", "max_connects_per_minute"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
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


def tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Server side of TLS; None without files.

    Args:
        cert: PEM file with the certificate and, after it, its chain.
        key: PEM file with the private key, without passphrase.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ValueError("`tls_cert` and `tls_key` must be given together.")
    for name, file in (("tls_cert", cert), ("tls_key", key)):
        if not file.is_file():
            raise ValueError(f"`{name}` must be a PEM file, but there is none at {file}.")

    def no_passphrase() -> str:
        raise ValueError(f"The key in {key} must have no passphrase.")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=no_passphrase)
    except ssl.SSLError as error:
        reason = error.reason or "no PEM block of that kind"
        raise ValueError(
            f"`tls_cert` and `tls_key` must be a PEM certificate and its private key, got {cert} "
            f"and {key} ({reason})."
        ) from error
    return context


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
        self.metrics = ServiceMetrics()
        self.limits = AddressLimits(
            max_connects_per_minute=config.max_connects_per_minute,
            max_sessions=config.max_sessions_per_address,
        )
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
        listeners = listen(config.host, config.port, self._may_connect)
        with ThreadPoolExecutor(1, "monitor") as self._worker:
            async with AsyncExitStack() as servers:
                for listener in listeners:
                    await servers.enter_async_context(self._serve(listener))
                on_ready(*listeners[0].getsockname()[:2])
                await stop.wait()

    def _serve(self, listener: LimitedListener) -> AbstractAsyncContextManager[Any]:
        tls = self.config.tls
        connection = partial(LimitedConnection, partial(self.metrics.refuse, "small_frames"))
        return serve(
            self._watch,
            sock=listener,
            ssl=tls,
            compression=None,
            origins=[None],  # browsers send an origin; a web page must not connect
            process_request=self._admit,
            max_size=self.config.max_message_bytes,
            max_queue=1,
            close_timeout=CLOSE_TIMEOUT_S,
            logger=LOG,
            create_connection=cast(type[ServerConnection], connection),
            ssl_handshake_timeout=TLS_TIMEOUT_S if tls else None,
            ssl_shutdown_timeout=CLOSE_TIMEOUT_S if tls else None,
        )

    def _may_connect(self, address: str) -> bool:
        allowed = self.limits.may_connect(address)
        if not allowed:
            self.metrics.refuse("connects_per_address")
        return allowed

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer health checks and scrapes; refuse connections without the key."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not self._has_key(request):
            self.metrics.refuse("key")
            text = "The header must hold this server's key: Authorization: Api-Key KEY.\n"
            return connection.respond(HTTPStatus.UNAUTHORIZED, text)
        if request.path != "/metrics":
            return None
        response = connection.respond(HTTPStatus.OK, self.metrics.text())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = CONTENT_TYPE
        return response

    def _has_key(self, request: Request) -> bool:
        if self.config.api_key is None:
            return True
        header = " ".join(request.headers.get_all("Authorization"))
        expected = f"Api-Key {self.config.api_key}"
        return hmac.compare_digest(header.encode("utf-8", "surrogateescape"), expected.encode())

    async def _watch(self, connection: ServerConnection) -> None:
        """Serve one connection until it closes."""
        limit, address = self.config.max_sessions, str(connection.remote_address[0])
        if self._num_open >= limit:
            self.metrics.refuse("sessions")
            reason = f"all {limit} sessions are in use; try again later"
            await connection.close(CloseCode.TRY_AGAIN_LATER, reason)
            return
        with self.limits.session(address) as allowed:
            if not allowed:
                self.metrics.refuse("sessions_per_address")
                limit = self.limits.max_sessions
                reason = f"all {limit} sessions of your address are in use; try again later"
                await connection.close(CloseCode.TRY_AGAIN_LATER, reason)
                return
            await self._hold_session(connection)

    async def _hold_session(self, connection: ServerConnection) -> None:
        self._num_open += 1
        self._num_made += 1
        out, name = self.config.out, f"session-{self._started}-{self._num_made}.jsonl"
        session = self.new_session(out and out / name)
        try:
            with self.metrics.session():
                await self._answer_all(connection, session)
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == CloseCode.MESSAGE_TOO_BIG:
                self.metrics.refuse("too_large")
        finally:
            session.close()
            self._num_open -= 1

    async def _answer_all(self, connection: ServerConnection, session: WatchSession) -> None:
        loop, limit_s = asyncio.get_running_loop(), self.config.idle_timeout_s
        await self._send(connection, self._metadata)
        try:
            while True:
                message = await asyncio.wait_for(connection.recv(), limit_s)
                if isinstance(message, str):
                    self.metrics.refuse("text")
                    reason = "send msgpack in binary messages, not text"
                    await connection.close(CloseCode.UNSUPPORTED_DATA, reason)
                    return
                reply = await loop.run_in_executor(self._worker, self._reply, session, message)
                await self._send(connection, reply)
                await loop.run_in_executor(self._worker, session.imagine)
        except NotMsgpackError as error:
            self.metrics.refuse("not_msgpack")
            text = f"the message is not msgpack: {error}".encode()[:REASON_BYTES]
            await connection.close(CloseCode.INVALID_DATA, text.decode(errors="ignore"))
        except TimeoutError:
            self.metrics.refuse("idle")
            reason = f"no message for {limit_s:g} s"
            await connection.close(CloseCode.POLICY_VIOLATION, reason)

    def _reply(self, session: WatchSession, message: bytes) -> bytes:
        """Packed answer, counted; runs in the worker thread."""
        reply = session.answer(message)
        if "error" in reply:
            self.metrics.refuse("message")
        else:
            self.metrics.verdict(reply["level"], reply["latency_s"])
        return pack(reply)

    async def _send(self, connection: ServerConnection, reply: bytes) -> None:
        """Send a reply, or abort: a close handshake would hang if the peer does not read."""
        try:
            await asyncio.wait_for(connection.send(reply), REPLY_TIMEOUT_S)
        except TimeoutError:
            self.metrics.refuse("unread")
            LOG.warning("disconnected a robot that read no reply for %g s", REPLY_TIMEOUT_S)
            reset = struct.pack("ii", 1, 0)  # discard unsent data
            peer = connection.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            connection.transport.abort()
            await connection.wait_closed()
            raise ConnectionClosedError(None, None) from None
