"""Full disks, lack of memory and kills at every write: one version stays readable."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("store", "log", "model", "monitor", "bare_monitor", "verdicts", "run")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled shim."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler (cc)")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    flags = ["-shared", "-fPIC", "-O1", "-o", str(library)]
    subprocess.run([compiler, *flags, str(source), "-ldl"], check=True, capture_output=True)
    return library


def inject(shim: Path, names: Sequence[str], points: int) -> list[dict]:
    """Counts of each scenario."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.inject", str(points), *names],
        env=os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_fault_in_the_middle_corrupts_nothing(shim: Path) -> None:
    for told in inject(shim, NAMES, 1):
        assert told["corruptions"] == []
        assert told["calls"] >= 6
        assert min(told["faults"].values()) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_at_any_write_corrupts_nothing(shim: Path, name: str) -> None:
    (told,) = inject(shim, [name], 0)
    if log := os.environ.get("WORLDMODEL_FAULT_LOG"):
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
    assert told["corruptions"] == []
    assert told["faults"]["kill"] == told["calls"]
