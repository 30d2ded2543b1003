"""Settings of a training run: a preset, and the fields that a user changes.

A field is named by its path, such as `dynamics.layers`. Changes come from a TOML file with the same
nested names, and from the command line.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from worldmodel.structured_files import checked, read_toml
from worldmodel.training.presets import Preset, get_preset

LOOPS = (
    "tokenizer_loop", "dynamics_loop", "rollout_loop", "compositor_loop", "picture_loop",
    "confidence_loop", "judge_loop",
)  # fmt: skip
FOLLOWS = {"dynamics": ("channels", "height", "width", "views", "action_dim", "pose", "tasks")}
"""Fields that follow from data and tokenizer: they cannot be set."""
UNSET = "none"
"""Text that stands for no value, such as no Muon."""


@dataclass(frozen=True)
class Settings:
    """Resolved settings of a run."""

    name: str
    """Name of the preset they start from."""
    preset: Preset
    """With all changes."""
    given: frozenset[str] = frozenset()
    """Paths of the fields that the user set, even if to the preset's own value."""


@dataclass(frozen=True, kw_only=True)
class Shorthands:
    """Options of `train` for the fields that are changed most often; None: as in the preset."""

    cameras: tuple[str, ...] | None = None
    height: int | None = None
    steps: int | None = None
    batch_size: int | None = None

    def changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Path -> new value, given the present value of every path.

        `steps` are those of the dynamics; all other loops keep their proportion to it. A warm-up
        takes at most a tenth of the new steps.
        """
        found: dict[str, Any] = {}
        if self.cameras is not None:
            found["cameras"] = self.cameras
        if self.height is not None:
            found["image_height"] = self.height
        if self.batch_size is not None:
            found |= {f"{loop}.batch_size": self.batch_size for loop in LOOPS}
        if self.steps is not None:
            if self.steps < 1:
                raise ValueError(f"`--steps` must be at least 1, got {self.steps}.")
            scale = self.steps / values["dynamics_loop.steps"]
            for loop in LOOPS:
                steps = max(1, round(scale * values[f"{loop}.steps"]))
                warmup = min(values[f"{loop}.warmup"], max(1, steps // 10))
                found |= {f"{loop}.steps": steps, f"{loop}.warmup": warmup}
        return found


def resolve(
    preset: str | None = None,
    *,
    config: Path | None = None,
    assignments: Sequence[str] = (),
    shorthands: Shorthands | None = None,
) -> Settings:
    """Settings from a preset, a TOML file, shorthands and assignments; later ones win.

    Args:
        preset: Name of the preset; None: that of the file, or "smoke".
        config: TOML file with nested fields of `Preset`, and perhaps the name of a `preset`.
        assignments: Texts "FIELD=VALUE", such as "dynamics.layers=6".
        shorthands: Options with a name of their own.

    Raises:
        OSError: The file cannot be read.
        ValueError: An unknown field, a value of another type, or values that do not fit together.
    """
    stored = {} if config is None else read_toml(config, dict)
    base = stored.pop("preset", None)
    if base is not None and not isinstance(base, str):
        raise ValueError(f"`preset` in {config} must be the name of a preset, got {base!r}.")
    if preset is not None and base is not None and preset != base:
        raise ValueError(
            f"`--preset` is {preset!r}, but `preset` in {config} is {base!r}; give one of them."
        )
    name = preset or base or "smoke"
    own = get_preset(name)
    changes = dict(leaves(own, stored))
    changes |= (shorthands or Shorthands()).changes(flat(own) | changes)
    changes |= dict(parse(own, text) for text in assignments)
    return Settings(name, changed(own, changes), frozenset(changes))


def leaves(config: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every field in a nested table, checked against its type."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        current = getattr(config, field_name(config, key, path))
        if is_dataclass(current) and isinstance(value, Mapping):
            yield from leaves(current, value, f"{path}.")
        else:
            yield path, typed(config, key, value, path)


def parse(preset: Preset, text: str) -> tuple[str, Any]:
    """(path, value) of an assignment "FIELD=VALUE".

    >>> parse(get_preset("smoke"), "dynamics.layers=6")
    ('dynamics.layers', 6)
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ValueError(f"`--set` must be FIELD=VALUE, such as dynamics.layers=6, got {text!r}.")
    config, (*groups, key) = preset, path.split(".")
    for group in groups:
        config = getattr(config, field_name(config, group, path))
        if not is_dataclass(config):
            raise ValueError(f"`{group}` in setting {path!r} is no group of settings.")
    field_name(config, key, path)
    return path, typed(config, key, literal(value.strip()), path, text=value.strip())


