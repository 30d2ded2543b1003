"""Damaged files of every form: each is read, or refused with a `ValueError` or `OSError`.

`make fuzz` runs many more mutations than the tests do.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.fuzz_run import fuzz
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.rollout_log import RolloutLog

FORMS = [
    "clip_store",
    "droid_folder",
    "droid_raw_folder",
    "irasim_folder",
    "lerobot_folder",
    "lerobot_v2_folder",
    "rlds_folder",
    "worldgym_folder",
]


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
def test_a_damaged_data_set_is_read_or_refused(form: str, request: pytest.FixtureRequest) -> None:
    fuzz("dataset", request.getfixturevalue(form))


def test_a_damaged_log_is_read_or_refused(tmp_path: Path) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={"seed": 0})
    for name in ("closed", "open"):
        rollout = log.begin(name, {"facts": {"rate": 5.0}})
        for number in range(3):
            rollout.append({"score": number / 2, "causes": ["a", "b"], "frame": np.ones((2, 3))})
        if name == "closed":
            rollout.close()
    fuzz("rollout-log", log.path)


def test_a_damaged_action_spec_is_read_or_refused(tmp_path: Path) -> None:
    text = 'columns = ["observation.state"]\ngripper = "closed_is_one"\n'
    (tmp_path / "spec.toml").write_text(text)
    fuzz("action-spec", tmp_path)
