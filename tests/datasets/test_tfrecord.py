"""The light TFRecord reader: hand-encoded messages, known checksums, and damage of every kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.datasets.readers.tfrecord import (
    masked_crc,
    parse_example,
    read_record,
    record_offsets,
)

EXAMPLE = {
    "ints": np.array([0, 1, -1, 300, -(2**63), 2**63 - 1]),
    "floats": np.array([0.5, -1.25, 3e38], np.float32),
    "bytes": [b"", b"\xff\x00", "grün".encode()],
}


def test_the_checksum_is_the_one_of_the_published_vectors() -> None:
    crc = 0x8A9136AA  # RFC 3720, B.4: 32 bytes of zeroes
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_message_written_by_hand() -> None:
    """Features with a packed list, a list one by one, a negative number, and a field to skip."""
    packed = "0a0e 0a0161 1209 1a07 0a05 01 ac02 9001"
    single = "0a0c 0a0162 1207 1205 0d 0000003f"
    negative = "0a14 0a0163 120f 1a0d 08ffffffffffffffffff01 0805"
    unknown = "1a03 666f6f"
    features = bytes.fromhex(packed + single + negative + unknown)
    parsed = parse_example(b"\x0a" + bytes([len(features)]) + features)
    assert {name: list(values) for name, values in parsed.items()} == {
        "a": [1, 300, 144],
        "b": [0.5],
        "c": [-1, 5],
    }


def test_every_kind_of_value_survives(encode: Callable[[dict[str, Any]], bytes]) -> None:
    parsed = parse_example(encode(EXAMPLE))
    assert parsed.keys() == EXAMPLE.keys()
    assert parsed["bytes"] == EXAMPLE["bytes"]
    np.testing.assert_array_equal(parsed["ints"], EXAMPLE["ints"])
    np.testing.assert_array_equal(parsed["floats"], EXAMPLE["floats"])


def test_of_two_entries_with_one_name_the_last_counts(
    encode: Callable[[dict[str, Any]], bytes],
) -> None:
    twice = encode({"x": np.array([1])}) + encode({"x": np.array([2])})
    assert parse_example(twice)["x"].tolist() == [2]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("0a05 0a", "longer than its message"),
        ("0aff ff", "a number does not end"),
        ("0b", "unknown wire type 3"),
        ("0a0a 0a08 0a0161 1203 1201 00", "longer than its message|does not end"),
        ("0a0b 0a09 0a0161 1204 1202 0d 00", "longer than its message"),
        ("0a0c 0a0a 0a0161 1205 1203 0a 01 00", "ends inside a number"),
        ("0a05 0a03 0a01ff", "codec can't decode"),
    ],
)
def test_what_is_no_message_is_refused(message: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_example(bytes.fromhex(message))


def test_any_flipped_bit_of_a_message_gives_values_or_a_value_error(
    encode: Callable[[dict[str, Any]], bytes],
) -> None:
    """Without a checksum the parser stands alone: it may misread, but it ends, and cleanly."""
    message = encode(EXAMPLE)
    outcomes = {"values": 0, "refused": 0}
    for bit in range(8 * len(message)):
        damaged = bytearray(message)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            parse_example(bytes(damaged))
            outcomes["values"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_random_bytes_in_a_message_give_values_or_a_value_error(
    encode: Callable[[dict[str, Any]], bytes],
) -> None:
    generator = np.random.default_rng(0)
    message = encode(EXAMPLE)
    outcomes = {"values": 0, "refused": 0}
    for _ in range(3000):
        length = int(generator.integers(2, 12))
        start = int(generator.integers(len(message) - length))
        damaged = message[:start] + generator.bytes(length) + message[start + length :]
        try:
            outcomes["values"] += bool(parse_example(damaged))
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_any_flipped_bit_of_a_file_is_noticed(
    tmp_path: Path, framed: Callable[[bytes], bytes]
) -> None:
    """Every bit of two small records: length, checksums and payload are all covered."""
    payloads = [b"one", b""]
    content = b"".join(map(framed, payloads))
    path = tmp_path / "x.tfrecord"
    path.write_bytes(content)
    assert [read_record(path, offset) for offset in record_offsets(path)] == payloads
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.tfrecord (is damaged|ends inside).*\.$"):
            _ = [read_record(path, offset) for offset in record_offsets(path)]


def test_a_file_cut_anywhere_is_noticed(tmp_path: Path, framed: Callable[[bytes], bytes]) -> None:
    content = framed(b"first") + framed(b"second")
    path = tmp_path / "x.tfrecord"
    for length in set(range(1, len(content))) - {len(framed(b"first"))}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"x\.tfrecord (is damaged|ends inside)"):
            record_offsets(path)


def test_a_length_beyond_the_file_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    length = (2**40).to_bytes(8, "little")
    path = tmp_path / "x.tfrecord"
    path.write_bytes(length + masked_crc(length).to_bytes(4, "little") + b"short")
    with pytest.raises(ValueError, match="ends inside"):
        read_record(path, 0)
