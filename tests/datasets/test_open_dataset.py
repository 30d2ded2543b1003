"""A folder's form is recognised, and what is none is refused by saying what was looked for."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.dataset import Dataset
from worldmodel.datasets.open_dataset import FORMS, open_dataset


@pytest.mark.parametrize(
    ("folder", "form", "num_episodes"),
    [
        ("droid", "annotation-json", 11),
        ("bridge_worldgym", "mp4-npz", 10),
        ("bridge_rlds/1.0.0", "rlds", 50),
        ("droid_lerobot_v3", "lerobot", 11),
    ],
)
def test_real_folders_are_recognised(
    real_data: Path, folder: str, form: str, num_episodes: int
) -> None:
    dataset = open_dataset(real_data / folder)
    assert isinstance(dataset, Dataset)
    assert (dataset.form, len(dataset)) == (form, num_episodes)
    assert dataset.path == real_data / folder
    assert len(set(dataset.episode_ids)) == num_episodes
    for episode in dataset:
        assert len(episode) == dataset.summary(episode.episode_id).num_frames
        assert tuple(episode.frames) == dataset.cameras
        assert episode.rate_hz == dataset.rate_hz == CANONICAL.rate_hz
        assert not episode.actions[~episode.action_valid].any()


def test_episodes_are_found_by_position_and_by_id(droid_folder: Path) -> None:
    dataset = open_dataset(str(droid_folder))
    assert dataset.episode(0).episode_id == dataset.episode(-1).episode_id == "train/0"
    assert dataset.episode("train/0").episode_id == "train/0"
    with pytest.raises(ValueError, match=r"`key`=1 is out of range: .* holds 1 episodes\."):
        dataset.episode(1)
    with pytest.raises(
        ValueError, match=r"has no episode 'val/7'; it holds 1, the first 'train/0'\."
    ):
        dataset.summary("val/7")


def test_a_dataset_travels_to_the_workers_of_a_data_loader(droid_folder: Path) -> None:
    dataset = open_dataset(droid_folder)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.episode(0).instruction == "lift the cup"
    assert pickle.loads(pickle.dumps(dataset.episode(0))).frames["wrist_left"][:2].shape[0] == 2


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist; give the folder"):
        open_dataset(tmp_path / "nothing")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file is a file; give the folder"):
        open_dataset(tmp_path / "file")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is empty")):
        open_dataset(tmp_path)


@pytest.mark.parametrize("attributes", [{}, {"worldmodel_form": "rollout-log"}])
def test_an_unknown_form_is_refused_with_what_marks_the_known_ones(
    tmp_path: Path, attributes: dict[str, str]
) -> None:
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": attributes}))
    with pytest.raises(ValueError, match="has no known form; looked for") as caught:
        open_dataset(tmp_path)
    for form in FORMS:
        assert form.name in str(caught.value)
        assert form.mark in str(caught.value)


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """A flipped bit, a cut, or eight overwritten bytes."""
    place = int(generator.integers(len(content)))
    flipped = bytes([content[place] ^ 1 << int(generator.integers(8))])
    return [
        content[:place] + flipped + content[place + 1 :],
        content[:place],
        content[:place] + generator.bytes(8) + content[place + 8 :],
    ][int(generator.integers(3))]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on numbers made of noise
@pytest.mark.parametrize("num", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["droid", "worldgym", "rlds", "lerobot"])
def test_damage_gives_data_or_one_sentence(
    request: pytest.FixtureRequest, form: str, num: int
) -> None:
    root: Path = request.getfixturevalue(f"{form}_folder")
    files = sorted(file for file in root.rglob("*") if file.is_file())
    generator = np.random.default_rng(0)
    for _ in range(num):
        file = files[int(generator.integers(len(files)))]
        intact = file.read_bytes()
        file.write_bytes(damaged(intact, generator))
        try:
            for episode in open_dataset(root):
                _ = [frames[:] for frames in episode.frames.values()]
        except (ValueError, OSError) as error:
            message = str(error)
        else:
            message = str(root)
        assert str(root) in message
        assert "\n" not in message
        file.write_bytes(intact)
