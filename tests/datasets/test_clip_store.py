"""The clip store: round trips, whole episodes only, and refusals."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import zarr

from tests.other_process import held_by_another_process
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import Dataset
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.stored_episode import SignalPlace, StoredSignals
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import JpegFrames
from worldmodel.datasets.zarr_folder import read_attributes

Make = Callable[..., Trajectory]


def new_store(path: Path, encoding: str = "raw", **attributes: object) -> ClipStore:
    return ClipStore.create(
        path,
        cameras=["front", "wrist"],
        action_spec=CANONICAL,
        rate_hz=5.0,
        encoding=encoding,
        attributes=attributes,
    )


NOTHING = {
    "frames": {},
    "actions": np.zeros((0, 7), np.float32),
    "action_valid": np.zeros(0, bool),
    "states": None,
}


def assert_equal_but_frames(read: Trajectory, written: Trajectory) -> None:
    for name in ("episode_id", "source", "instruction", "rate_hz", "success", "action_spec"):
        assert getattr(read, name) == getattr(written, name)
    for name in ("actions", "action_valid", "states"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert [*read.signals] == [*written.signals]
    for name, array in written.signals.items():
        assert read.signals[name].dtype == array.dtype
        np.testing.assert_array_equal(read.signals[name], array)


def test_raw_episodes_read_back_bit_for_bit(tmp_path: Path, make_trajectory: Make) -> None:
    written = [make_trajectory("b/1", success=True), make_trajectory("a/0", states=None, seed=1)]
    store = new_store(tmp_path / "s.zarr", mujoco="3.6")
    for trajectory in written:
        store.add(trajectory)
    store = ClipStore.open(tmp_path / "s.zarr")
    assert store.episode_ids == ("b/1", "a/0")
    assert store.attributes["mujoco"] == "3.6"
    assert store.attributes["action_spec"] == CANONICAL.as_dict()
    for index, trajectory in enumerate(written):
        read = store.episode(index)
        assert_equal_but_frames(read, trajectory)
        for camera in ("front", "wrist"):
            assert read.frames[camera].size == trajectory.frames[camera].size
            for window in (slice(0, 12), slice(3, 7), slice(-2, None), slice(4, 4)):
                np.testing.assert_array_equal(
                    read.frames[camera][window], trajectory.frames[camera][window]
                )


def test_jpeg_frames_are_those_of_an_independent_encoder(
    tmp_path: Path, make_trajectory: Make
) -> None:
    trajectory = make_trajectory("a")
    store = new_store(tmp_path / "s.zarr", "jpeg")
    store.add(trajectory)
    frames = store.episode("a").frames["front"]
    for index, pixels in enumerate(trajectory.frames["front"][0:12]):
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95, "RGB", "444")
        assert frames.jpeg(index) == jpeg
        np.testing.assert_array_equal(
            frames[index : index + 1][0], simplejpeg.decode_jpeg(jpeg, fastdct=False)
        )
    np.testing.assert_array_equal(frames[5:9], frames[0:12][5:9])


def test_source_jpeg_passes_through_untouched(tmp_path: Path, make_trajectory: Make) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3), np.uint8)
    source = JpegFrames(tuple(simplejpeg.encode_jpeg(frame, quality=60) for frame in noise))
    trajectory = make_trajectory("a")
    store = new_store(tmp_path / "s.zarr", "jpeg")
    store.add(replace(trajectory, frames={**trajectory.frames, "front": source}))
    stored = store.episode("a").frames["front"]
    assert tuple(stored.jpeg(index) for index in range(12)) == source.payloads
    np.testing.assert_array_equal(stored[2:12], source[2:12])


def test_a_copy_of_a_store_shows_the_same_pixels(tmp_path: Path, make_trajectory: Make) -> None:
    store, copy = new_store(tmp_path / "s.zarr", "jpeg"), new_store(tmp_path / "c.zarr", "jpeg")
    store.add(make_trajectory("a"))
    copy.add(store.episode("a"))
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(
            copy.episode("a").frames[camera][0:12], store.episode("a").frames[camera][0:12]
        )


def test_jpeg_shifts_no_colour(tmp_path: Path, make_trajectory: Make) -> None:
    trajectory = make_trajectory("a")
    store = new_store(tmp_path / "s.zarr", "jpeg")
    store.add(trajectory)
    shift = (
        store.episode("a").frames["front"][0:12].astype(float) - trajectory.frames["front"][0:12]
    )
    assert abs(shift.mean(axis=(0, 1, 2))).max() < 0.2


def test_broken_source_jpeg_does_not_enter(tmp_path: Path, make_trajectory: Make) -> None:
    trajectory = make_trajectory("a")
    good = simplejpeg.encode_jpeg(np.zeros((16, 24, 3), np.uint8))
    frames = {**trajectory.frames, "wrist": JpegFrames((good,) * 11 + (b"\xff\xd8 no image",))}
    store = new_store(tmp_path / "s.zarr", "jpeg")
    with pytest.raises(ValueError, match="frame 11 is no JPEG image"):
        store.add(replace(trajectory, frames=frames))
    assert not list(store.path.glob(".incoming-*"))
    assert len(ClipStore.open(store.path)) == 0


def test_it_is_a_dataset_that_open_dataset_knows(tmp_path: Path, make_trajectory: Make) -> None:
    new_store(tmp_path / "s.zarr").add(make_trajectory("a", success=False))
    dataset = open_dataset(tmp_path / "s.zarr")
    assert isinstance(dataset, Dataset)
    assert (dataset.form, dataset.rate_hz, dataset.cameras) == (
        "clip-store",
        5.0,
        ("front", "wrist"),
    )
    summary = dataset.summary("a")
    assert (summary.num_frames, summary.instruction, summary.success) == (12, "lift", False)
    assert [trajectory.episode_id for trajectory in dataset] == ["a"]


def test_the_store_is_plain_zarr_under_lerobot_names(tmp_path: Path, make_trajectory: Make) -> None:
    trajectory = make_trajectory("a")
    new_store(tmp_path / "s.zarr").add(trajectory)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")["episodes/000000"]
    np.testing.assert_array_equal(group["action"][:], trajectory.actions)
    np.testing.assert_array_equal(
        group["observation.images.front"][:], trajectory.frames["front"][0:12]
    )
    assert group.attrs["task"] == "lift"
    assert "observation.state" in group


def test_one_episode_takes_few_files(tmp_path: Path, make_trajectory: Make) -> None:
    store = new_store(tmp_path / "s.zarr", "jpeg")
    store.add(replace(make_trajectory("a"), signals={}))
    files = [file for file in (store.path / "episodes").rglob("*") if file.is_file()]
    assert len(files) <= 2 + 2 * 5  # the groups, then metadata and one chunk of each array


def test_an_id_enters_once(tmp_path: Path, make_trajectory: Make) -> None:
    store = new_store(tmp_path / "s.zarr")
    staged = store.stage(make_trajectory("a"))
    store.add(make_trajectory("a"))
    with pytest.raises(ValueError, match="holds an episode 'a' already"):
        store.add(make_trajectory("a"))
    with pytest.raises(ValueError, match="holds an episode 'a' already"):
        store.commit(staged)
    assert ClipStore.open(store.path).episode_ids == ("a",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_hz": 15.0}, "Episode 'a' has the `rate_hz` 15.0, but the store has 5.0."),
        ({"action_spec": replace(CANONICAL, frame="end_effector")}, "has the `action_spec`"),
        (
            {"frames": {}},
            "Episode 'a' shows none of the store's cameras ['front', 'wrist']; it has [].",
        ),
        (NOTHING, "Episode 'a' has no frames."),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, make_trajectory: Make, changes: dict, message: str
) -> None:
    store = new_store(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match=re.escape(message)):
        store.add(make_trajectory("a", **changes))
    assert not list(store.path.glob(".incoming-*"))
    assert len(ClipStore.open(store.path)) == 0


WRITER = """
import sys
import numpy as np
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.stored_episode import SignalPlace, StoredSignals
from worldmodel.datasets.trajectory import Trajectory

