"""LeRobot: the same canonical arrays as the annotations, and folders broken in every way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from worldmodel.datasets.dataset import require_declared
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.readers.annotation_json import open_annotation_json
from worldmodel.datasets.readers.lerobot import open_lerobot
from worldmodel.datasets.readers.pose_columns import PoseColumns

VIDEO = "observation.images.wrist"
POSES = PoseColumns(columns=("observation.state",), gripper="closed_is_one")
"""The meaning of the real sample, whose columns have no names."""
ANNOTATED = {7: "val/1799", 8: "val/18599", 9: "val/199", 10: "val/899"}
"""LeRobot's index of the validation episodes; the others keep their number."""


def test_real_episodes_are_all_found(real_data: Path) -> None:
    dataset = open_lerobot(real_data / "droid_lerobot_v3", POSES)
    assert dataset.episode_ids == tuple(f"train/{i}" for i in range(11))
    lengths = [dataset.summary(i).num_frames for i in range(11)]
    assert lengths == [56, 89, 137, 80, 124, 62, 39, 41, 72, 33, 121]
    assert dataset.cameras == ("exterior_1_left",)
    assert dataset.rate_hz == 5.0
    assert dataset.summary(1).instruction == "Put the blue block in the green bowl"


@pytest.mark.parametrize("index", range(11))
def test_canonical_arrays_equal_those_of_the_annotations(real_data: Path, index: int) -> None:
    lerobot = open_lerobot(real_data / "droid_lerobot_v3", POSES).episode(index)
    annotated = open_annotation_json(real_data / "droid").episode(
        ANNOTATED.get(index, f"train/{index}")
    )
    np.testing.assert_allclose(lerobot.actions, annotated.actions, atol=1e-6)
    np.testing.assert_array_equal(lerobot.action_valid, annotated.action_valid)
    assert lerobot.states is not None
    assert annotated.states is not None
    np.testing.assert_allclose(lerobot.states, annotated.states, atol=1e-6)


def test_frames_of_a_late_episode_are_those_of_its_own_video(real_data: Path) -> None:
    """The shared AV1 video was re-encoded: small differences, but the right frames."""
    lerobot = open_lerobot(real_data / "droid_lerobot_v3", POSES).episode("train/9")
    annotated = open_annotation_json(real_data / "droid").episode("val/199")
    ours = lerobot.frames["exterior_1_left"][10:30].astype(np.float64)
    theirs = annotated.frames["exterior_1_left"][9:31].astype(np.float64)
    gaps = [np.abs(ours - theirs[shift : shift + 20]).mean() for shift in range(3)]
    assert int(np.argmin(gaps)) == 1
    assert gaps[1] < 4


def edit_table(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    columns = pyarrow.parquet.ParquetFile(file).read().to_pydict()
    change(columns)
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def test_a_small_folder(lerobot_folder: Path) -> None:
    dataset = open_lerobot(lerobot_folder)
    assert dataset.episode_ids == ("train/0", "val/1")
    assert [dataset.summary(i).instruction for i in (0, 1)] == ["stack", ""]
    first, second = dataset
    assert (len(first), len(second)) == (12, 8)
    brightness = [
        frames[:].mean(axis=(1, 2, 3)) for frames in (first.frames["wrist"], second.frames["wrist"])
    ]
    assert (np.diff(np.concatenate(brightness)) > 1).all()  # each frame is brighter than the last


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.pop("fps"), "object missing required field `fps`"),
        (lambda i: i.update(fps=0), "`fps`: expected `float` > 0"),
        (
            lambda i: i.update(codebase_version="v1.6"),
            "`codebase_version` is 'v1.6', expected v2.0, v2.1 or v3.0",
        ),
        (lambda i: i.update(video_path="/etc/{chunk_index}.mp4"), "which is not below"),
        (lambda i: i.update(data_path="../{chunk_index}.parquet"), "which is not below"),
        (
            lambda i: i.update(data_path="{chunk_index:0300000000d}"),
            "a field with '0300000000d'",
        ),
        (
            lambda i: i.update(data_path="data/{episode_chunk}.parquet"),
            "`data_path` uses the unknown fields episode_chunk",
        ),
        (lambda i: i["features"].pop(VIDEO), "declare no video such as `observation.images.front`"),
        (
            lambda i: i["splits"].update(val="1:99"),
            "split 'val' is '1:99', but `total_episodes` is 2",
        ),
        (lambda i: i["splits"].update(val="all"), "cannot be read as LeRobot writes it"),
        (lambda i: i.update(total_episodes=3), "lists 2 episodes, but .* declares 3"),
        (lambda i: i.update(features=[]), "`features`: expected `object`, got `array`"),
    ],
)
def test_wrong_declarations_are_refused(
    lerobot_folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    file = lerobot_folder / "meta/info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message) as caught:
        open_lerobot(lerobot_folder)
    assert str(lerobot_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def declare(folder: Path, names: list[str] | None) -> None:
    file = folder / "meta/info.json"
    info = json.loads(file.read_text())
    info["features"]["observation.state"]["names"] = names
    file.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (None, "has [7] numbers without names"),
        ([f"joint_{i}.pos" for i in range(7)], "holds joint_0.pos, joint_1.pos"),
        (["x", "y", "z", "roll", "pitch", "yaw", "gripper"], "does not say whether 1 is open"),
    ],
)
def test_an_undeclared_meaning_is_asked_for_and_never_guessed(
    lerobot_folder: Path, names: list[str] | None, found: str
) -> None:
    declare(lerobot_folder, names)
    dataset = open_lerobot(lerobot_folder)
    assert found in str(dataset.undeclared)
    assert "`--action-spec`" in str(dataset.undeclared)
    with pytest.raises(ValueError, match="does not declare what its numbers mean"):
        require_declared(dataset)
    episode = dataset.episode(0)
    assert episode.states is None
    assert not episode.action_valid.any()
    assert len(episode.frames["wrist"][:]) == 12


