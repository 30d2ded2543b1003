"""The rollout log: what goes in comes out, and a killed writer loses at most one step."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.other_process import held_by_another_process
from worldmodel.datasets.rollout_log import RolloutLog

STEPS = 66  # more than the first capacity


def step(index: int) -> dict:
    rng = np.random.default_rng(index)
    return {
        "frames": rng.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8),
        "action": rng.normal(size=7).astype(np.float32),
        "confidence": 0.25 * index,
        "level": "trust" if index % 2 else "stop — now",
        "causes": ["frozen view", "black, too"][: index % 3],
    }


def write(log: RolloutLog, rollout_id: str, num_steps: int) -> None:
    with log.begin(rollout_id, {"seed": 3}) as rollout:
        for index in range(num_steps):
            rollout.append(step(index))


def assert_holds(read: dict, num_steps: int) -> None:
    assert list(read) == list(step(0))
    for index in range(num_steps):
        for name, value in step(index).items():
            expected = tuple(value) if name == "causes" else value
            np.testing.assert_array_equal(read[name][index], expected)
    assert {len(array) for array in read.values()} == {num_steps}


def test_a_closed_rollout_reads_back_exactly(tmp_path: Path) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={"model": "abc", "seed": 7})
    write(log, "policy/0", 9)
    write(log, "policy/1", 3)
    again = RolloutLog.open(tmp_path / "log.zarr")
    assert again.attributes["model"] == "abc"
    assert again.rollouts() == ("policy/0", "policy/1")
    assert again.attributes_of("policy/0") == {"seed": 3}
    assert again.is_closed("policy/0")
    read = again.read("policy/0")
    assert_holds(read, 9)
    assert read["frames"].dtype == np.uint8
    assert read["action"].dtype == np.float32
    assert_holds(again.read("policy/1"), 3)


def test_a_closed_rollout_is_plain_zarr_in_few_files(tmp_path: Path) -> None:
    write(RolloutLog.create(tmp_path / "log.zarr", attributes={}), "a", 9)
    group = zarr.open_group(tmp_path / "log.zarr" / "rollouts" / "000000", mode="r")
    assert group["frames"].shape == (9, 2, 8, 8, 3)
    assert sum(1 for file in (tmp_path / "log.zarr").rglob("*") if file.is_file()) < 20


def test_every_step_is_readable_at_once(tmp_path: Path) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={})
    rollout = log.begin("a")
    assert RolloutLog.open(log.path).read("a") == {}
    for index in range(STEPS):
        rollout.append(step(index))
        if index in (0, 63, 64):
            assert_holds(RolloutLog.open(log.path).read("a"), index + 1)
    assert not log.is_closed("a")
    rollout.close()
    assert log.is_closed("a")
    assert_holds(log.read("a"), STEPS)


WRITER = """
import sys
import numpy as np
from worldmodel.datasets.rollout_log import RolloutLog

with RolloutLog.create(sys.argv[1], attributes={}).begin("a") as rollout:
    for index in range(100_000):
        rollout.append({"index": index, "frames": np.full((64, 64, 3), index % 256, np.uint8)})
        print(index, flush=True)
