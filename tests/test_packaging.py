"""The package as its users install it: light imports, declared dependencies, extras, types."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from worldmodel import cli
from worldmodel.extras import EXTRAS, explain_missing

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for folder in ("datasets", "envs", "monitors", "worldmodel")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTION = {
    "OpenGL": "pyopengl",
    "PIL": "pillow",
    "google_crc32c": "google-crc32c",
    "rerun": "rerun-sdk",
    "yaml": "pyyaml",
}
"""Imported package -> its name in pyproject.toml, where the two differ."""
HEAVY = {
    *("accelerate", "av", "diffusers", "gymnasium", "h5py", "matplotlib", "mujoco", "pyarrow"),
    *("scipy", "simplejpeg", "tensorboard", "torch", "torchmetrics", "zarr"),
}
USER_SCRIPT = """
import numpy as np
import worldmodel
from worldmodel.monitors import EpisodeSignals, MonitorConfig, RuntimeMonitor

checkpoint = worldmodel.load("tabletop")
reveal_type(checkpoint.model)
monitor = RuntimeMonitor(MonitorConfig())
reveal_type(monitor.sibling())
level: worldmodel.Level = "stop"
"""


def loaded(code: str) -> set[str]:
    """Packages that a fresh interpreter has loaded after running `code`."""
    report = "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return set(run.stdout.splitlines()[-1].split())


def imports(path: Path) -> Iterator[str]:
    """Third-party packages that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for package in {name.partition(".")[0] for name in names}:
            if package not in sys.stdlib_module_names and package != "worldmodel":
                yield package


def names(requirements: list[str]) -> set[str]:
    """Names of the required distributions."""
    return {re.split(r"[\[<>=]", line)[0].lower().replace("_", "-") for line in requirements}


def distribution(package: str) -> str:
    """Name in pyproject.toml of an imported package."""
    return DISTRIBUTION.get(package, package).lower().replace("_", "-")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded("import worldmodel").isdisjoint(HEAVY | {"numpy"})


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = (
        "import contextlib\nfrom worldmodel import cli\n"
        "for name in ['', *cli.GROUPS, *cli.COMMANDS]:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        cli.main([*name.split(), '--help'])\n"
        "    assert name not in cli.COMMANDS or cli.command_module(name)\n"
        "cli.main(['--version'])"
    )
    assert loaded(code).isdisjoint(HEAVY)


def test_every_imported_package_is_declared() -> None:
    """Base dependencies have no entry in `EXTRAS`; everything else names its extra there."""
    base = names(PROJECT["dependencies"])
    found = {package for path in SOURCES for package in imports(path)}
    undeclared = {name for name in found - EXTRAS.keys() if distribution(name) not in base}
    assert undeclared == set()


@pytest.mark.parametrize("package", EXTRAS)
def test_the_extra_installs_the_package(package: str) -> None:
    extra = EXTRAS[package][1]
    assert distribution(package) in names(PROJECT["optional-dependencies"][extra])


def test_every_dependency_is_used() -> None:
    extras = ("model", "data", "tabletop", "report", "train", "ray", "view")
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in extras)]
    declared = set.union(*(names(part) for part in lists)) - {"worldmodel"}
    found = {distribution(package) for path in SOURCES for package in imports(path)}
    # Accelerate imports TensorBoard, Zarr numcodecs; parallel simulation will import Ray.
    assert declared - found <= {"numcodecs", "ray", "tensorboard"}


def test_a_missing_extra_is_one_sentence() -> None:
    sentence = r"^`worldmodel imagine` needs PyTorch: pip install 'worldmodel\[model\]'\.$"
    with pytest.raises(ImportError, match=sentence), explain_missing("worldmodel imagine"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_other_missing_modules_keep_their_error() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'helpers'"),
        explain_missing("worldmodel imagine"),
    ):
        raise ModuleNotFoundError("No module named 'helpers'", name="helpers")


WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Missing())
"""


def test_a_command_without_its_extra_exits_with_code_2() -> None:
    code = WITHOUT_TORCH + (
        "from worldmodel.cli import main\n"
        "sys.exit(main('imagine --model tabletop --data data --out log.zarr'.split()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "error: `worldmodel imagine` needs PyTorch: pip install 'worldmodel[model]'.\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", expected)


def test_a_public_name_without_its_extra_says_so() -> None:
    code = WITHOUT_TORCH + "import worldmodel\nworldmodel.load"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "ImportError: `worldmodel.load` needs PyTorch: pip install 'worldmodel[model]'."
    assert run.stderr.splitlines()[-1] == expected


def test_completion_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([cli.COMPLETION, "bash"])
    assert not stop.value.code
    script = capsys.readouterr().out
    assert "complete -F _tyro_worldmodel worldmodel\n" in script
    words = {word for command in cli.COMMANDS for word in command.split()}
    assert {word for word in words if f"'{word}': {{" not in script} == set()
    assert "--skip-bad" in script


@pytest.mark.slow
def test_a_users_script_is_type_checked(tmp_path: Path) -> None:
    """Against the installed wheel: its `py.typed` lets mypy see our types."""
    python = os.environ.get("WORLDMODEL_WHEEL_PYTHON")
    if python is None:
        pytest.skip("set WORLDMODEL_WHEEL_PYTHON to a Python with the wheel installed")
    script = tmp_path / "script.py"
    script.write_text(USER_SCRIPT)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--no-incremental"),
            *("--python-executable", python, "script.py"),
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.splitlines() == [
        'script.py:7: note: Revealed type is "worldmodel.model.WorldModel"',
        'script.py:9: note: Revealed type is "worldmodel.monitors.monitor.RuntimeMonitor"',
        "script.py:10: error: Incompatible types in assignment (expression has type "
        '"str", variable has type "Level")  [assignment]',
        "Found 1 error in 1 file (checked 1 source file)",
    ]