def test_a_file_declares_what_the_columns_do_not(lerobot_folder: Path, tmp_path: Path) -> None:
    declared = open_lerobot(lerobot_folder).episode(0)
    declare(lerobot_folder, None)
    file = tmp_path / "spec.toml"
    file.write_text('columns = ["observation.state"]\ngripper = "open_is_one"\n')
    read = open_dataset(lerobot_folder, action_spec=file).episode(0)
    assert declared.states is not None
    assert read.states is not None
    np.testing.assert_array_equal(read.states[:, :9], declared.states[:, :9])
    np.testing.assert_allclose(read.states[:, 9], 1 - declared.states[:, 9], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns = [", "is not valid TOML"),
        ('gripper = "closed_is_one"', "must hold `columns`"),
        ('columns = ["a"]\ngripper = "sideways"', "`gripper` must be one of"),
        ('columns = ["a"]\ngripper = "open_is_one"\nunits = "mm"', "unknown field `units`"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        PoseColumns.read(file)


def test_joints_cannot_be_declared_as_poses(lerobot_folder: Path) -> None:
    declare(lerobot_folder, [f"joint_{i}.pos" for i in range(7)])
    columns = PoseColumns(columns=("observation.state",), gripper="closed_is_one")
    with pytest.raises(ValueError, match=r"joint_0\.pos.* Actions in joint space are not read"):
        open_lerobot(lerobot_folder, columns)


def test_a_video_that_does_not_fit_the_rows_is_refused(lerobot_folder: Path) -> None:
    edit_table(
        lerobot_folder / "meta/episodes/chunk-000/file-000.parquet",
        lambda c: c.update({f"videos/{VIDEO}/from_timestamp": [0.0, 1.6]}),
    )
    with pytest.raises(ValueError, match="camera wrist has 12 frames for 8 rows"):
        open_lerobot(lerobot_folder).episode(1)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_broken_info_is_refused(lerobot_folder: Path, text: str) -> None:
    (lerobot_folder / "meta/info.json").write_text(text)
    with pytest.raises(ValueError, match=r"info\.json.* it must be as LeRobot writes it"):
        open_lerobot(lerobot_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("tasks"), "lacks the columns tasks"),
        (lambda c: c.pop(f"videos/{VIDEO}/from_timestamp"), "lacks the columns .*from_timestamp"),
        (lambda c: c.update(episode_index=[0, 2]), "numbered from 0"),
        (
            lambda c: c.update({"data/file_index": [0, None]}),
            "episode 1 has no .*data/file_index",
        ),
    ],
)
def test_a_wrong_list_of_episodes_is_refused(
    lerobot_folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_table(lerobot_folder / "meta/episodes/chunk-000/file-000.parquet", change)
    with pytest.raises(ValueError, match=message) as caught:
        open_lerobot(lerobot_folder)
    assert str(lerobot_folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("action"), "lacks the columns action"),
        (
            lambda c: c["timestamp"].__setitem__(15, 0.0),
            "`timestamp` steps by .* after row 2.*a hole, a restart or another rate",
        ),
        (lambda c: [column.pop() for column in c.values()], "episode 1: 7 rows, expected 8"),
        (
            lambda c: c["observation.state"][14].__setitem__(0, np.nan),
            "NaN or infinity.*row 2 of 8",
        ),
        (lambda c: c["action"][15].pop(), "episode 1: "),
        (
            lambda c: c.update({"observation.state": [0.0] * 20}),
            "hold 1 numbers, a pose and a gripper",
        ),
        (
            lambda c: c["observation.state"][14].__setitem__(2, 400.0),
            "400 m from the base, beyond any arm's reach",
        ),
    ],
)
def test_wrong_rows_are_refused(
    lerobot_folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_table(lerobot_folder / "data/chunk-000/file-000.parquet", change)
    with pytest.raises(ValueError, match=message) as caught:
        open_lerobot(lerobot_folder).episode("val/1")
    assert str(lerobot_folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1"])
def test_a_damaged_table_is_refused(lerobot_folder: Path, content: bytes) -> None:
    (lerobot_folder / "data/chunk-000/file-000.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"file-000\.parquet is not a readable table"):
        open_lerobot(lerobot_folder).episode(0)


def test_a_truncated_video_is_refused(lerobot_folder: Path) -> None:
    mp4 = lerobot_folder / f"videos/{VIDEO}/chunk-000/file-000.mp4"
    mp4.write_bytes(mp4.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"file-000\.mp4 is not a readable video"):
        open_lerobot(lerobot_folder).episode(0).frames["wrist"][:]


def test_the_malformed_real_folder_is_refused_in_one_sentence(real_data: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`data_path` uses the unknown fields .*episode_file"
    ) as e:
        open_lerobot(real_data / "extra/droid_lerobot_v3_malformed")
    assert str(e.value).count(". ") == 0
    assert "\n" not in str(e.value)
