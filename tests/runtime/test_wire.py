"""What a service reads of messages from anyone: arrays that can be, in bounded time and memory."""

import msgpack
import numpy as np
import pytest

from worldmodel.runtime.client import pack
from worldmodel.runtime.wire import MAX_PARTS, ArrayError, unpack


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
        fake(dtype="f4," * 2**20),
        fake(dtype=None),
        fake(dtype="S0", shape=[2**40], data=b""),
        fake(shape=[2]),
        fake(shape=[-1]),
        fake(shape=[2**62, 0]),
        fake(shape=[0] * 99, data=b""),
        fake(shape=3),
        fake(shape=[1.0]),
        fake(data="text"),
        fake(data=None),
        msgpack.packb({b"__ndarray__": True}),
        msgpack.packb({b"__npgeneric__": True, b"data": 10**12, b"dtype": "S"}),
        msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
        msgpack.packb({b"__npgeneric__": True, b"data": "1", b"dtype": "<f8"}),
        msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f8"}),
    ],
)
def test_arrays_that_cannot_be_are_refused(data: bytes) -> None:
    with pytest.raises(ArrayError):
        unpack(data)


def test_random_bytes_are_a_message_or_a_value_error() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        try:
            unpack(rng.bytes(rng.integers(1, 60)))
        except ValueError:
            continue
    with pytest.raises(msgpack.exceptions.StackError):
        unpack(b"\x91" * 100_000)


@pytest.mark.parametrize("part", [{}, [], {"a": None}], ids=["maps", "lists", "full maps"])
def test_a_message_of_nothing_but_parts_is_refused(part: object) -> None:
    most = [[part] * (MAX_PARTS // 2 - 2)] * 2  # with the three lists around, one below the limit
    assert unpack(pack(most)) == most
    with pytest.raises(ArrayError, match=f"at most {MAX_PARTS} maps and lists"):
        unpack(pack([*most, part, part, part]))


@pytest.mark.parametrize("many", [[1] * (MAX_PARTS + 1), {str(n): 1 for n in range(1001)}])
def test_too_long_a_list_or_map_is_refused(many: object) -> None:
    with pytest.raises(ValueError, match="exceeds max_"):
        unpack(pack(many))
