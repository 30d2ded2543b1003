"""A monitor service in a thread of the test, and peers that talk to it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from worldmodel.monitors import EpisodeSignals, MonitorConfig, RuntimeMonitor
from worldmodel.runtime.server import MonitorService, ServiceConfig
from worldmodel.runtime.session import WatchSession
from worldmodel.runtime.wire import unpack

CAMERAS = ("front", "wrist")
SHAPE = (2, 16, 16, 3)
ACTION = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
CONFIG = MonitorConfig(alpha_notice=0.2, alpha_degrade=0.1, alpha_stop=0.05, calm_steps=3)
ABOUT: dict[str, object] = {"cameras": CAMERAS}
"""What the service says of itself."""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
"""A websocket's opening request."""
Served = Callable[..., str]


def features(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of 4 x 4 patches of every view."""
    patches = frame.reshape(2, 4, 4, 4, 4, 3).mean(axis=(2, 4)).astype(np.float32)
    return patches.mean(axis=(1, 2)).ravel(), patches


def draw_frames(rng: np.random.Generator, num_frames: int, bright: float = 0.0) -> np.ndarray:
    return rng.normal(100 + bright, 25, (num_frames, *SHAPE)).clip(0, 255).astype(np.uint8)


def draw_episode(rng: np.random.Generator) -> EpisodeSignals:
    pooled, positions = zip(*map(features, draw_frames(rng, 10)), strict=True)
    return EpisodeSignals(pooled=np.stack(pooled), positions=np.stack(positions))


@contextmanager
def serving(monitor: RuntimeMonitor, **settings: object) -> Iterator[str]:
    """A service on a free port of this machine, in a thread; its address."""
    config = ServiceConfig(**{"host": "127.0.0.1", "port": 0, **settings})
    server = MonitorService(
        lambda log: WatchSession(monitor.sibling(), CAMERAS, log), {**ABOUT}, config
    )
    ready, address, handles = threading.Event(), [], []

    def announce(host: str, port: int) -> None:
        address.append(f"ws://{host}:{port}")
        ready.set()

    async def main() -> None:
        stop = asyncio.Event()
        handles.extend([asyncio.get_running_loop(), stop])
        await server.run(stop, announce)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield address[0]
    finally:
        loop, stop = handles
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def talk(address: str, **settings: object) -> Iterator[ClientConnection]:
    """A connection whose metadata is already read."""
    with connect(address, compression=None, close_timeout=1, **settings) as connection:
        unpack(connection.recv(timeout=30))
        yield connection


def ask(connection: ClientConnection, message: bytes) -> dict[str, object]:
    connection.send(message)
    return unpack(connection.recv(timeout=30))


def closed(connection: ClientConnection) -> tuple[int, str]:
    """Code and reason of the close that the server must send."""
    with pytest.raises(ConnectionClosed) as ending:
        connection.recv(timeout=30)
    assert ending.value.rcvd is not None
    return ending.value.rcvd.code, ending.value.rcvd.reason
