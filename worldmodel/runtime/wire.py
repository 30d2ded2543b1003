"""Safe parsing of untrusted messages: msgpack with arrays in the wire format of openpi."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgpack
import numpy as np

MAX_PARTS = 1000
"""Maximum number of maps and lists in a message, and of entries in each; a robot's step has a few
dozen. Without the limit, a message of empty maps takes seconds to parse and 80 times its size."""
MAX_DTYPE = 16
"""Maximum number of characters of a dtype, such as "<f4" or "<U12"."""


class ArrayError(ValueError):
    """Invalid part of a message: an array that is not allowed, or too many parts."""


def unpack(data: bytes) -> Any:
    """Parse maps, lists, numbers, text and arrays; nothing is unpickled or executed.

    Raises:
        ArrayError: An array is invalid, or there are too many parts.
        ValueError: `data` is not msgpack.
    """
    numbers = itertools.count(1)

    def counted(value: Any) -> Any:
        if next(numbers) > MAX_PARTS:
            raise ArrayError(f"A message may hold at most {MAX_PARTS} maps and lists.")
        return value

    return msgpack.unpackb(
        data,
        object_hook=lambda value: _decode(counted(value)),
        list_hook=counted,
        max_map_len=MAX_PARTS,
        max_array_len=MAX_PARTS,
    )


def _decode(value: dict[Any, Any]) -> Any:
    is_array = b"__ndarray__" in value
    if not is_array and b"__npgeneric__" not in value:
        return value
    try:
        data, name = value[b"data"], str(value[b"dtype"])
        if len(name) > MAX_DTYPE:  # records of a million fields take seconds to parse
            raise ArrayError(f"A dtype may have at most {MAX_DTYPE} characters, got {len(name)}.")
        dtype = np.dtype(name)
        if dtype.kind not in ("biufSU" if is_array else "biuf") or not dtype.itemsize:
            raise ArrayError(f"An array must hold numbers or text, got dtype {dtype}.")
        if not is_array:
            if not isinstance(data, int | float):
                raise TypeError(f"{type(data).__name__} is not a number")
            return dtype.type(data)
        shape = tuple(value[b"shape"])
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes do not fill shape {shape} of {dtype}")
        return np.ndarray(shape, dtype, buffer=data).copy()
    except ArrayError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise ArrayError(f"An array cannot be read: {error}.") from error
