"""Rules for the whole package: import order, size of files, names, pinned dependencies."""

import ast
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from worldmodel import cli

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("datasets", "envs", "monitors")
SOURCES = sorted(
    path for folder in (*LINKED, "worldmodel") for path in (ROOT / folder).rglob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))

ORDER = (
    "budgets extras precision write_lock",
    "structured_files",
    "datasets monitors networks checkpoint c3_files",
    "certificate imagination model_config",
    "model",
    "c3_import episodes",
    "rollouts training",
    "calibration",
    "runtime envs",
    "demo_config evaluation planning",
    "demo",
    "report",
    "cli",
    "__main__",
)
"""Rooms of the package, lowest floor first. A room imports only from lower floors."""
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms.split()}
MAX_MODULES = 25
"""Largest number of modules in a folder."""


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports anywhere, without the leading `worldmodel.`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.partition(".")[2] for name in names if name.startswith("worldmodel."))


def module_name(path: Path, root: Path = ROOT) -> str:
    """Dotted name of a source file, without the leading `worldmodel.`."""
    name = path.relative_to(root).with_suffix("").as_posix().removeprefix("worldmodel/")
    return name.removesuffix("/__init__").replace("/", ".")


def upward_imports(path: Path, root: Path = ROOT) -> list[str]:
    """Imports of a file from another room on the same or a higher floor."""
    room = module_name(path, root).split(".")[0]
    if room == "__init__":  # the public names are imported lazily, from every floor
        return []
    assert room in FLOOR, f"{path}: give {room!r} a floor in `ORDER`."
    targets = ((target, target.split(".")[0]) for target in imported(path))
    return [
        target
        for target, other in targets
        if other != room and (other not in FLOOR or FLOOR[other] >= FLOOR[room])
    ]


def import_graph(paths: Sequence[Path], root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> modules of the same room that it imports."""
    modules = {module_name(path, root) for path in paths}
    graph: dict[str, set[str]] = {}
    for path in paths:
        module = module_name(path, root)
        found = set()
        for target in imported(path):
            owner = target if target in modules else target.rpartition(".")[0]
            if owner in modules and owner.split(".")[0] == module.split(".")[0]:
                found.add(owner)
        graph[module] = found - {module}
    return graph


def name(path: Path) -> str:
    """Test id of a file."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_never_point_upward(path: Path) -> None:
    assert upward_imports(path) == []


def test_rooms_have_no_import_circle() -> None:
    """`graphlib` raises `CycleError` with the modules of the circle."""
    assert len(list(TopologicalSorter(import_graph(SOURCES)).static_order())) >= len(SOURCES)


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.py")), ids=name)
def test_the_simulator_needs_no_world_model(path: Path) -> None:
    rooms = {target.split(".")[0] for target in imported(path)}
    assert rooms <= {"envs", "datasets", "monitors"}


def test_nothing_in_the_package_imports_benchmarks() -> None:
    found = [
        path
        for path in SOURCES
        if re.search(r"^\s*(from|import) benchmarks", path.read_text(), re.M)
    ]
    assert found == []


def test_folders_hold_few_modules() -> None:
    folders = Counter(path.parent for path in SOURCES)
    assert {folder: count for folder, count in folders.items() if count > MAX_MODULES} == {}


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("networks/new.py", "def f():\n    from worldmodel.model import WorldModel\n"),
        ("rollouts/new.py", "import worldmodel.training.loop\n"),
        ("monitors/new.py", "from worldmodel import cli\n"),
        ("datasets/new.py", "from worldmodel.unplaced import thing\n"),
    ],
)
def test_the_floor_rule_finds_an_upward_import(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / "worldmodel" / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert upward_imports(path, tmp_path) != []


def test_the_floor_rule_refuses_a_module_without_a_floor(tmp_path: Path) -> None:
    path = tmp_path / "worldmodel" / "helpers.py"
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(AssertionError, match="give 'helpers' a floor"):
        upward_imports(path, tmp_path)


def test_the_floor_rule_finds_a_circle(tmp_path: Path) -> None:
    paths = [tmp_path / "worldmodel" / "networks" / f"{letter}.py" for letter in "ab"]
    paths[0].parent.mkdir(parents=True)
    paths[0].write_text("from worldmodel.networks.b import thing\n")
    paths[1].write_text("def f():\n    from worldmodel.networks import a\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(import_graph(paths, tmp_path)).static_order())


def public_classes() -> Iterator[tuple[str, str]]:
    """Name and file of every public class except `Command`, which every command defines."""
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name[0] != "_" and node.name != "Command":
                yield node.name, name(path)


def test_no_two_classes_or_modules_share_a_name() -> None:
    """Modules of cli/ are exempt: they have the names of their commands."""
    modules = [p.stem for p in SOURCES if p.parent.name != "cli" and not p.stem.startswith("__")]
    classes = [class_name for class_name, _ in public_classes()]
    assert [name for name, count in Counter(modules).items() if count > 1] == []
    assert [name for name, count in Counter(classes).items() if count > 1] == []


@pytest.mark.parametrize("folder", LINKED)
def test_linked_folders_are_links(folder: str) -> None:
    link = ROOT / "worldmodel" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..", folder)


def test_datasets_is_no_package() -> None:
    """With an `__init__.py`, it would shadow Hugging Face `datasets` in the checkout."""
    assert not list((ROOT / "datasets").rglob("__init__.py"))


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("path", SOURCES + TESTS + BENCHMARKS, ids=name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 80 if node.name in ("__init__", "fit", "train") else 50
            limit = max(limit, 60) if path in BENCHMARKS else limit
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines."


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)  # undo the line breaks of the box
    defined = fields(cli.command_module(command).Command)
    options = [field for field in defined if field.default is not MISSING]
    assert text.count("(default: ") >= len(options)


def test_no_command_is_missing_from_the_usage() -> None:
    modules = {path.stem for path in (ROOT / "worldmodel" / "cli").glob("[a-z]*.py")}
    assert modules <= {command.replace(" ", "_") for command in cli.COMMANDS}


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    outside = ("lerobot", "ray")  # users choose their versions
    groups = [lines for extra, lines in extras.items() if extra not in outside]
    wanted = [line for lines in (project["dependencies"], *groups) for line in lines]
    wanted = [line for line in wanted if not line.startswith("worldmodel[")]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {name.lower().replace("_", "-") for name in pins}
    names = {re.split("[<>=]", line)[0].lower().replace("_", "-") for line in wanted}
    missing = names - pinned
    assert missing == set()
    assert pins["torch"] == "2.13.0"


def test_no_file_names_where_packages_come_from() -> None:
    """The user's pip settings decide which registry serves a package."""
    words = ["pypi." + "org", "python" + "hosted", "download." + "pytorch", "index" + "-url"]
    words += ["find" + "-links", "--trusted" + "-host"]
    command = ["git", "grep", "-l", "-I", "-F", *(part for word in words for part in ("-e", word))]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.split() == []
    assert found.returncode == 1, found.stderr  # git's code for: searched, nothing found
