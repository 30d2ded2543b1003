"""Files that lie about themselves: refused in one sentence, without allocating what they claim."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel import budgets
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames, count_frames


@pytest.fixture
def store(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> ClipStore:
    """A store of one episode with two cameras, as raw pixels."""
    trajectory = make_trajectory("episode", rate_hz=5.0, action_spec=CANONICAL)
    store = ClipStore.create(
        tmp_path / "store.zarr",
        cameras=tuple(trajectory.frames),
        action_spec=CANONICAL,
        rate_hz=5.0,
        encoding="raw",
    )
    store.add(trajectory)
    return ClipStore.open(store.path)


def chunk(store: ClipStore, name: str) -> Path:
    """The first chunk of an array of the only episode."""
    return min(path for path in store.path.rglob(f"{name}/c/**/*") if path.is_file())


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def metadata(store: ClipStore, name: str) -> Path:
    return store.path / "episodes" / "000000" / name / "zarr.json"


def everything(store: ClipStore) -> None:
    """Read all that a store holds."""
    for trajectory in ClipStore.open(store.path):
        for frames in trajectory.frames.values():
            frames[:]
        dict(trajectory.signals)


@pytest.mark.parametrize("name", ["action", "action_valid", "observation.images.front"])
def test_a_missing_chunk_is_an_error_and_never_zeros(store: ClipStore, name: str) -> None:
    chunk(store, name).unlink()
    with pytest.raises(ValueError, match=r"is damaged \(chunk .* is missing\)"):
        everything(store)


@pytest.mark.parametrize("name", ["action", "action_valid", "observation.images.front"])
def test_a_flipped_byte_is_an_error(store: ClipStore, name: str) -> None:
    file = chunk(store, name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        everything(store)


def test_chunks_of_zeros_are_written(tmp_path: Path, store: ClipStore) -> None:
    """A black view is stored; only so can a missing chunk be told from zeros."""
    names = {path.parent.parent.name for path in store.path.rglob("c/*") if path.is_file()}
    assert "action_valid" in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(zarr_format=2), "not of Zarr format 3"),
        (lambda m: m.update(data_type="object"), "data type 'object' is not allowed"),
        (lambda m: m["codecs"].append({"name": "numcodecs.pickle"}), "codec 'numcodecs.pickle'"),
        (lambda m: m.update(shape=[2**40, 7]), "claims .* more than the .* allowed"),
        (lambda m: m.update(shape=[-1, 7]), r"`shape\[0\]`: expected `int` >= 0"),
        (lambda m: m.pop("codecs"), "no readable Zarr array"),
        (lambda m: m.update(codecs=7), "no readable Zarr array"),
    ],
)
def test_array_metadata_that_lies_is_refused(
    store: ClipStore, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(metadata(store, "action"), change)
    with pytest.raises(ValueError, match=message):
        ClipStore.open(store.path).episode(0)


@pytest.mark.parametrize(
    "lie",
    [
        {"offset": -8},
        {"offset": 10**12},
        {"shape": [10**12]},
        {"shape": [-1]},
        {"dtype": "O"},
        {"dtype": "f8,i8"},
        {"dtype": "nothing"},
        {"shape": "wide"},
    ],
)
def test_a_layout_outside_its_bytes_is_refused(store: ClipStore, lie: dict[str, Any]) -> None:
    """It was handed to NumPy unchecked, which read memory before and after the bytes."""
    file = metadata(store, "signals")

    def change(content: dict[str, Any]) -> None:
        layout = content["attributes"]["layout"]
        layout[next(iter(layout))].update(lie)

    edit(file, change)
    with pytest.raises(ValueError, match="its layout is damaged"):
        everything(store)


def test_no_video_is_opened_but_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    for name in ("pipe.mp4", "zero.mp4", "gone.mp4"):
        with pytest.raises(ValueError, match=r"regular file|not a readable video"):
            count_frames(tmp_path / name)
        with pytest.raises(ValueError, match=r"regular file|not a readable video"):
            assert VideoFrames(tmp_path / name, 1).size


def test_a_playlist_named_mp4_reaches_no_other_file(
    tmp_path: Path, write_mp4: Callable[..., np.ndarray]
) -> None:
    write_mp4(tmp_path / "real.mp4", 4, rate=5)
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {tmp_path / 'real.mp4'}\n")
    with pytest.raises(ValueError, match="not a readable video"):
        count_frames(playlist)
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")
    with pytest.raises(ValueError, match="not a readable video"):
        count_frames(playlist)


def test_budgets_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"image claims 1\.342e\+08, .* WORLDMODEL_BUDGET"):
        budgets.require(2 * budgets.IMAGE_PIXELS, budgets.IMAGE_PIXELS, "image")
    monkeypatch.setenv("WORLDMODEL_BUDGET", "2")
    budgets.require(2 * budgets.IMAGE_PIXELS, budgets.IMAGE_PIXELS, "image")
    monkeypatch.setenv("WORLDMODEL_BUDGET", "plenty")
    with pytest.raises(ValueError, match="must be a positive number, got 'plenty'"):
        budgets.require(1, budgets.IMAGE_PIXELS, "image")
