"""Runs `fuzz.py` in a process of its own, so that a crash is told from a failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

MUTATIONS = int(os.environ.get("WORLDMODEL_FUZZ", "40"))
"""Mutations of each folder."""
SCRIPT = Path(__file__).with_name("fuzz.py")
PEAK_MIB = 1500


def fuzz(reader: str, folder: Path, *, part: str = "", mutations: int = MUTATIONS) -> None:
    """Assert that every damaged copy of a folder is read or refused, in bounded memory."""
    command = [sys.executable, str(SCRIPT), reader, str(folder), str(mutations), "0", part]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    if log := os.environ.get("WORLDMODEL_FUZZ_LOG"):
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reader": reader, "folder": folder.name, **told}) + "\n")
    assert told["read"] + told["refused"] == mutations
    assert told["refused"] > mutations // 10
    assert told["peak_mib"] < PEAK_MIB
