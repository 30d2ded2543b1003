"""What the monitor makes of shifted, faulty and harmless tabletop episodes, kept cell by cell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from worldmodel.calibration.calibrated import Calibration, load_calibration
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.envs.collect import Collection, record
from worldmodel.envs.factors import SEVERITIES
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.monitors.channels.channel_set import SIGNALS
from worldmodel.monitors.metrics.watched import WatchedEpisode
from worldmodel.monitors.verdict import Level, Verdict
from worldmodel.runtime.watch import watch

LOOKS = ("background", "lighting", "clutter", "object", "end_effector", "camera")
"""Factors of the scene."""
ACTIONS = ("scale", "flip_y", "swap_xy", "jitter", "delay", "invert_gripper", "uniform")
"""Action faults."""
BENIGN = ("clean", "noise_010", "bias_010")
"""Policies of the training mixture, each alone."""
SETTLED = 5
"""Frames from the first alarm on in which a cause may settle."""
BATCH = 32
"""Episodes imagined at once."""


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """What is simulated."""

    nominal: int = 100
    shifted: int = 16
    """Episodes per factor or fault, severity and onset."""
    onset: int = 10
    """Frame of the later onset; the other one is 0."""
    severities: tuple[int, ...] = SEVERITIES[::-1]
    seed: int = 8_500_003
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Episodes of one kind."""

    kind: str
    """"nominal", "benign", "looks", "wiring" (the robot does something else than the policy said,
    and the monitor knows what it said) or "policy" (it says and does the faulty thing)."""
    name: str
    """Factor, fault, or policy if benign."""
    severity: int = 0
    onset: int = 0

    @property
    def file(self) -> str:
        """Where its results are kept."""
        return f"{self.kind}-{self.name}-{self.severity}-{self.onset}.json"

    def collection(self, seed: int) -> Collection:
        """How its episodes are recorded; looks and faults of equal number share a scene."""
        if self.kind == "nominal":
            return Collection(renderer="ray", seed=seed)
        if self.kind == "benign":
            own = seed + 2 + BENIGN.index(self.name)
            return Collection(renderer="ray", seed=own, policy=self.name)
        return Collection(
            renderer="ray",
            seed=seed + 1,
            factor=self.name,
            severity=self.severity,
            onset=self.onset,
        )


@dataclass(frozen=True, kw_only=True)
class Watched:
    """An episode as the monitor saw it, one entry per frame."""

    scores: dict[str, list[float]]
    """Signal -> score in its own unit; NaN where it did not run."""
    levels: list[int]
    causes: list[list[str]]
    error: list[float]
    """Mean error of the imagined latents; 0 where nothing was imagined."""

    def as_episode(self, alarm_rule: AlarmRule) -> WatchedEpisode:
        """For `summarize_detection`."""
        scores = {name: np.array(self.scores[name]) for name in alarm_rule.scales_}
        return WatchedEpisode(scores, alarm_rule.alarm_score(scores), np.array(self.levels))

    def model_error(self, onset: int) -> float:
        """Mean error of what was imagined from the onset on."""
        imagined = np.array(self.error)[onset:]
        return float(imagined[imagined > 0].mean())


def plan(config: DetectionConfig) -> Iterator[tuple[Cell, int]]:
    """Every cell and its number of episodes."""
    yield Cell(kind="nominal", name="nominal"), config.nominal
    for policy in BENIGN:
        yield Cell(kind="benign", name=policy), config.nominal // 2
    for severity in config.severities:
        for onset in (0, config.onset):
            for kind, names in (("looks", LOOKS), ("wiring", ACTIONS), ("policy", ACTIONS)):
                for name in names:
                    cell = Cell(kind=kind, name=name, severity=severity, onset=onset)
                    yield cell, config.shifted


def load_watcher(source: str, monitor: Path | None) -> tuple[WorldModel, Calibration]:
    """A checkpoint and its monitor, or the one in the folder `monitor`."""
    path = checkpoint_folder(source)
    model = WorldModel.load(path)
    return model, load_calibration(model, path, monitor)


