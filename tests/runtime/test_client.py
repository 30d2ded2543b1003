"""The client by itself: its wire format byte by byte, its size, and what it makes of silence."""

import importlib.util
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import msgpack
import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from worldmodel.runtime import client as monitor_client
from worldmodel.runtime import wire
from worldmodel.runtime.client import MonitorClient, MonitorError, pack

ABOUT = {"cameras": ["front"]}
VERDICT = {
    "id": 1,
    "level": "trust",
    "causes": [],
    "evidence": {"colour": {"score": 0.5, "threshold": None, "note": ""}},
    "trust_map": np.ones((1, 2, 2)),
    "latency_s": 0.01,
    "step": 0,
}
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
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 300
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
    """A service that names its cameras and then does what `answer` does; its address."""

    def handle(connection: ServerConnection) -> None:
        connection.send(msgpack.packb(ABOUT))
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
            connection.send(message if plain else pack(message))

    return answer


def test_verdicts_come_as_they_were_sent() -> None:
    trust_map = np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3)
    verdict = {**VERDICT, "trust_map": trust_map, "score": np.float64(0.1)}
    with service(replies(pack(verdict))) as url, MonitorClient(url, timeout_s=30.0) as client:
        assert client.metadata == ABOUT
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
            answered = {"error": "No."} if refused else VERDICT
            connection.send(pack({**answered, "id": asked["id"]}))

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
        ({"id": 1, "error": "\x1b[2J"}, r"refused the step: \\x1b\[2J"),
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("id", value) for value in (None, True, 1.0, "1", 0, -1, 2, [1])],
        *[("level", value) for value in (None, "fine", "TRUST", 0, "", ["trust"])],
        *[("causes", value) for value in (None, "colour", [1], [None], {"colour": 1})],
        *[("step", value) for value in (None, -1, True, 1.0, "0")],
        *[("latency_s", value) for value in (None, -0.1, float("nan"), float("inf"), True, "0")],
        *[("evidence", value) for value in (None, [], {"colour": None}, {"colour": {}})],
        ("evidence", {"colour": {"score": "1", "threshold": None, "note": ""}}),
        ("evidence", {"colour": {"score": True, "threshold": None, "note": ""}}),
        ("evidence", {"colour": {"score": None, "note": ""}}),
        ("evidence", {"colour": {"score": None, "threshold": None, "note": None}}),
        *[("trust_map", value) for value in (0, [[1.0]], np.full(2, np.nan), np.full(2, 1.5))],
        ("trust_map", np.zeros((1, 2, 2), np.uint8)),
        ("error", None),
        ("error", 5),
    ],
)
def test_every_field_of_a_verdict_is_checked(field: str, value: object) -> None:
    with (
        service(replies({**VERDICT, field: value})) as url,
        MonitorClient(url, timeout_s=30.0) as client,
        pytest.raises(MonitorError, match=f"{url} sent an invalid answer: .*'{field}' is "),
    ):
        client.update(None, None)


@pytest.mark.parametrize("field", VERDICT)
def test_no_field_of_a_verdict_may_be_missing(field: str) -> None:
    reply = {name: value for name, value in VERDICT.items() if name != field}
    with (
        service(replies(reply)) as url,
        MonitorClient(url, timeout_s=30.0) as client,
        pytest.raises(MonitorError, match=f"{url} sent an invalid answer: .*lacks .*'{field}'"),
    ):
        client.update(None, None)


@pytest.mark.parametrize("identity", [True, "1", 7])
def test_an_error_for_another_step_is_no_answer(identity: object) -> None:
    with (
        service(replies({"error": "No.", "id": identity})) as url,
        MonitorClient(url, timeout_s=30.0) as client,
        pytest.raises(MonitorError, match="invalid answer"),
    ):
        client.update(None, None)


def copied_client() -> ModuleType:
    """The file as a robot imports it: nobody checks its types."""
    spec = importlib.util.spec_from_file_location("copied", monitor_client.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hostile:
    """Raises whatever is asked of it."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("hostile")


@pytest.mark.parametrize(
    "observation",
    [np.array([object()]), {1, 2}, 1j, 2**70, Hostile(), lambda: None],
    ids=["objects", "set", "complex", "large", "hostile", "function"],
)
def test_what_cannot_be_sent_is_a_monitor_error(observation: object) -> None:
    nested: list[object] = []
    nested.append(nested)
    copied = copied_client()
    with service(replies(VERDICT)) as url, copied.MonitorClient(url, timeout_s=30.0) as client:
        for shown in (observation, nested):
            with pytest.raises(copied.MonitorError, match="cannot be sent"):
                client.update(shown, None)
        with pytest.raises(copied.MonitorError, match="`reset` must be true or false, got str"):
            client.update(None, None, reset="yes")
        client.timeout_s = -1.0
        with pytest.raises(copied.MonitorError, match="`timeout_s` must be"):
            client.update(None, None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"url": 8765}, "`url` must be text"),
        ({"url": None}, "`url` must be text"),
        ({"url": "ws://["}, "cannot be reached"),
        ({"url": "ws://127.0.0.1:99999"}, "cannot be reached|No connection"),
        ({"api_key": 5}, "`api_key` must be printable ASCII"),
        ({"api_key": "a\r\nX: y"}, "`api_key` must be printable ASCII"),
        ({"api_key": "schlüssel"}, "`api_key` must be printable ASCII"),
        *[({"timeout_s": s}, "`timeout_s` must be") for s in (0, -1.0, float("nan"), None, True)],
        ({"timeout_s": float("inf")}, "`timeout_s` must be"),
        ({"ssl": True}, "`ssl` must be an ssl.SSLContext or None, got bool"),
        ({"ssl": ssl.create_default_context()}, "ssl argument is incompatible"),
    ],
)
def test_wrong_arguments_are_monitor_errors(arguments: dict[str, object], text: str) -> None:
    copied = copied_client()
    with pytest.raises(copied.MonitorError, match=text):
        copied.MonitorClient(**{"url": "ws://127.0.0.1:1", **arguments})


@pytest.mark.parametrize("about", [{}, {"reset_pose": [0.0]}, [], {"cameras": "front"}])
def test_another_server_is_no_monitor(about: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """An openpi policy server speaks the same protocol."""
    monkeypatch.setitem(globals(), "ABOUT", about)
    with service(replies()) as url, pytest.raises(MonitorError, match="no monitor: its first"):
        MonitorClient(url)


def test_loopback_addresses_ignore_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "ws_proxy", "all_proxy", "socks_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with service(replies(VERDICT)) as url:
        for address in (url, url.replace("127.0.0.1", "localhost")):
            with MonitorClient(address, timeout_s=30.0) as client:
                assert client.update(None, None)["level"] == "trust"
    with pytest.raises(MonitorError, match=r"Connection refused|proxy"):  # others do not
        MonitorClient("ws://192.0.2.1:8765")


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