"""


def test_a_killed_writer_leaves_every_flushed_step(tmp_path: Path) -> None:
    path = tmp_path / "log.zarr"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        flushed = next(int(line) for line in writer.stdout if int(line) >= 80)
        writer.send_signal(signal.SIGKILL)
        flushed = max([flushed, *map(int, writer.stdout.read().split())])
    log = RolloutLog.open(path)
    assert not log.is_closed("a")
    read = log.read("a")
    # One more step may have been flushed but not yet printed.
    assert len(read["index"]) in (flushed + 1, flushed + 2)
    np.testing.assert_array_equal(read["index"], np.arange(len(read["index"])))
    np.testing.assert_array_equal(read["frames"][:, 5, 5, 1], read["index"] % 256)
    write(log, "b", 2)
    assert RolloutLog.open(path).rollouts() == ("a", "b")


def test_a_step_cut_short_is_not_seen(tmp_path: Path) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={})
    rollout = log.begin("a")
    for index in range(3):
        rollout.append(step(index))
    file = log.path / "rollouts" / "000000.open" / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["attributes"]["num_steps"] = 2  # as if killed after the arrays, before the count
    file.write_text(json.dumps(metadata))
    assert_holds(RolloutLog.open(log.path).read("a"), 2)


def test_killed_while_closing_keeps_the_rollout(tmp_path: Path) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={})
    write(log, "a", 3)
    (log.path / "rollouts" / "000000").rename(log.path / "rollouts" / "000000.open")
    (log.path / ".incoming-0-x").mkdir()
    assert_holds(RolloutLog.open(log.path).read("a"), 3)
    write(RolloutLog.open(log.path), "b", 1)
    assert not (log.path / ".incoming-0-x").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"extra": 1}, "`step` must hold ['frames', 'action', 'confidence', 'level', 'causes']"),
        ({"action": np.zeros(6, np.float32)}, "`step` 'action' must be float32 of shape (7,)"),
        ({"frames": np.zeros((2, 8, 8, 3))}, "`step` 'frames' must be uint8 of shape"),
        ({"confidence": None}, "`step` 'confidence' must be a number, an array of numbers"),
        ({"level": 3}, "`step` 'level' must be StringDType() of shape ()"),
        ({"confidence": "high"}, "`step` 'confidence' must be float64 of shape ()"),
    ],
)
def test_a_step_unlike_the_first_is_refused(tmp_path: Path, changed: dict, message: str) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={})
    rollout = log.begin("a")
    rollout.append(step(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        rollout.append(step(1) | changed)
    rollout.append(step(1))
    assert_holds(log.read("a"), 2)


def test_ids_are_unique_and_misses_are_named(tmp_path: Path) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={})
    write(log, "a", 1)
    with pytest.raises(ValueError, match="holds a rollout 'a' already"):
        log.begin("a")
    with pytest.raises(ValueError, match="has no rollout 'b'; it holds 1"):
        log.read("b")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no Zarr v3 group: it has no zarr\.json"):
        RolloutLog.open(tmp_path)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(
        ValueError, match="must be a rollout-log, but its `worldmodel_form` is None"
    ):
        RolloutLog.open(tmp_path / "other.zarr")
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        RolloutLog.create(tmp_path / "other.zarr", attributes={})


def interrupted(log: RolloutLog) -> None:
    with log.begin("a") as rollout:
        rollout.append(step(0))
        raise KeyboardInterrupt


def test_an_error_leaves_the_rollout_open(tmp_path: Path) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={})
    with pytest.raises(KeyboardInterrupt):
        interrupted(log)
    assert not log.is_closed("a")
    assert_holds(log.read("a"), 1)


@pytest.mark.parametrize("num_steps", [0, 3, 64])
def test_a_killed_rollout_is_resumed_after_its_last_step(tmp_path: Path, num_steps: int) -> None:
    log = RolloutLog.create(tmp_path / "log.zarr", attributes={})
    rollout = log.begin("a", {"seed": 3})
    for index in range(num_steps):
        rollout.append(step(index))
    if not num_steps:  # killed while the arrays of the first step were made
        zarr.create_group(log.path / "rollouts" / "000000.open" / "frames")
    again = RolloutLog.open(log.path).resume("a")
    assert again.num_steps == num_steps
    for index in range(num_steps, STEPS):
        again.append(step(index))
    again.close()
    assert_holds(RolloutLog.open(log.path).read("a"), STEPS)
    assert log.attributes_of("a") == {"seed": 3}
    with pytest.raises(ValueError, match=r"'a' of .* is closed; nothing to resume"):
        log.resume("a")


def test_a_second_writer_is_refused_also_while_only_a_rollout_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log.zarr"
    write(RolloutLog.create(path), "a", 1)
    with (
        held_by_another_process(path / ".lock"),
        pytest.raises(ValueError, match=r"log\.zarr is being written by another process; wait"),
    ):
        RolloutLog.open(path).begin("b")
    rollout = RolloutLog.open(path).begin("b")
    command = [sys.executable, "-c", SECOND, str(path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "is being written by another process" in second.stderr
    rollout.append(step(0))
    rollout.close()
    assert RolloutLog.open(path).rollouts() == ("a", "b")


SECOND = """
import sys
from worldmodel.datasets.rollout_log import RolloutLog
RolloutLog.open(sys.argv[1]).resume("b")
"""


def test_a_failed_step_can_be_appended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, in the first step and in a later one."""
    log = RolloutLog.create(tmp_path / "log.zarr")
    rollout = log.begin("a")
    for index in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(zarr.Array, "__setitem__", fail_at(rollout.num_steps + 2))
            with pytest.raises(OSError, match="No space left"):
                rollout.append(step(index))
        rollout.append(step(index))
    rollout.close()
    assert_holds(log.read("a"), 3)


def fail_at(number: int) -> Callable[..., None]:
    """A replacement of `zarr.Array.__setitem__` that fails at its n-th call."""
    calls, own = [], zarr.Array.__setitem__

    def fail(array: zarr.Array, place: object, value: object) -> None:
        calls.append(place)
        if len(calls) == number:
            raise OSError("No space left on device")
        own(array, place, value)

    return fail


def test_an_open_folder_beside_the_closed_one_is_ignored(tmp_path: Path) -> None:
    """As a writer that was killed at the end of `close` left it."""
    log = RolloutLog.create(tmp_path / "log.zarr")
    write(log, "a", 2)
    (log.path / "rollouts" / "000000.open").mkdir()
    again = RolloutLog.open(log.path)
    assert again.is_closed("a")
    assert_holds(again.read("a"), 2)