class Pixels:
    size = (64, 64)
    def __len__(self): return 40
    def __getitem__(self, window): return np.full((40, 64, 64, 3), 7, np.uint8)[window]

store = ClipStore.create(sys.argv[1], cameras=["c"], action_spec=CANONICAL, rate_hz=5.0)
for index in range(100_000):
    store.add(Trajectory(episode_id=str(index), source="", frames={"c": Pixels()},
        actions=np.ones((40, 7), np.float32), action_valid=np.ones(40, bool), states=None,
        action_spec=CANONICAL, instruction="", rate_hz=5.0, success=None))
    print(index, flush=True)
"""


def test_a_killed_writer_leaves_whole_episodes_only(tmp_path: Path, make_trajectory: Make) -> None:
    path = tmp_path / "s.zarr"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        next(line for line in writer.stdout if int(line) >= 5)
        writer.send_signal(signal.SIGKILL)
        added = max([5, *map(int, writer.stdout.read().split())]) + 1
    (path / ".incoming-0-x").mkdir()
    store = ClipStore.open(path)
    assert len(store) in (added, added + 1)
    for trajectory in store:
        assert (trajectory.actions == 1).all()
        assert abs(trajectory.frames["c"][0:40].astype(int) - 7).max() <= 1
    first = make_trajectory("new")
    frames = {"c": first.frames["front"]}
    store.add(replace(first, frames=frames))
    assert not list(path.glob(".incoming-*"))
    assert ClipStore.open(path).episode_ids[-1] == "new"


def test_a_second_writer_is_refused_and_reading_goes_on(
    tmp_path: Path, make_trajectory: Make
) -> None:
    path = tmp_path / "s.zarr"
    new_store(path).add(make_trajectory("a"))
    store = ClipStore.open(path)
    with held_by_another_process(path / ".lock"):
        with pytest.raises(ValueError, match=r"s\.zarr is being written by another process; wait"):
            store.add(make_trajectory("b"))
        assert ClipStore.open(path).episode_ids == ("a",)
    store.add(make_trajectory("b"))  # the lock of a killed process has no effect
    del store
    assert not (path / ".lock").exists()


def test_a_writer_sees_what_another_added_before(tmp_path: Path, make_trajectory: Make) -> None:
    early = new_store(tmp_path / "s.zarr")
    ClipStore.open(tmp_path / "s.zarr").add(make_trajectory("a"))
    early.add(make_trajectory("b"))
    assert ClipStore.open(tmp_path / "s.zarr").episode_ids == early.episode_ids == ("a", "b")


def test_latents_round_trip_per_name_and_episode(tmp_path: Path, make_trajectory: Make) -> None:
    store = new_store(tmp_path / "s.zarr")
    store.add(make_trajectory("a"))
    store.add(make_trajectory("b"))
    latents = np.random.default_rng(0).normal(size=(12, 2, 4, 8, 8)).astype(np.float16)
    store.write_latents("tok-1", "b", latents)
    store = ClipStore.open(store.path)
    assert store.has_latents("tok-1", 1)
    assert not store.has_latents("tok-1", "a")
    assert not store.has_latents("tok-2", "b")
    read = store.read_latents("tok-1", "b")
    assert read.dtype == np.float16
    np.testing.assert_array_equal(read, latents)
    store.write_latents("tok-1", "b", latents[:3].astype(np.float32))
    assert store.read_latents("tok-1", "b").shape[0] == 3
    with pytest.raises(ValueError, match="has no latents 'tok-1' of episode 'a'"):
        store.read_latents("tok-1", "a")
    with pytest.raises(ValueError, match=re.escape("`name` must be a plain folder name")):
        store.write_latents("../tok", "a", latents)


def test_misses_and_wrong_folders_are_named(tmp_path: Path, make_trajectory: Make) -> None:
    store = new_store(tmp_path / "s.zarr")
    store.add(make_trajectory("a"))
    with pytest.raises(ValueError, match="has no episode 'b'; it holds 1"):
        store.episode("b")
    with pytest.raises(ValueError, match="`key`=1 is out of range"):
        store.summary(1)
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        new_store(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match=r"`attributes` must not hold \['cameras'\]"):
        new_store(tmp_path / "t.zarr", cameras=3)
    with pytest.raises(ValueError, match="`encoding` must be one of"):
        new_store(tmp_path / "t.zarr", "png")
    with pytest.raises(ValueError, match=r"it has no zarr\.json"):
        ClipStore.open(tmp_path / "t.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_damaged_metadata_is_named(tmp_path: Path, make_trajectory: Make) -> None:
    store = new_store(tmp_path / "s.zarr")
    file = store.path / "zarr.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(ValueError, match=re.escape(f"{file} is not valid JSON")):
        ClipStore.open(store.path)


@pytest.mark.parametrize("part", ["", "action", "observation.images.front"])
@pytest.mark.parametrize("text", ["", '{"attributes": ', "[]", "{}", '{"attributes": {"task": 1}}'])
def test_one_damaged_zarr_json_hides_no_other_episode(
    tmp_path: Path, make_trajectory: Make, part: str, text: str
) -> None:
    store = new_store(tmp_path / "s.zarr")
    for name in "abc":
        store.add(make_trajectory(name))
    file = store.path / "episodes" / "000000" / part / "zarr.json"
    file.write_text(text)
    store = ClipStore.open(store.path)
    damaged = "a" if part else "episodes/000000"
    assert store.episode_ids == (damaged, "b", "c")
    assert store.notes == ()
    for name in "bc":
        assert store.summary(name).num_frames == 12
        assert [len(frames[:]) for frames in store.episode(name).frames.values()] == [12, 12]
    with pytest.raises(ValueError, match=re.escape(str(file.parent))):
        [frames[:] for frames in store.episode(damaged).frames.values()]
    with pytest.raises(ValueError, match=f"no episode 'e'.*{'' if part else file.parent}"):
        store.summary("e")
    store.add(make_trajectory("d"))
    assert ClipStore.open(store.path).episode_ids == (damaged, "b", "c", "d")


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_every_truncated_file_is_named(
    tmp_path: Path, make_trajectory: Make, encoding: str, keep: float
) -> None:
    store = new_store(tmp_path / "s.zarr", encoding)
    store.add(make_trajectory("a"))
    folder = store.path / "episodes" / "000000"
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        if file.is_relative_to(folder / "signals" / "c"):
            continue  # read by the shape checks of these tests; see below
        data = file.read_bytes()
        file.write_bytes(data[: int(keep * len(data))])
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            read_all(store)
        file.write_bytes(data)
    read_all(store)


def test_truncated_signals_are_named(tmp_path: Path, make_trajectory: Make) -> None:
    store = new_store(tmp_path / "s.zarr")
    store.add(make_trajectory("a"))
    path = store.path / "episodes" / "000000" / "signals"
    (path / "c" / "0").write_bytes(b"half")
    layout = {"done": SignalPlace("|b1", [12], 0)}
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
        StoredSignals(path, layout)["done"]


def read_all(store: ClipStore) -> None:
    episode = ClipStore.open(store.path).episode("a")
    for frames in episode.frames.values():
        assert len(frames[0:12]) == 12
    assert len(dict(episode.signals)) == 2


def test_conventions_and_provenance_lie_in_the_attributes(tmp_path: Path) -> None:
    new_store(tmp_path / "s.zarr", source="droid /data")
    attributes = json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["source"] == "droid /data"
    assert attributes["conventions"]["gripper"] == "opening in [0, 1], 1 = open"
    assert attributes["package_version"]
    assert read_attributes(tmp_path / "s.zarr") == attributes
