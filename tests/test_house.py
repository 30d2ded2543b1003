"""The house rules that no single module can break unseen."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from worldmodel import cli

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("datasets", "envs", "monitors")
SOURCES = sorted(
    path for folder in (*LINKED, "worldmodel") for path in (ROOT / folder).rglob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))

TOP_FLOOR = (
    "benchmark",
    "calibration_benchmark",
    "cli",
    "__main__",
    "demo",
    "evaluation",
    "left_out_episodes",
    "live_view",
    "planning",
    "report",
    "rollout_report",
    "statistics",
    "view_strip",
)
"""Modules of worldmodel/ that stand above envs/, by the first part of their name."""
MAY_IMPORT = {
    "datasets": {"datasets"},
    "monitors": {"monitors"},
    "core": {"core", "datasets", "monitors"},
    "envs": {"envs", "core", "datasets", "monitors"},
    "top": {"top", "envs", "core", "datasets", "monitors"},
}


def floor(module: str) -> str:
    """The floor of a module below `worldmodel`, such as "datasets.trajectory"."""
    first = module.split(".")[0]
    if first in LINKED:
        return first
    return "top" if first.split("_")[0] in TOP_FLOOR or first in TOP_FLOOR else "core"


def imported(path: Path) -> Iterator[str]:
    """Our modules that a file imports anywhere, without the leading `worldmodel.`."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "worldmodel":
            names = [f"worldmodel.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [str(node.module)]
        yield from (name.partition(".")[2] for name in names if name.startswith("worldmodel."))


def name(path: Path) -> str:
    """A file's test id."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_never_point_upward(path: Path) -> None:
    module = path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("worldmodel/")
    allowed = MAY_IMPORT[floor(module.replace("/", "."))]
    wrong = [target for target in imported(path) if floor(target) not in allowed]
    assert not wrong, f"{module} may import only {sorted(allowed)}."


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("datasets.rlds", "datasets"),
        ("report_figures", "top"),
        ("cli.train", "top"),
        ("model", "core"),
    ],
)
def test_floors(module: str, expected: str) -> None:
    assert floor(module) == expected


def test_the_layering_guard_sees_imports_inside_functions(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from worldmodel import envs\n    import worldmodel.cli.train\n")
    assert list(imported(path)) == ["envs", "cli.train"]


@pytest.mark.parametrize("folder", LINKED)
def test_linked_folders_are_links(folder: str) -> None:
    link = ROOT / "worldmodel" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..", folder)


def test_datasets_is_no_package() -> None:
    """With an `__init__.py` it would hide Hugging Face `datasets` from whoever starts here."""
    assert not list((ROOT / "datasets").rglob("__init__.py"))


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_importing_worldmodel_is_light() -> None:
    heavy = (
        "av diffusers gymnasium h5py lerobot matplotlib mujoco pyarrow ray scipy tensorboard "
        "torchmetrics zarr"
    )
    code = f"import sys, worldmodel; print(*set({heavy.split()}) & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 80 if node.name in ("__init__", "fit", "train") else 50
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines."


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    module = importlib.import_module(f"worldmodel.cli.{command.replace(' ', '_')}")
    options = [field for field in fields(module.Command) if field.default is not MISSING]
    assert text.count("(default: ") >= len(options)


def test_no_command_is_missing_from_the_usage() -> None:
    modules = {path.stem for path in (ROOT / "worldmodel" / "cli").glob("[a-z]*.py")}
    assert modules <= {command.replace(" ", "_") for command in cli.COMMANDS}


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"] + extras["docs"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {name.lower().replace("_", "-") for name in pins}
    missing = [line for line in wanted if re.split("[<>=]", line)[0] not in pinned]
    assert missing == []
    assert pins["torch"] == "2.13.0"


def test_no_file_names_where_packages_come_from() -> None:
    """Which registry serves a package is the user's choice, made in their own pip settings."""
    words = ["pypi." + "org", "python" + "hosted", "download." + "pytorch", "index" + "-url"]
    words += ["find" + "-links", "--trusted" + "-host"]
    command = ["git", "grep", "-l", "-I", "-F", *(part for word in words for part in ("-e", word))]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.split() == []
    assert found.returncode == 1, found.stderr  # git's code for: searched, nothing found
