"""What is written under injected faults: each scenario can be broken off anywhere and repeated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tests.training.test_loop import Toy, assert_same_weights
from tests.training.test_loop import run as train_toy
from worldmodel.calibration.calibrated import Calibration, Checkpoint, save_calibration
from worldmodel.calibration.gate import Gate
from worldmodel.checkpoint import SHIPPED
from worldmodel.datasets import rollout_log
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import ArrayFrames, Trajectory
from worldmodel.model import WorldModel
from worldmodel.monitors.alert_log import Alert, AlertLog, read_alerts
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Level, Verdict
from worldmodel.training import loop
from worldmodel.training.state import STATE, latest_checkpoint

SHIPPED_FOLDER = SHIPPED / "tabletop"
Acknowledge = Callable[[int], None]
"""Called with the number of units that are written for good."""


@dataclass(frozen=True)
class Scenario:
    """Writes `units` units into a folder, one after the other."""

    units: int
    prepare: Callable[[Path], None]
    """Put the old version into an empty folder."""
    write: Callable[[Path, Acknowledge], None]
    """Write all units that the folder lacks."""
    read: Callable[[Path], int]
    """Number of units in the folder; raises if anything there is damaged."""


def episode(index: int) -> Trajectory:
    rng = np.random.default_rng(index)
    return Trajectory(
        episode_id=str(index),
        source="",
        frames={"c": ArrayFrames(rng.integers(0, 255, (3, 16, 16, 3), np.uint8))},
        actions=rng.normal(size=(3, 7)).astype(np.float32),
        action_valid=np.ones(3, bool),
        states=None,
        action_spec=CANONICAL,
        instruction="",
        rate_hz=5.0,
        success=None,
        signals={"force": rng.normal(size=(3, 2))},
    )


def latents(index: int) -> np.ndarray:
    return np.full((3, 1, 2, 4, 4), index, np.float16)


def write_store(folder: Path, acknowledge: Acknowledge) -> None:
    path = folder / "store.zarr"
    if not path.exists():
        ClipStore.create(path, cameras=["c"], action_spec=CANONICAL, rate_hz=5.0, encoding="raw")
    acknowledge(1)
    store = ClipStore.open(path)
    for index in range(2):
        if str(index) not in store:
            store.add(episode(index))
        acknowledge(2 + index)
    if not store.has_latents("l", 0):
        store.write_latents("l", 0, latents(0))
    acknowledge(4)


def read_store(folder: Path) -> int:
    if not (folder / "store.zarr").exists():
        return 0
    store = ClipStore.open(folder / "store.zarr")
    for index, read in enumerate(store):
        made = episode(index)
        np.testing.assert_array_equal(read.frames["c"][0:3], made.frames["c"][0:3])
        np.testing.assert_array_equal(read.actions, made.actions)
        np.testing.assert_array_equal(read.signals["force"], made.signals["force"])
    found = 0
    if len(store) and store.has_latents("l", 0):
        np.testing.assert_array_equal(store.read_latents("l", 0), latents(0))
        found = 1
    return 1 + len(store) + found


NUM_STEPS = 5


def step(index: int) -> dict[str, object]:
    return {"map": np.full((2, 2), index, np.float32), "level": f"stop {index}", "t": index}


def write_log(folder: Path, acknowledge: Acknowledge) -> None:
    rollout_log.FIRST_CAPACITY = 2  # the arrays grow twice
    path = folder / "log.zarr"
    log = RolloutLog.open(path) if path.exists() else RolloutLog.create(path)
    acknowledge(1)
    if "a" in log.rollouts() and log.is_closed("a"):
        return
    writer = log.resume("a") if "a" in log.rollouts() else log.begin("a", {"seed": 1})
    for index in range(writer.num_steps, NUM_STEPS):
        writer.append(step(index))
        acknowledge(2 + index)
    writer.close()
    acknowledge(2 + NUM_STEPS)


def read_log(folder: Path) -> int:
    if not (folder / "log.zarr").exists():
        return 0
    log = RolloutLog.open(folder / "log.zarr")
    if not log.rollouts():
        return 1
    assert log.attributes_of("a") == {"seed": 1}
    read = log.read("a")
    number = len(read["t"]) if read else 0
    for name, expected in [*step(0).items()] if read else []:
        rows = [step(index)[name] for index in range(number)]
        np.testing.assert_array_equal(read[name], np.array(rows, np.asarray(expected).dtype))
    return 1 + number + log.is_closed("a")


MODEL = WorldModel.load(SHIPPED_FOLDER)


def prepare_model(folder: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER, folder / "model")
    for extra in (folder / "model" / "monitor").glob("*.safetensors"):
        extra.write_bytes(b"small")


def write_model(folder: Path, acknowledge: Acknowledge) -> None:
    changed = WorldModel.load(folder / "model")
    changed.dynamics.change_std.copy_(MODEL.dynamics.change_std + 1)
    changed.save(folder / "model", dtype=torch.float16)
    acknowledge(1)


def read_model(folder: Path) -> int:
    model = WorldModel.load(folder / "model")
    assert (folder / "model" / "README.md").read_bytes() == (
        SHIPPED_FOLDER / "README.md"
    ).read_bytes()
    assert (folder / "model" / "monitor" / "monitor.safetensors").read_bytes() == b"small"
    moved = model.dynamics.change_std - MODEL.dynamics.change_std
    for name, value in model.dynamics.named_parameters():
        assert torch.equal(value, MODEL.dynamics.get_parameter(name))
    return int(moved.abs().max() > 0.5)


CHECKPOINT = Checkpoint.load(SHIPPED_FOLDER)


def prepare_monitor(folder: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER / "monitor", folder / "monitor")


def write_monitor(folder: Path, acknowledge: Acknowledge) -> None:
    changed = replace(CHECKPOINT.calibration, horizon=5)
    save_calibration(changed, replace(CHECKPOINT.gate, horizon=5), folder / "monitor", {})
    acknowledge(1)


def read_monitor(folder: Path) -> int:
    horizon = Calibration.load(folder / "monitor", MODEL).horizon
    gate = Gate.load(folder / "monitor" / "gate")
    assert (horizon, gate.horizon) in ((16, CHECKPOINT.gate.horizon), (5, 5))
    return int(horizon == 5)


def prepare_bare(folder: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER / "monitor" / "gate", folder / "bare")


def write_bare(folder: Path, acknowledge: Acknowledge) -> None:
    monitor = RuntimeMonitor.load(SHIPPED_FOLDER / "monitor" / "gate")
    assert monitor.alarm_rule_.maxima_ is not None
    monitor.alarm_rule_.maxima_ = 2 * monitor.alarm_rule_.maxima_
    monitor.save(folder / "bare")
    acknowledge(1)


def read_bare(folder: Path) -> int:
    old = CHECKPOINT.gate.monitor.alarm_rule_.maxima_
    new = RuntimeMonitor.load(folder / "bare").alarm_rule_.maxima_
    assert old is not None
    assert new is not None
    assert np.array_equal(new, old) or np.array_equal(new, 2 * old)
    return int(new[0] != old[0])


def alert(index: int) -> Alert:
    return Alert(step=index, verdict=Verdict(Level.STOP, ("a" * 100,)), time_s=float(index))


def write_verdicts(folder: Path, acknowledge: Acknowledge) -> None:
    path = folder / "verdicts.jsonl"
    with AlertLog(path) as log:
        for index in range(len(list(read_alerts(path))), 3):
            log.write(alert(index))
            acknowledge(1 + index)


def read_verdicts(folder: Path) -> int:
    path = folder / "verdicts.jsonl"
    found = list(read_alerts(path)) if path.exists() else []
    assert found == [alert(index) for index in range(len(found))]
    return len(found)


def write_run(folder: Path, acknowledge: Acknowledge) -> None:
    save = loop.save_checkpoint

    def save_and_tell(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        acknowledge(int(arguments[-1]))  # type: ignore[call-overload]

    loop.save_checkpoint = save_and_tell
    try:
        trained = train_toy(Toy(), folder / "run")
    finally:
        loop.save_checkpoint = save
    torch.save(trained.state_dict(), folder.parent / "trained.pt")


def read_run(folder: Path) -> int:
    checkpoint = latest_checkpoint(folder / "run")
    if checkpoint is None:
        return 0
    torch.load(checkpoint / STATE, weights_only=True)
    number = int(checkpoint.name.removeprefix("step-"))
    trained = folder.parent / "trained.pt"
    if number == 7 and trained.exists():
        finished = Toy()
        finished.load_state_dict(torch.load(trained, weights_only=True))
        assert_same_weights(finished, UNINTERRUPTED)
        trained.unlink()
    return number


UNINTERRUPTED = Toy()


def nothing(folder: Path) -> None:
    pass


def train_uninterrupted(folder: Path) -> None:
    UNINTERRUPTED.load_state_dict(train_toy(Toy(), folder.parent / "uninterrupted").state_dict())


SCENARIOS = {
    "store": Scenario(4, nothing, write_store, read_store),
    "log": Scenario(2 + NUM_STEPS, nothing, write_log, read_log),
    "model": Scenario(1, prepare_model, write_model, read_model),
    "monitor": Scenario(1, prepare_monitor, write_monitor, read_monitor),
    "bare_monitor": Scenario(1, prepare_bare, write_bare, read_bare),
    "verdicts": Scenario(3, nothing, write_verdicts, read_verdicts),
    "run": Scenario(7, train_uninterrupted, write_run, read_run),
}
