"""The client's wire format, byte by byte, and what it makes of silence."""

import socket
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest

from worldmodel.monitor_client import ArrayError, MonitorClient, pack, unpack


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
    np.testing.assert_array_equal(unpack(expected), array)


def test_scalars_are_packed_as_openpi_packs_them() -> None:
    expected = (
        b"\x83"  # map of 3
        b"\xc4\x0d__npgeneric__\xc3"
        b"\xc4\x04data\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00"  # float64 0.5
        b"\xc4\x05dtype\xa3<f4"
    )
    assert pack(np.float32(0.5)) == expected
    assert unpack(expected) == np.float32(0.5)
    assert unpack(expected).dtype == np.float32


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.array(7),
        np.arange(6, dtype=">i2").reshape(2, 3).T,
        np.array([True, False]),
        np.array(["front", "wrist"]),
        np.array([np.nan, np.inf, -0.0]),
    ],
    ids=["empty", "scalar", "big-endian, transposed", "bool", "text", "not finite"],
)
def test_round_trip(array: np.ndarray) -> None:
    back = unpack(pack({"x": [array]}))["x"][0]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert back.flags.writeable


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.zeros(2, "f4,i4"), np.zeros(2, complex), {1, 2}]
)
def test_other_things_are_not_packed(value: object) -> None:
    with pytest.raises(ArrayError, match="numbers, text and their arrays"):
        pack({"x": value})


def fake(**changes: object) -> bytes:
    parts = {"__ndarray__": True, "data": b"\x00" * 8, "dtype": "<f8", "shape": [1], **changes}
    return msgpack.packb({name.encode(): value for name, value in parts.items()})


@pytest.mark.parametrize(
    "data",
    [
        fake(dtype="|O"),
        fake(dtype="|V8"),
        fake(dtype="f4,i4"),
        fake(dtype="no such type"),
        fake(dtype=None),
        fake(shape=[2]),
        fake(shape=[-1]),
        fake(shape=[2**62, 0]),
        fake(shape=3),
        fake(shape=[1.0]),
        fake(data="text"),
        fake(data=None),
        msgpack.packb({b"__ndarray__": True}),
        msgpack.packb({b"__npgeneric__": True, b"data": 10**12, b"dtype": "S"}),
        msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
    ],
)
def test_arrays_that_cannot_be_are_refused(data: bytes) -> None:
    with pytest.raises(ArrayError):
        unpack(data)


def test_random_bytes_are_a_message_or_a_value_error() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        try:
            unpack(rng.bytes(rng.integers(1, 60)))
        except ValueError:
            continue
    with pytest.raises(msgpack.exceptions.StackError):
        unpack(b"\x91" * 100_000)


@pytest.fixture
def deaf() -> Iterator[int]:
    """Port of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_says_nothing_is_given_up(deaf: int) -> None:
    with pytest.raises(TimeoutError):
        MonitorClient(f"ws://127.0.0.1:{deaf}", connect_timeout_s=0.2)


def test_no_server_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match=r"refused|111"):
        MonitorClient(f"ws://127.0.0.1:{port}")
