"""Run the monitor on shifted, faulty and benign tabletop episodes, stored cell by cell."""

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
"""Scene factors."""
ACTIONS = ("scale", "flip_y", "swap_xy", "jitter", "delay", "invert_gripper", "uniform")
"""Action faults."""
BENIGN = ("clean", "noise_010", "bias_010")
"""Single policies of the training mixture."""
SETTLED = 5
"""Frames after the first alarm for a cause to settle."""
BATCH = 32
"""Episodes per batch of rollouts."""


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Size and seed of the simulation."""

    nominal: int = 100
    shifted: int = 16
    """Episodes per factor or fault, severity and onset."""
    onset: int = 10
    """Frame of the later onset; the other onset is 0."""
    severities: tuple[int, ...] = SEVERITIES[::-1]
    seed: int = 8_500_003
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Group of episodes with the same kind, name, severity and onset."""

    kind: str
    """"nominal", "benign", "looks", "wiring" (the robot executes another action than the policy's,
    which the monitor sees) or "policy" (the policy itself is faulty)."""
    name: str
    """Scene factor, action fault or benign policy."""
    severity: int = 0
    onset: int = 0

    @property
    def file(self) -> str:
        """File name of the results."""
        return f"{self.kind}-{self.name}-{self.severity}-{self.onset}.json"

    def collection(self, seed: int) -> Collection:
        """Recording settings.

        Every factor, fault, severity and onset has its own scenes; only the two kinds of a fault,
        "wiring" and "policy", show the same episodes.
        """
        if self.kind == "nominal":
            return Collection(renderer="ray", seed=seed)
        if self.kind == "benign":
            policy_seed = seed + 2 + BENIGN.index(self.name)
            return Collection(renderer="ray", seed=policy_seed, policy=self.name)
        return Collection(
            renderer="ray",
            seed=seed + 1,
            factor=self.name,
            severity=self.severity,
            onset=self.onset,
        )


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Monitor output of one episode, one entry per frame."""

    scores: dict[str, list[float]]
    """Signal -> score in its own unit; NaN where the signal was not computed."""
    levels: list[int]
    causes: list[list[str]]
    error: list[float]
    """Mean error of the imagined latents; 0 at real frames."""

    def as_episode(self, alarm_rule: AlarmRule) -> WatchedEpisode:
        """Convert to the input of `summarize_detection`."""
        scores = {name: np.array(self.scores[name]) for name in alarm_rule.scales_}
        return WatchedEpisode(scores, alarm_rule.alarm_score(scores), np.array(self.levels))

    def model_error(self, onset: int) -> float:
        """Mean error of imagined frames from the onset on."""
        imagined = np.array(self.error)[onset:]
        return float(imagined[imagined > 0].mean())


def plan(config: DetectionConfig) -> Iterator[tuple[Cell, int]]:
    """All cells with their numbers of episodes."""
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
    """Load a checkpoint with its calibration, or with the one in the folder `monitor`."""
    path = checkpoint_folder(source)
    model = WorldModel.load(path)
    return model, load_calibration(model, path, monitor)


def run(
    model: WorldModel, calibration: Calibration, config: DetectionConfig, folder: Path
) -> dict[Cell, list[Watched]]:
    """Simulate, roll out and watch every cell that has no results in `folder` yet.

    Raises:
        ValueError: an invalid severity or onset, or `folder` holds results of other settings or
            another monitor.
    """
    thresholds = {
        level.name: value for level, value in calibration.monitor.alarm_rule_.thresholds_.items()
    }
    settings = {**asdict(config), "workers": 0, "thresholds": thresholds}
    del settings["severities"]  # severities can be added later
    cells = list(plan(config))
    for cell, _ in cells:
        cell.collection(config.seed)  # raises on invalid cells before anything is written
    check_settings(folder, settings)
    for cell, number in tqdm(cells, "watch", unit="kind"):
        file = folder / cell.file
        if not file.is_file():
            rows = watch_cell(model, calibration, cell, number, config)
            part = file.with_suffix(".part")
            part.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
            os.replace(part, file)
    return {cell: [Watched(**r) for r in read_rows(folder / cell.file)] for cell, _ in cells}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the results of a cell."""
    return list(json.loads(file.read_text(encoding="utf-8")))


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Store the settings beside the results; raise if `folder` holds other settings."""
    file = folder / "settings.json"
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{folder} holds results of other settings; give another `--out`.")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no results; give another `--out`.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings), encoding="utf-8")


def watch_cell(
    model: WorldModel, calibration: Calibration, cell: Cell, number: int, config: DetectionConfig
) -> list[Watched]:
    """Simulate, roll out and watch one cell."""
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
    """Replace executed actions by the policy's intended actions."""
    intended = trajectory.signals["intended_action"]
    actions = np.where(trajectory.action_valid[:, None], intended, np.float32(0))
    return replace(trajectory, actions=actions)


@torch.inference_mode()
def watch_batch(
    model: WorldModel, calibration: Calibration, episodes: Sequence[Episode], seed: int
) -> list[Watched]:
    """Roll out and watch a batch of episodes."""
    rollouts = calibration.claims(model, [e.batch for e in episodes], seed=seed)
    rows = []
    for episode, rollout in zip(episodes, rollouts, strict=True):
        verdicts = list(watch(calibration, episode, rollout))
        error = rollout.error.mean((1, 2, 3, 4)).numpy() * (rollout.horizon > 0)
        rows.append(watched_episode(verdicts, error))
    return rows


def watched_episode(verdicts: Sequence[Verdict], error: Float[np.ndarray, " time"]) -> Watched:
    """Collect scores, levels, causes and errors of an episode."""

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
    """First cause of the first alarm from the onset on; None without an alarm."""
    alarms = (t for t in range(onset, len(row.levels)) if is_alarm(row, t))
    first = next(alarms, None)
    return None if first is None else row.causes[first][0]


def settled_cause(row: Watched, onset: int) -> str | None:
    """First cause of the last alarm within `SETTLED` frames of the first; None: no alarm."""
    alarms = [t for t in range(onset, len(row.levels)) if is_alarm(row, t)]
    return row.causes[max(t for t in alarms if t < alarms[0] + SETTLED)][0] if alarms else None


def is_alarm(row: Watched, t: int) -> bool:
    """Whether frame t itself raised the level, rather than holding an earlier alarm."""
    return row.levels[t] > Level.TRUST and row.causes[t][0] != "held"


def main_cause(row: Watched, onset: int) -> str | None:
    """Most frequent first cause of alarms from the onset on (ties: earliest); None: no alarm."""
    causes = [row.causes[t][0] for t in range(onset, len(row.levels)) if is_alarm(row, t)]
    return max(dict.fromkeys(causes), key=causes.count) if causes else None


def highest_level(row: Watched, onset: int) -> int:
    """Highest level from the onset on."""
    return max(row.levels[onset:])
