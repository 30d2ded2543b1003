"""README, CONTRIBUTING and docs/ name only what exists; docs/api.md names all that is public."""

import importlib
import pkgutil
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import tyro

import worldmodel
from worldmodel import cli, monitors

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
API = (ROOT / "docs" / "api.md").read_text()
ANY = "*"
FOLDERS = "worldmodel|monitors|envs|datasets|benchmarks|recipes|docs|tests"


def page_id(page: Path) -> str:
    return page.name


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ModuleNotFoundError, AttributeError):
        return False
    return True


def listed(heading: str) -> set[str]:
    """The names in the first column of the table below a heading of docs/api.md."""
    section = API.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    columns = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for column in columns for name in re.findall(r"`(\w+)`", column)}


def documented() -> dict[str, set[str]]:
    """Module -> the members that docs/api.md documents; `ANY` stands for all."""
    pattern = r"automodule:: (\S+)\n(?:   :members:(.*)\n)?"
    return {
        module: set(re.findall(r"\w+", members)) or {ANY}
        for module, members in re.findall(pattern, API)
    }


def commands(page: Path) -> list[list[str]]:
    """The arguments of every complete `worldmodel` command in the console blocks of a page."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("worldmodel ")]
    return [line[1:] for line in words if "..." not in line]


@pytest.mark.parametrize("face", [worldmodel, monitors], ids=lambda face: face.__name__)
def test_api_page_lists_and_documents_every_public_name(face: ModuleType) -> None:
    assert listed(f"`{face.__name__}`") == set(face.__all__)
    members = documented()
    for name in face.__all__:
        home = getattr(face, name).__module__
        assert members.get(home, set()) & {name, ANY}, f"docs/api.md lacks {home}.{name}."


def test_every_documented_member_exists() -> None:
    for module, members in documented().items():
        found = importlib.import_module(module)
        assert [name for name in members - {ANY} if not hasattr(found, name)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_modules_and_imports_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = {
        name.rstrip(".")
        for name in re.findall(r"\b(?:worldmodel|benchmarks)(?:\.[a-zA-Z]\w*)+", text)
    }
    for module, imports in re.findall(r"^from (\S+) import (.+)$", text, re.MULTILINE):
        if module.startswith(("worldmodel", "benchmarks")):
            names |= {f"{module}.{name}" for name in imports.split("  #")[0].split(", ")}
    assert [name for name in sorted(names) if not exists(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_files_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\((?!http|#)([\w./-]+)", page.read_text(encoding="utf-8"))
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_printed_commands_parse(page: Path) -> None:
    for argv in commands(page):
        if argv[0].startswith("-") or argv == ["demo"]:
            continue
        name, options = cli.split_command(argv)
        module = importlib.import_module(f"worldmodel.cli.{name.replace(' ', '_')}")
        tyro.cli(module.Command, args=options)


def test_printed_commands_are_found() -> None:
    """Guards the test above against a pattern that matches nothing."""
    assert sum(len(commands(page)) for page in PAGES) > 20
    assert any(argv[:2] == ["data", "convert"] for argv in commands(ROOT / "README.md"))
