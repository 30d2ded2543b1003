"""`worldmodel data collect`: what it writes, what it prints, what it refuses."""

import json
from pathlib import Path

import pytest

from worldmodel.cli import main
from worldmodel.datasets.clip_store import ClipStore

SMALL = ["--renderer", "ray", "--size", "16", "--num-steps", "3", "--policy", "clean"]


def test_it_records_continues_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a.zarr")
    assert main(["data", "collect", out, "--episodes", "1", *SMALL]) == 0
    assert capsys.readouterr().out == f"{out}: 1 episodes, 0 successful\n"
    assert main(["data", "collect", out, "--episodes", "3", "--json", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": out, "episodes": 3, "successes": 0}
    store = ClipStore.open(out)
    assert len(store) == 3
    assert store.episode(2).frames["image"][:].shape == (3, 16, 16, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factor", "ligthing"], "Unknown factor 'ligthing'; known: nominal, "),
        (["--renderer", "opengl"], "Unknown renderer 'opengl'; known: auto, gl, ray."),
        (["--severity", "0"], "`severity` must be 1, 2 or 3, got 0."),
        (["--episodes", "0"], "`episodes` and `workers` must be at least 1, got 0, 1."),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["data", "collect", str(tmp_path / "a.zarr"), *SMALL, *options]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert any(line.startswith(f"error: {message}") for line in errors)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["data", "collect", str(tmp_path), *SMALL]) == 2
    assert str(tmp_path) in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_help_names_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "collect", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for words in ("pixels", "5 Hz", "default: 64", "default: mixed", "one thread each"):
        assert words in " ".join(text.split())
