"""Provenance of a benchmark's result: hardware, versions, commit, date and the results folder."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
"""Tables and figures that README and docs cite."""


def cpu_info() -> str:
    """Contents of /proc/cpuinfo; empty on other systems than Linux."""
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def processor() -> str:
    """Name of the processor."""
    lines = cpu_info().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def hardware() -> str:
    """Name of the processor and number of PyTorch threads."""
    import torch

    return f"{processor()}, {torch.get_num_threads()} thread(s), no GPU"


def versions(*packages: str) -> str:
    """Versions of Python and of installed packages.

    >>> versions("numpy")
    'Python 3..., numpy ...'
    """
    names = [f"{name} {version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *names])


def git_commit() -> str:
    """Commit of this checkout, or "unknown" outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def note_if_looked_at(seed: int) -> None:
    """Print a note if the log of looks names `seed`: a published figure needs a fresh one."""
    looks = (RESULTS / "looks.md").read_text(encoding="utf-8")
    looked_at = looks.partition("## Reserved")[0]
    rows = [line.split("|") for line in looked_at.splitlines() if line.startswith("|")]
    if any(str(seed) in row[1].replace(",", " ").split() for row in rows):
        print(
            f"note: figures of seed {seed} were looked at before (benchmarks/results/looks.md); "
            "a published figure needs a fresh seed.",
            file=sys.stderr,
        )


def today() -> str:
    """Date in UTC, as in 2026-01-31."""
    return datetime.now(UTC).date().isoformat()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