def run(
    model: WorldModel, calibration: Calibration, config: DetectionConfig, folder: Path
) -> dict[Cell, list[Watched]]:
    """Simulate, imagine and watch every cell that `folder` does not hold yet.

    Raises:
        ValueError: a severity or onset that no episode has, or `folder` holds results of other
            settings or another monitor.
    """
    limits = {
        level.name: value for level, value in calibration.monitor.alarm_rule_.thresholds_.items()
    }
    settings = {**asdict(config), "workers": 0, "thresholds": limits}
    del settings["severities"]  # more of them may be added later
    cells = list(plan(config))
    for cell, _ in cells:
        cell.collection(config.seed)  # refuses what cannot be recorded before anything is written
    check_settings(folder, settings)
    for cell, number in tqdm(cells, "watch", unit="kind"):
        file = folder / cell.file
        if not file.is_file():
            rows = watch_cell(model, calibration, cell, number, config)
            part = file.with_suffix(".part")
            part.write_text(json.dumps([asdict(row) for row in rows]))
            os.replace(part, file)
    return {cell: [Watched(**r) for r in read_rows(folder / cell.file)] for cell, _ in cells}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """What `run` wrote of a cell."""
    return list(json.loads(file.read_text()))


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Keep what results are of beside them; refuse to mix them with others."""
    file = folder / "settings.json"
    if file.is_file():
        if json.loads(file.read_text()) != settings:
            raise ValueError(f"{folder} holds results of other settings; give another `--out`.")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else; give another `--out`.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))


def watch_cell(
    model: WorldModel, calibration: Calibration, cell: Cell, number: int, config: DetectionConfig
) -> list[Watched]:
    """Simulate, imagine and watch."""
    scene = cell.collection(config.seed)
    recorded = record([(scene, index) for index in range(number)], workers=config.workers)
    episodes = [
        load_episode(model, as_commanded(t) if cell.kind == "wiring" else t, model.config.cameras)
        for t in recorded
    ]
    rows = []
    for first in range(0, number, BATCH):
        rows += watch_batch(
            model, calibration, episodes[first : first + BATCH], config.seed + first
        )
    return rows


def as_commanded(trajectory: Trajectory) -> Trajectory:
    """The same episode with the actions that the policy meant."""
    meant = trajectory.signals["intended_action"]
    actions = np.where(trajectory.action_valid[:, None], meant, np.float32(0))
    return replace(trajectory, actions=actions)


@torch.inference_mode()
def watch_batch(
    model: WorldModel, calibration: Calibration, episodes: Sequence[Episode], seed: int
) -> list[Watched]:
    """Imagine and watch some episodes."""
    rollouts = calibration.claims(model, [e.batch for e in episodes], seed=seed)
    rows = []
    for episode, rollout in zip(episodes, rollouts, strict=True):
        verdicts = list(watch(calibration, episode, rollout))
        error = rollout.error.mean((1, 2, 3, 4)).numpy() * (rollout.horizon > 0)
        rows.append(summed_up(verdicts, error))
    return rows


def summed_up(verdicts: Sequence[Verdict], error: Float[np.ndarray, " time"]) -> Watched:
    """What is kept of an episode."""

    def score(verdict: Verdict, name: str) -> float:
        evidence = verdict.evidence.get(name)
        return float("nan") if evidence is None or evidence.score is None else evidence.score

    return Watched(
        scores={name: [score(v, name) for v in verdicts] for name in SIGNALS},
        levels=[int(v.level) for v in verdicts],
        causes=[list(v.causes) for v in verdicts],
        error=[float(value) for value in error],
    )


def first_cause(row: Watched, onset: int) -> str | None:
    """The first cause of the first alarm from the onset on; None without an alarm."""
    alarms = (t for t in range(onset, len(row.levels)) if is_alarm(row, t))
    first = next(alarms, None)
    return None if first is None else row.causes[first][0]


def settled_cause(row: Watched, onset: int) -> str | None:
    """The first cause of the last alarm within `SETTLED` frames from the first; None: no alarm."""
    alarms = [t for t in range(onset, len(row.levels)) if is_alarm(row, t)]
    return row.causes[max(t for t in alarms if t < alarms[0] + SETTLED)][0] if alarms else None


def is_alarm(row: Watched, t: int) -> bool:
    """Whether frame t itself raised the level, and not an earlier one that is still held."""
    return row.levels[t] > Level.TRUST and row.causes[t][0] != "held"


def main_cause(row: Watched, onset: int) -> str | None:
    """The first cause of most alarms from the onset on, the earliest of equals; None: no alarm."""
    named = [row.causes[t][0] for t in range(onset, len(row.levels)) if is_alarm(row, t)]
    return max(dict.fromkeys(named), key=named.count) if named else None


def highest_level(row: Watched, onset: int) -> int:
    """The highest level from the onset on."""
    return max(row.levels[onset:])
