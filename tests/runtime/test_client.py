"""The client by itself: its wire format byte by byte, its size, and what it makes of silence."""

import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from worldmodel.runtime import client as monitor_client
from worldmodel.runtime import wire
from worldmodel.runtime.client import MonitorClient, MonitorError, pack

OBJECTS = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|O", b"shape": [1]}


def test_arrays_are_packed_as_openpi_packs_them() -> None:
    """Written by hand from the msgpack specification; openpi: map of four byte-string keys."""
    array = np.array([[1, 2, 3]], np.uint8)
    expected = (
        b"\x84"  # map of 4
        b"\xc4\x0b__ndarray__\xc3"  # bin of 11: true
        b"\xc4\x04data\xc4\x03\x01\x02\x03"
        b"\xc4\x05dtype\xa3|u1"
        b"\xc4\x05shape\x92\x01\x03"
    )
    assert pack(array) == expected
    np.testing.assert_array_equal(wire.unpack(expected), array)


def test_scalars_are_packed_as_openpi_packs_them() -> None:
    expected = (
        b"\x83"  # map of 3
        b"\xc4\x0d__npgeneric__\xc3"
        b"\xc4\x04data\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00"  # float64 0.5
        b"\xc4\x05dtype\xa3<f4"
    )
    assert pack(np.float32(0.5)) == expected
    assert wire.unpack(expected) == np.float32(0.5)
    assert wire.unpack(expected).dtype == np.float32


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.zeros(2, "f4,i4"), np.zeros(2, complex), {1, 2}]
)
def test_other_things_are_not_packed(value: object) -> None:
    with pytest.raises(ValueError, match="numbers, text and their arrays"):
        pack({"x": value})


def test_the_file_stands_alone(tmp_path: Path) -> None:
    """Copied beside a robot's code it imports nothing of ours; and it stays short."""
    source = Path(monitor_client.__file__)
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 150
    shutil.copy(source, tmp_path)
    code = "import sys, client; print(*{name.split('.')[0] for name in sys.modules})"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = set(told.stdout.split())
    assert {"numpy", "msgpack", "websockets"} <= loaded
    assert not loaded & {"worldmodel", "torch", "jaxtyping", "scipy"}


@contextmanager
def service(answer: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A service that says {"a": 1} of itself and then does what `answer` does; its address."""

    def handle(connection: ServerConnection) -> None:
        connection.send(msgpack.packb({"a": 1}))
        answer(connection)

    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(30)


def replies(*messages: object) -> Callable[[ServerConnection], None]:
    """Answers every message with the next of these; bytes and text as they are."""

    def answer(connection: ServerConnection) -> None:
        for message, _ in zip(messages, connection, strict=False):
            plain = isinstance(message, bytes | str)
            connection.send(message if plain else msgpack.packb(message))

    return answer


def test_verdicts_come_as_they_were_sent() -> None:
    trust_map = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    verdict = {"id": 1, "level": "trust", "trust_map": trust_map, "score": np.float64(0.1)}
    with service(replies(pack(verdict))) as url, MonitorClient(url, timeout_s=30.0) as client:
        assert client.metadata == {"a": 1}
        shown = client.update(np.zeros((4, 4, 3), np.uint8), None)
    np.testing.assert_array_equal(shown.pop("trust_map"), verdict.pop("trust_map"), strict=True)
    assert shown == verdict


def test_an_episode_starts_with_the_first_step_and_after_each_reset() -> None:
    """A step that is refused does not start it: the next one does."""
    flags: list[bool] = []

    def answer(connection: ServerConnection) -> None:
        for data in connection:
            asked = msgpack.unpackb(data)
            flags.append(asked["reset"])
            refused = asked["observation"] is None
            connection.send(pack({"id": asked["id"], **({"error": "No."} if refused else {})}))

    with service(answer) as url, MonitorClient(url, timeout_s=30.0) as client:
        for observation, reset in [(1, False), (1, False), (1, True), (1, False)]:
            client.update(observation, None, reset=reset)
        client.reset()
        with pytest.raises(MonitorError, match=r"refused the step: No\."):
            client.update(None, None)
        client.update(1, None)
        client.update(1, None)
    assert flags == [True, False, True, False, True, True, False]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ({"id": 1, "error": "The rule."}, "refused the step: The rule"),
        ({"id": None, "error": "The rule."}, "refused the step: The rule"),
        ({"id": 1, "x": OBJECTS}, "invalid answer: .*an array of object"),
        ({"id": 1, "x": {**OBJECTS, b"dtype": "<f8", b"shape": [2]}}, "invalid answer"),
        (
            {"id": 1, "x": {b"__npgeneric__": True, b"data": 10**12, b"dtype": "V"}},
            "invalid answer",
        ),
        ({"id": 1, "x": {b"__ndarray__": True}}, "invalid answer: .*dtype"),
        ({}, "invalid answer: .*id"),
        ([], "invalid answer"),
        (b"\xc1", "invalid answer"),
        ("Traceback", "invalid answer"),
    ],
)
def test_what_is_no_verdict_is_an_error(reply: object, text: str) -> None:
    with (
        service(replies(reply)) as url,
        MonitorClient(url, timeout_s=30.0) as client,
        pytest.raises(MonitorError, match=f"{url} .*{text}"),
    ):
        client.update(None, None)


def test_a_service_that_takes_no_message_is_cut_off() -> None:
    """More than the buffers of the operating system hold, and nobody reads."""
    done = threading.Event()
    with (
        service(lambda connection: bool(done.wait(30))) as url,
        MonitorClient(url, timeout_s=0.2) as client,
    ):
        connection = client._connection
        try:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            with pytest.raises(MonitorError):
                client.update(bytes(2**25), None)
            with pytest.raises(MonitorError, match="No connection"):
                client.update(None, None)
        finally:
            done.set()


@pytest.fixture
def deaf() -> Iterator[int]:
    """Port of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_says_nothing_is_given_up(deaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_client, "CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(MonitorError, match=rf"{deaf} did not answer within 0\.2 s"):
        MonitorClient(f"ws://127.0.0.1:{deaf}")


@pytest.mark.parametrize("url", ["ws://127.0.0.1:{port}", "127.0.0.1:{port}", "", "ws://"])
def test_no_server_at_all(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = url.format(port=server.getsockname()[1])
    with pytest.raises(MonitorError, match=f"No connection to {re.escape(url)}: "):
        MonitorClient(url)
