"""`worldmodel data info|validate|convert`: real folders, killed runs, wrong input."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from worldmodel.cli import main
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory


@dataclass(frozen=True)
class Ramp:
    """Twelve frames that brighten, 32 by 48 pixels; frame `broken` cannot be decoded."""

    broken: int | None = None
    size = (32, 48)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, window: slice) -> np.ndarray:
        numbers = np.arange(12)[window]
        if self.broken in numbers:
            raise ValueError(f"frame {self.broken} is broken.")
        y, x = np.mgrid[:32, :48]
        base = np.stack([4 * y, 3 * x, x + y], axis=-1)
        return (base + 5 * numbers[:, None, None, None]).astype(np.uint8)


def episode(episode_id: str, broken: int | None = None) -> Trajectory:
    actions = np.full((12, 7), 0.01, np.float32)
    actions[-1] = 0
    return Trajectory(
        episode_id=episode_id,
        source="made up",
        frames={"front": Ramp(broken)},
        actions=actions,
        action_valid=np.arange(12) < 11,
        states=np.zeros((12, 10), np.float32),
        action_spec=CANONICAL,
        instruction="lift",
        rate_hz=5.0,
        success=True,
        signals={"done": np.arange(12) > 9},
    )


def make_store(path: Path, count: int) -> ClipStore:
    store = ClipStore.create(path, cameras=["front"], action_spec=CANONICAL, rate_hz=5.0)
    for index in range(count):
        store.add(episode(f"train/{index}"))
    return store


@pytest.fixture
def source(tmp_path: Path) -> ClipStore:
    return make_store(tmp_path / "source.zarr", 3)


def damage(store: ClipStore, number: str) -> None:
    """Overwrite the images of one episode with zeros."""
    file = store.path / "episodes" / number / "observation.images.front" / "c" / "0"
    file.write_bytes(bytes(file.stat().st_size))


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert out == ""
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


REAL = {
    "droid": ("annotation-json", 11, 854, 3),
    "bridge_worldgym": ("mp4-npz", 10, 355, 1),
    "bridge_rlds/1.0.0": ("rlds", 50, 500, 3),
    "droid_lerobot_v3": ("lerobot", 11, 854, 1),
}
"""Folder -> form, episodes, frames, cameras."""


@pytest.mark.parametrize("folder", REAL)
def test_info_of_real_folders(
    real_data: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    assert main(["data", "info", str(real_data / folder), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    form, num_episodes, num_frames, num_cameras = REAL[folder]
    assert list(info) == [
        "form", "num_episodes", "rate_hz", "cameras", "action_spec", "undeclared", "notes",
        "episodes", "unreadable",
    ]  # fmt: skip
    assert info["unreadable"] == {}
    assert (info["undeclared"] is not None) == (folder == "droid_lerobot_v3")
    assert (info["form"], info["num_episodes"], info["rate_hz"]) == (form, num_episodes, 5.0)
    assert len(info["cameras"]) == num_cameras
    assert sum(episode["num_frames"] for episode in info["episodes"]) == num_frames
    assert {*info["episodes"][0]} == {"id", "num_frames", "instruction", "success"}


def test_info_counts_the_splits_of_real_bridge(
    real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "info", str(real_data / "bridge_rlds/1.0.0")]) == 0
    assert "episodes  50 (train 25, val 25)" in capsys.readouterr().out


def test_info_for_people(source: ClipStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(source.path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "form      clip-store",
        "episodes  3 (train 3)",
        "frames    36, 12 to 12 per episode",
        "rate      5 Hz",
        "cameras   front",
        "actions   canonical: delta_pose, base frame, rotation_vector, open_is_one, 7 columns, "
        "5 Hz",
        "",
        "episode  frames  success  instruction",
        "train/0      12  yes      lift",
        "train/1      12  yes      lift",
        "train/2      12  yes      lift",
    ]


@pytest.mark.parametrize(
    "folder", [pytest.param("droid", marks=pytest.mark.slow), *(f for f in REAL if f != "droid")]
)
def test_real_folders_convert_without_loss_of_numbers(
    real_data: Path, tmp_path: Path, folder: str
) -> None:
    from worldmodel.datasets.open_dataset import open_dataset

    target, spec = tmp_path / "target.zarr", None
    argv = ["data", "convert", str(real_data / folder), str(target), "--height", "48"]
    if folder == "droid_lerobot_v3":  # its columns have no names
        assert main(argv) == 2
        spec = tmp_path / "spec.toml"
        spec.write_text('columns = ["observation.state"]\ngripper = "closed_is_one"\n')
        argv += ["--action-spec", str(spec)]
    assert main(argv) == 0
    source = open_dataset(real_data / folder, action_spec=spec)
    store = ClipStore.open(target)
    assert store.episode_ids == source.episode_ids
    for name in source.episode_ids[:2]:
        before, after = source.episode(name), store.episode(name)
        np.testing.assert_array_equal(after.actions, before.actions)
        np.testing.assert_array_equal(after.states, before.states)
        for signal_name, values in before.signals.items():
            np.testing.assert_array_equal(after.signals[signal_name], values)
        camera = source.cameras[0]
        assert after.frames[camera].size[0] == 48
        small = before.frames[camera][3:4][0].mean(axis=(0, 1))
        np.testing.assert_allclose(after.frames[camera][3:4][0].mean(axis=(0, 1)), small, atol=1)


def test_real_bridge_jpeg_passes_through(real_data: Path, tmp_path: Path) -> None:
    from worldmodel.datasets.open_dataset import open_dataset

    folder = real_data / "bridge_rlds/1.0.0"
    assert main(["data", "convert", str(folder), str(tmp_path / "b.zarr")]) == 0
    before = open_dataset(folder).episode(7).frames["image_0"]
    after = ClipStore.open(tmp_path / "b.zarr").episode(7).frames["image_0"]
    assert [after.jpeg(i) for i in range(10)] == [before.jpeg(i) for i in range(10)]


def test_many_workers_give_the_same_store(source: ClipStore, tmp_path: Path) -> None:
    for workers in ("1", "4"):
        command = ["data", "convert", str(source.path), str(tmp_path / workers)]
        assert main([*command, "--workers", workers, "--encoding", "raw"]) == 0
    assert tree(tmp_path / "1") == tree(tmp_path / "4")


def test_a_killed_conversion_continues_to_the_same_store(tmp_path: Path) -> None:
    source = make_store(tmp_path / "source.zarr", 60)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ["data", "convert", str(source.path)]
    script = "import sys; from worldmodel.cli import main; main(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", script, *command, str(killed)], stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and len([*killed.glob("episodes/0*")]) < 3:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    done = ClipStore.open(killed).episode_ids
    assert 3 <= len(done) < 60
    assert done == source.episode_ids[: len(done)]
    assert main([*command, str(killed)]) == 0
    assert main([*command, str(whole)]) == 0
    assert tree(killed) == tree(whole)


def test_resizing_shrinks_by_area_and_keeps_the_aspect(source: ClipStore, tmp_path: Path) -> None:
    target = tmp_path / "small"
    command = ["data", "convert", str(source.path), str(target), "--height", "8"]
    assert main([*command, "--encoding", "raw"]) == 0
    small = ClipStore.open(target).episode(0).frames["front"]
    assert small.size == (8, 12)
    means = source.episode(0).frames["front"][0:12].reshape(12, 8, 4, 12, 4, 3).mean(axis=(2, 4))
    # Away from the border a ramp is its own mean over any symmetric window; rounding and JPEG: 2.
    np.testing.assert_allclose(small[0:12][:, 1:-1, 1:-1], means[:, 1:-1, 1:-1], atol=2)


def test_an_unreadable_episode_stops_the_conversion_and_keeps_the_rest(
    source: ClipStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(source, "000001")
    target = tmp_path / "target"
    assert main(["data", "convert", str(source.path), str(target), "--workers", "2"]) == 2
    line = one_error_line(capsys)
    assert "Episode 'train/1' cannot be converted" in line
    assert "keeps the 1 episodes before it; `--skip-bad` skips it." in line
    assert ClipStore.open(target).episode_ids == ("train/0",)
    names = {path.name for path in target.iterdir()}
    assert names == {".lock", "episodes", "latents", "zarr.json"}


def test_skipped_episodes_are_listed(
    source: ClipStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(source, "000001")
    target = tmp_path / "target"
    assert main(["data", "convert", str(source.path), str(target), "--skip-bad"]) == 1
    out, err = capsys.readouterr()
    assert "2 episodes, 24 frames, 1 skipped" in out
    assert "skipped train/1: " in err
    assert ClipStore.open(target).episode_ids == ("train/0", "train/2")


def test_a_store_from_elsewhere_is_not_added_to(
    source: ClipStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_store(tmp_path / "other.zarr", 1)
    target = str(tmp_path / "target")
    assert main(["data", "convert", str(source.path), target]) == 0
    before = tree(Path(target))
    for arguments, word in (
        ([str(other.path), target], "`source`"),
        ([str(source.path), target, "--height", "8"], "`height`"),
        ([str(source.path), target, "--encoding", "raw"], "`encoding`"),
        ([str(source.path), str(other.path)], "`source`"),
    ):
        capsys.readouterr()
        assert main(["data", "convert", *arguments]) == 2
        assert f"was made with {word}" in one_error_line(capsys)
    assert tree(Path(target)) == before


@pytest.mark.parametrize("kind", ["missing", "empty", "unknown", "file"])
@pytest.mark.parametrize("command", ["info", "validate", "convert"])
def test_a_folder_that_is_no_dataset_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    folder = tmp_path / "data"
    if kind == "file":
        folder.write_text("no folder")
    elif kind != "missing":
        folder.mkdir()
    if kind == "unknown":
        (folder / "notes.txt").write_text("no data")
    target = [str(tmp_path / "target")] if command == "convert" else []
    assert main(["data", command, str(folder), *target]) == 2
    assert str(folder) in one_error_line(capsys)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_target_that_is_something_else_is_left_alone(
    source: ClipStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    assert main(["data", "convert", str(source.path), str(target)]) == 2
    assert "is no Zarr v3 group" in one_error_line(capsys)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("option", [["--workers", "0"], ["--height", "0"]])
def test_numbers_that_make_no_sense_are_refused(
    source: ClipStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert main(["data", "convert", str(source.path), str(tmp_path / "target"), *option]) == 2
    assert "`--workers` and `--height` must be positive." in one_error_line(capsys)
    assert not (tmp_path / "target").exists()


def test_validate_finds_nothing_wrong(
    source: ClipStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(source.path.parent / "one.zarr", 1)
    assert main(["data", "validate", str(store.path)]) == 0
    assert capsys.readouterr().out == f"{store.path}: 1 episodes, 0 errors\n"


def test_validate_lists_errors_first_and_exits_with_one(
    source: ClipStore, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(source, "000001")
    assert main(["data", "validate", str(source.path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["error", "undecodable", "1", "train/1:"]
    assert lines[2].split()[:4] == ["warning", "duplicate", "1", "train/2:"]
    assert lines[3] == f"{source.path}: 3 episodes, 1 errors"


def test_validate_prints_every_finding_as_json(
    source: ClipStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "validate", str(source.path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_episodes"], report["num_errors"]) == (3, 0)
    assert report["findings"][0] == {
        "episode_id": "train/1",
        "check": "duplicate",
        "severity": "warning",
        "message": "It equals train/0: do not hold out one and train on the other.",
    }
