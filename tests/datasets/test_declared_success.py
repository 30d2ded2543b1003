"""Successes that data declare reach `Trajectory.success` and the summary, on every form."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import Dataset
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.trajectory import Trajectory


def told(dataset: Dataset) -> list[bool | None]:
    """Success of every episode; the summary must agree."""
    found = [episode.success for episode in dataset]
    assert [dataset.summary(name).success for name in dataset.episode_ids] == found
    return found


def declare_column(folder: Path, name: str, values: list[bool] | list[float]) -> None:
    """Add a column to the LeRobot folder, whose two episodes have 12 and 8 rows."""
    file = folder / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file).append_column(name, pyarrow.array(values))
    pyarrow.parquet.write_table(table, file)
    info = json.loads((folder / "meta/info.json").read_text())
    dtype = "bool" if isinstance(values[0], bool) else "float32"
    info["features"][name] = {"dtype": dtype, "shape": [1]}
    (folder / "meta/info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("name", ["next.success", "is_episode_successful"])
def test_lerobot_says_it_in_the_last_row(lerobot_folder: Path, name: str) -> None:
    declare_column(lerobot_folder, name, [False] * 11 + [True] + [False] * 8)
    assert told(open_dataset(lerobot_folder)) == [True, False]


def test_rewards_are_no_successes(lerobot_folder: Path) -> None:
    declare_column(lerobot_folder, "next.reward", [0.0] * 11 + [1.0] + [0.0] * 8)
    assert told(open_dataset(lerobot_folder)) == [None, None]


def test_a_success_that_is_no_flag_is_refused(lerobot_folder: Path) -> None:
    declare_column(lerobot_folder, "next.success", [0.5] * 20)
    with pytest.raises(ValueError, match=r"`next\.success` ends in 0\.5, expected true or false"):
        open_dataset(lerobot_folder).episode(0)


def test_lerobot_v2_says_it_as_v3_does(lerobot_v2_folder: Path) -> None:
    assert told(open_dataset(lerobot_v2_folder)) == [None]
    file = lerobot_v2_folder / "data/chunk-000/episode_000000.parquet"
    table = pyarrow.parquet.read_table(file)
    table = table.append_column("next.success", pyarrow.array([True] * 8))
    pyarrow.parquet.write_table(table, file)
    info = json.loads((lerobot_v2_folder / "meta/info.json").read_text())
    info["features"]["next.success"] = {"dtype": "bool", "shape": [1]}
    (lerobot_v2_folder / "meta/info.json").write_text(json.dumps(info))
    assert told(open_dataset(lerobot_v2_folder)) == [True]


def test_droid_says_it_by_the_folder(droid_raw_folder: Path) -> None:
    dataset = open_dataset(droid_raw_folder)
    assert dataset.episode_ids == ("failure/2024-01-01/run0", "success/2024-01-01/run0")
    assert told(dataset) == [False, True]


@pytest.mark.parametrize("success", [0, 1, True])
def test_annotations_say_it(droid_folder: Path, success: int) -> None:
    file = droid_folder / "annotation/train/0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"success": success}))
    assert told(open_dataset(droid_folder)) == [bool(success)]


def test_an_annotation_that_says_neither_is_refused(droid_folder: Path) -> None:
    file = droid_folder / "annotation/train/0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"success": 2}))
    with pytest.raises(ValueError, match="`success`: "):
        open_dataset(droid_folder)


@pytest.mark.parametrize("form", ["rlds_folder", "irasim_folder", "worldgym_folder"])
def test_forms_that_declare_none_have_none(form: str, request: pytest.FixtureRequest) -> None:
    assert set(told(open_dataset(request.getfixturevalue(form)))) == {None}


def test_a_clip_store_keeps_it(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> None:
    trajectories = [make_trajectory(str(said), success=said) for said in (True, False, None)]
    store = ClipStore.create(
        tmp_path / "s.zarr",
        cameras=("front",),
        action_spec=trajectories[0].action_spec,
        rate_hz=5.0,
    )
    for trajectory in trajectories:
        store.add(trajectory)
    assert told(ClipStore.open(store.path)) == [True, False, None]
    assert np.array_equal(store.episode(0).signals["done"], trajectories[0].signals["done"])
