"""Structured files: every fault is one `ValueError` that names file and field."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from worldmodel.structured_files import (
    Count,
    Rate,
    checked,
    read_json,
    read_json_lines,
    read_toml,
    read_yaml,
)


class Declared(msgspec.Struct, frozen=True):
    """What the files below must hold."""

    fps: Rate
    count: Count = 0
    names: Annotated[list[str], msgspec.Meta(max_length=3)] = []


FAULTS = [
    ('{"fps": NaN}', r"not valid JSON \(JSON has no NaN and no infinity, after `fps`\)"),
    ('{"fps": 5, "count": -Infinity}', "no NaN and no infinity, after `count`"),
    ('{"fps": 1e400}', "`fps`: number out of range"),
    ('{"fps": 0}', r"`fps`: expected `float` > 0"),
    ('{"fps": "5"}', "`fps`: expected `float`, got `str`"),
    ('{"count": 5}', "missing required field `fps`"),
    ('{"fps": 5, "count": -1}', "`count`: expected `int` >= 0"),
    ('{"fps": 5, "count": 99999999999999999999}', "`count`: expected `int` <= "),
    ('{"fps": 5, "names": ["a", 7]}', r"`names\[1\]`: expected `str`, got `int`"),
    ('{"fps": 5, "names": ["a", "b", "c", "d"]}', "`names`: expected `array` of length <= 3"),
    ("[]", "expected `object`, got `array`"),
    ("", "not valid JSON"),
    ('{"fps": 5', "not valid JSON"),
    ('{"other": ' + "[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_json_faults_name_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "info.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(file, Declared)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("copy it again.")


def test_what_is_right_is_read_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    file.write_text('{"fps": 5, "names": ["a"], "other": {"deep": [1]}}')
    assert read_json(file, Declared) == Declared(fps=5.0, names=["a"])


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    file.write_bytes(b'{"fps": 5, "names": ["\xff"]}')
    with pytest.raises(ValueError, match=r"info\.json"):
        read_json(file, Declared)


def test_json_lines_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"fps": 5}\n\n{"fps": 0}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 3: `fps`"):
        read_json_lines(file, Declared)
    file.write_text('{"fps": 5}\n\n{"fps": 7}\n')
    assert [row.fps for row in read_json_lines(file, Declared)] == [5.0, 7.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fps = nan", "`fps`: expected a finite number, got nan"),
        ("fps = inf", "`fps`: expected a finite number, got inf"),
        ("fps = true", "`fps`: expected `float`, got `bool`"),
        ("fps = ", "not valid TOML"),
        ("fps = 5\nx = " + "[" * 2000 + "]" * 2000, "not valid TOML|nested too deeply"),
    ],
)
def test_toml_faults(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_toml(file, Declared)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fps: .nan", "`fps`: expected a finite number, got nan"),
        ("fps: [5]", "`fps`: expected `float`, got `array`"),
        ("fps: !!python/object/apply:os.system [ls]", "not readable YAML"),
        ("a: &a [1]\nfps: *a", "aliases are not allowed"),
        ("fps: 5\nx: " + "[" * 5000, "YAML|nested too deeply"),
        ("- 1", "expected `object`, got `array`"),
        ("", "missing required field `fps`"),
    ],
)
def test_yaml_faults(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(file, Declared)


def test_decoded_values_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"store: `other\[1\]`: expected a finite number"):
        checked({"fps": 5, "other": [0, float("inf")]}, Declared, "store")
    nested: list[object] = []
    for _ in range(500):
        nested = [nested]
    with pytest.raises(ValueError, match="store is nested too deeply"):
        checked({"fps": 5, "other": nested}, Declared, "store")


def test_only_regular_files_within_the_budget_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "zero.json"):
        with pytest.raises(ValueError, match="no regular file"):
            read_json(tmp_path / name, Declared)
    (tmp_path / "long.json").write_text(" " * 3000)
    monkeypatch.setenv("WORLDMODEL_BUDGET", "1e-5")
    with pytest.raises(ValueError, match="claims 3000, more than"):
        read_json(tmp_path / "long.json", Declared)
