"""TFRecord files and the `tf.train.Example` messages in them, read without TensorFlow.

A record is its length (8 bytes, little endian), the length's masked CRC-32C (4), the payload, and
the payload's masked CRC-32C (4). Any damage raises ValueError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of the protocol buffer encoding."""

Values = list[bytes] | np.ndarray
"""One feature: byte strings, float32 values or int64 values."""


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord stores it.

    >>> hex(masked_crc(b"123456789"))
    '0xc78ab0e5'
    """
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_offsets(path: Path) -> tuple[int, ...]:
    """Offset of each record of a file; payloads are skipped, not read."""
    size = path.stat().st_size
    offsets, offset = [], 0
    with path.open("rb") as file:
        while offset < size:
            offsets.append(offset)
            file.seek(offset)
            offset += HEADER.size + _payload_length(file, path) + FOOTER.size
            if offset > size:
                raise ValueError(f"{path} ends inside record {len(offsets) - 1}; it is truncated.")
    return tuple(offsets)


def read_record(path: Path, offset: int) -> bytes:
    """Payload of the record at an offset, with verified checksum."""
    with path.open("rb") as file:
        file.seek(offset)
        length = _payload_length(file, path)
        if length > path.stat().st_size - file.tell():
            raise ValueError(f"{path} ends inside the record at byte {offset}; it is truncated.")
        payload, footer = file.read(length), file.read(FOOTER.size)
    if len(footer) < FOOTER.size or FOOTER.unpack(footer)[0] != masked_crc(payload):
        raise ValueError(
            f"{path} is damaged: the record at byte {offset} fails its checksum; copy it again."
        )
    return payload


def _payload_length(file: BinaryIO, path: Path) -> int:
    """Length of the payload that follows the header at the file's position."""
    offset = file.tell()
    header = file.read(HEADER.size)
    if len(header) < HEADER.size or HEADER.unpack(header)[1] != masked_crc(header[:8]):
        raise ValueError(
            f"{path} is damaged: the record at byte {offset} has a broken header; copy it again."
        )
    return HEADER.unpack(header)[0]


def parse_example(payload: bytes) -> dict[str, Values]:
    """The features of a serialised `tf.train.Example` by name.

    Raises:
        ValueError: if the bytes are not such a message.

    >>> parse_example(bytes.fromhex("0a0e0a0c0a016112071a050a03010203"))
    {'a': array([1, 2, 3])}
    """
    features: dict[str, Values] = {}
    for entry in _submessages(payload, 1, 1):  # Example.features, Features.feature
        fields = dict(_fields(entry))
        name, feature = fields.get((1, BYTES), b""), fields.get((2, BYTES), b"")
        features[str(name, "utf-8")] = _parse_feature(feature)
    return features


def _submessages(message: bytes, *path: int) -> Iterator[bytes]:
    """Every submessage reached by descending through field numbers."""
    number, *rest = path
    for (found, wire), value in _fields(message):
        if (found, wire) == (number, BYTES):
            yield from _submessages(value, *rest) if rest else (value,)


def _parse_feature(feature: bytes) -> Values:
    """A `Feature`: the list of whichever kind it holds, empty if it holds none."""
    parsers = {(1, BYTES): _parse_bytes, (2, BYTES): _parse_floats, (3, BYTES): _parse_ints}
    values: Values = []
    for key, value in _fields(feature):
        if key in parsers:
            values = parsers[key](value)
    return values


def _parse_bytes(message: bytes) -> Values:
    return [value for key, value in _fields(message) if key == (1, BYTES)]


def _parse_floats(message: bytes) -> Values:
    """A `FloatList`, packed or one by one: little-endian float32 either way."""
    chunks = [value for key, value in _fields(message) if key in ((1, BYTES), (1, FIXED32))]
    packed = b"".join(chunks)
    if len(packed) % 4:
        raise ValueError("a list of floats ends inside a number")
    return np.frombuffer(packed, "<f4")


def _parse_ints(message: bytes) -> Values:
    """An `Int64List`, packed or one by one: two's complement varints."""
    packed = b"".join(value for key, value in _fields(message) if key in ((1, BYTES), (1, VARINT)))
    values, position = [], 0
    while position < len(packed):
        value, position = _varint(packed, position)
        values.append(value)
    return np.array(values, np.uint64).view(np.int64)


def _fields(message: bytes) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Field number, wire type and raw bytes of each field; a varint keeps its own encoding."""
    position = 0
    while position < len(message):
        tag, start = _varint(message, position)
        wire = tag & 7
        if wire == VARINT:
            position = _varint(message, start)[1]
        elif wire == BYTES:
            length, start = _varint(message, start)
            position = start + length
        elif wire in (FIXED32, FIXED64):
            position = start + (4 if wire == FIXED32 else 8)
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position > len(message):
            raise ValueError("a field is longer than its message")
        yield (tag >> 3, wire), message[start:position]


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An unsigned 64-bit number in groups of seven bits, and the position after it."""
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + shift + 1
    raise ValueError("a number does not end")
