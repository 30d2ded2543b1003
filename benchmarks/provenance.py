"""Provenance of a benchmark's result: commit, hardware, and the folder where results are kept."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
"""Tables and figures that README and docs cite."""


def processor() -> str:
    """The processor's name."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def hardware() -> str:
    """The processor's name and the number of threads PyTorch uses."""
    import torch

    return f"{processor()}, {torch.get_num_threads()} thread(s), no GPU"


def git_commit() -> str:
    """The commit of this checkout, or "unknown" outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