def literal(text: str) -> Any:
    """Value that a text stands for, as in TOML; a word stands for itself.

    >>> literal("[0.8, 0.1]"), literal("bf16"), literal("True")
    ([0.8, 0.1], 'bf16', True)
    """
    word = text.lower() if text in ("True", "False") else text
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def field_name(config: Any, key: str, path: str) -> str:
    """`key`, if it is a field of `config` that can be set.

    Raises:
        ValueError: It is unknown, or it follows from the data.
    """
    group = path.rpartition(".")[0]
    known = [field.name for field in fields(config) if field.name not in FOLLOWS.get(group, ())]
    if key in known:
        return key
    if key in FOLLOWS.get(group, ()):
        raise ValueError(
            f"`{path}` follows from the data and the tokenizer and cannot be set; `cameras`, "
            "`image_height` and `tokenizer.channels` can."
        )
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"Unknown field {key!r} of setting {path!r}; known: {known}.{hint}")


def typed(config: Any, key: str, value: Any, path: str, *, text: str | None = None) -> Any:
    """Value of a field as its declared type; `text` is how a command line spells it."""
    kind = get_type_hints(type(config))[key]
    if is_dataclass(current := getattr(config, key)):
        first = next(name for name in flat(current) if name not in FOLLOWS.get(path, ()))
        raise ValueError(f"`{path}` is a group; set one of its fields, such as `{path}.{first}`.")
    if kind is str and text is not None:
        return text
    if value == UNSET and type(None) in get_args(kind):
        return None
    holder = msgspec.defstruct("Setting", [("value", kind)])
    return checked({"value": value}, holder, f"Setting `{path}`", "correct it").value  # type: ignore[attr-defined]


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """Copy of a nested dataclass with the fields of some paths replaced."""
    groups: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for path, value in changes.items():
        group, dot, rest = path.partition(".")
        if dot:
            groups.setdefault(group, {})[rest] = value
        else:
            values[path] = value
    for group, inner in groups.items():
        try:
            values[group] = changed(getattr(config, group), inner)
        except ValueError as error:
            raise ValueError(f"Settings of `{group}`: {error}") from error
    return replace(config, **values)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Path -> value of every field, in the order of their definition."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        found |= flat(value, f"{path}.") if is_dataclass(value) else {path: value}
    return found


def to_toml(settings: Settings) -> str:
    """All settings as a TOML file that `resolve` reads."""
    preset = settings.preset
    lines = [f'preset = "{settings.name}"', *table(preset)]
    for field in fields(preset):
        group = getattr(preset, field.name)
        if is_dataclass(group):
            lines += ["", f"[{field.name}]", *table(group, FOLLOWS.get(field.name, ()))]
    return "\n".join(lines) + "\n"


def table(config: Any, without: Sequence[str] = ()) -> Iterator[str]:
    """Lines of the fields of a dataclass that are no dataclasses themselves."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in without and not is_dataclass(value):
            yield f"{field.name} = {toml_value(value)}"


def toml_value(value: Any) -> str:
    """Text of a value in TOML.

    >>> toml_value((0.5, ("a", None, True)))
    '[0.5, ["a", "none", true]]'
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if value is None or isinstance(value, str):
        return json.dumps(UNSET if value is None else value)  # a JSON string is a TOML string
    return repr(value)
