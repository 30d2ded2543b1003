"""Importing the monitor stays cheap, and every public name is there."""

import subprocess
import sys

from worldmodel import monitors

SCRIPT = """
import sys
import worldmodel
before = set(sys.modules)
import worldmodel.monitors
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_import_brings_in_nothing_heavy() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    heavy = {"scipy", "matplotlib", "PIL", "safetensors", "torch", "sklearn"}
    assert heavy.isdisjoint(run.stdout.split())


def test_public_names_exist_and_are_sorted() -> None:
    assert all(hasattr(monitors, name) for name in monitors.__all__)
    assert monitors.__all__ == sorted(monitors.__all__)
