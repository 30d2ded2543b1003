"""Damaged files of every form: each is read, or refused with a `ValueError` or `OSError`.

`make fuzz` runs many more mutations than the tests do.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.open_dataset import open_dataset

MUTATIONS = int(os.environ.get("WORLDMODEL_FUZZ", "40"))
"""Mutations of each form."""
FORMS = ["droid_folder", "worldgym_folder", "rlds_folder", "lerobot_folder", "clip_store"]
SCRIPT = Path(__file__).with_name("fuzz.py")


@pytest.fixture
def clip_store(tmp_path: Path, lerobot_folder: Path) -> Path:
    """The LeRobot folder as a clip store."""
    source = open_dataset(lerobot_folder)
    store = ClipStore.create(
        tmp_path / "store.zarr",
        cameras=source.cameras,
        action_spec=source.action_spec,
        rate_hz=5.0,
    )
    for trajectory in source:
        store.add(trajectory)
    return store.path


@pytest.mark.parametrize("form", FORMS)
def test_damage_is_read_or_refused(form: str, request: pytest.FixtureRequest) -> None:
    """In a process of its own, so that a crash is told from a failure."""
    folder: Path = request.getfixturevalue(form)
    command = [sys.executable, str(SCRIPT), str(folder), str(MUTATIONS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["read"] + told["refused"] == MUTATIONS
    assert told["refused"] > MUTATIONS // 10
    assert told["peak_mib"] < 1500
