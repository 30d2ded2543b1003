"""Structured files (JSON, JSON lines, TOML, YAML): decoded and checked against a declared type.

A type is any class that msgspec understands: a `Struct`, a dataclass, `dict[str, int]`. Deep
nesting, NaN, numbers beyond the range of a float, wrong types and missing keys raise one
`ValueError` that names the file and the field. Unknown keys are ignored.

msgspec and not pydantic: it has no dependencies (the base install needs it on robots), decodes
and checks in one pass, and does not convert "5" to 5.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from worldmodel import budgets

T = TypeVar("T")
MAX_DEPTH = 200
"""Deepest nesting of lists and objects."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Number of things, exact as a float, too."""
Positive = Annotated[int, msgspec.Meta(gt=0, le=2**53)]
Rate = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]
"""Frames or actions per second."""
KEY = re.compile(rb'"((?:[^"\\]|\\.){1,80})"\s*:')


def read_json(file: Path, kind: type[T], advice: str = "copy it again") -> T:
    """Content of a JSON file as a declared type.

    Args:
        file: A regular file.
        kind: Type of the content.
        advice: Last clause of the message.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not JSON or not of that type; names the file and the field.
    """
    return decode_json(content(file), kind, str(file), advice)


def decode_json(data: bytes, kind: type[T], where: str, advice: str = "copy it again") -> T:
    """JSON text as a declared type; `where` names its source in messages."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (RecursionError, msgspec.ValidationError) as error:
        raise _refusal(error, where, advice) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where} is not valid JSON ({_malformed(data, error)}); {advice}."
        ) from error


def read_json_lines(file: Path, kind: type[T], advice: str = "copy it again") -> list[T]:
    """Every line of a JSON-lines file that is not blank, as a declared type."""
    lines = content(file).splitlines()
    return [
        decode_json(line, kind, f"{file}, line {number}", advice)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def read_toml(file: Path, kind: type[T], advice: str = "correct it") -> T:
    """Content of a TOML file as a declared type.

    Raises:
        OSError, ValueError: as `read_json`.
    """
    try:
        found = tomllib.loads(content(file).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not valid TOML ({error}); {advice}.") from error
    return checked(found, kind, str(file), advice)


def read_yaml(file: Path, kind: type[T], advice: str = "correct it") -> T:
    """Content of a YAML file without tags as a declared type; an empty file counts as {}.

    Raises:
        OSError, ValueError: as `read_json`. Aliases are refused: they can expand without bound.
    """
    import yaml

    data = content(file)
    try:
        tokens = yaml.scan(data, Loader=yaml.SafeLoader)
        if any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise ValueError("aliases are not allowed")
        found = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is not readable YAML ({reason}); {advice}.") from error
    return checked({} if found is None else found, kind, str(file), advice)


def checked(found: Any, kind: type[T], where: str, advice: str = "copy it again") -> T:
    """A decoded value as a declared type; `where` names its source in messages.

    Raises:
        ValueError: if a key is missing, a value has another type, or a number is not finite.
    """
    try:
        _require_finite(found, "$")
    except (RecursionError, msgspec.ValidationError) as error:
        raise _refusal(error, where, advice) from error
    return converted(found, kind, where, advice)


def converted(found: Any, kind: type[T], where: str, advice: str = "copy it again") -> T:
    """As `checked`, for a value from `decode_json`, whose numbers are finite already."""
    try:
        return msgspec.convert(found, kind)
    except (RecursionError, msgspec.ValidationError) as error:
        raise _refusal(error, where, advice) from error


def _refusal(error: Exception, where: str, advice: str) -> ValueError:
    """Error for a value of another type, or nested too deeply."""
    if isinstance(error, RecursionError):
        return ValueError(f"{where} is nested too deeply; {advice}.")
    return ValueError(f"{where}: {_field(error)}; {advice}.")


def content(file: Path) -> bytes:
    """Bytes of a regular file within the budget of a text.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no regular file, or too large.
    """
    status = file.stat()
    if not file.is_file():
        raise ValueError(f"{file} is no regular file.")
    budgets.require(status.st_size, budgets.TEXT_BYTES, f"{file} in bytes")
    return file.read_bytes()


def _field(error: Exception) -> str:
    """Message of msgspec with the field first.

    >>> _field(ValueError("Expected `int`, got `str` - at `$.fps`"))
    '`fps`: expected `int`, got `str`'
    """
    problem, _, place = str(error).partition(" - at ")
    problem = problem[:1].lower() + problem[1:]
    return f"{place.replace('$.', '', 1)}: {problem}" if place else problem


def _malformed(data: bytes, error: Exception) -> str:
    """Reason why bytes are not JSON, with the last key before the fault."""
    reason = str(error).removeprefix("JSON is malformed: ")
    found = re.search(r"byte (\d+)", reason)
    if found is None:
        return reason
    place = int(found[1])
    if data[place:].startswith((b"NaN", b"Inf")) or data[place - 1 :].startswith(b"-Inf"):
        reason = "JSON has no NaN and no infinity"
    keys = KEY.findall(data, max(0, place - 10_000), place + 1)
    return f"{reason}, after `{keys[-1].decode(errors='replace')}`" if keys else reason


def _require_finite(value: Any, place: str, depth: int = 0) -> None:
    """Raise on a number that is not finite, and on nesting beyond the limit."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, float) and not math.isfinite(value):
        raise msgspec.ValidationError(f"Expected a finite number, got {value} - at `{place}`")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _require_finite(entry, f"{place}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _require_finite(entry, f"{place}[{index}]", depth + 1)
