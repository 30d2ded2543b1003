"""Demo: simulate held-out episodes, imagine them, check calibration and monitor, rank policies.

All episodes are new: model, monitor and recalibration were fitted on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from worldmodel.calibration.calibrated import Checkpoint
from worldmodel.calibration.features import FrameFeatures, signals
from worldmodel.demo_config import DemoConfig
from worldmodel.envs.collect import Collection
from worldmodel.envs.factors import NOMINAL, SEVERITIES, SHIFTS
from worldmodel.episodes.episode import Episode
from worldmodel.evaluation.evaluate import Evaluation
from worldmodel.evaluation.simulate import Key, evaluate_simulated, simulate
from worldmodel.model import WorldModel
from worldmodel.monitors.metrics.detection import DetectionSummary, summarize_detection
from worldmodel.monitors.metrics.watched import WatchedEpisode
from worldmodel.monitors.reliability.counts import CalibrationSummary, Reliability, summarize
from worldmodel.rollouts.open_loop import EpisodeRollouts, roll_out
from worldmodel.rollouts.quality import CopyGain, QualityRow, copy_gains, image_quality
from worldmodel.rollouts.reliability import count_reliability

HORIZONS = (1, 4, 8, 16)
"""Horizons, in frames, of the calibration table."""
SHIFTED = "shifted, all factors"
"""Name of the group of all shifted episodes."""


@dataclass(frozen=True)
class Group:
    """Episodes of one factor and severity, with their rollouts and verdicts."""

    episodes: Sequence[Episode]
    rollouts: Sequence[EpisodeRollouts]
    """With the confidence as the model states it."""
    shown: Sequence[EpisodeRollouts]
    """With the confidence that logs and reports show (`Calibration.shown`)."""
    watched: Sequence[WatchedEpisode]


@dataclass(frozen=True)
class DemoResult:
    """All results of the demo."""

    config: DemoConfig
    groups: Mapping[Key, Group]
    quality: Sequence[QualityRow]
    calibration: Mapping[str, CalibrationSummary]
    """Row name of the calibration table -> figures."""
    gains: Mapping[str, CopyGain]
    """The same rows -> gain of the pictures over copying the last frame."""
    reliability: Mapping[str, Reliability]
    """Reliability of the shown confidence, "nominal" and "shifted"."""
    detection: Mapping[Key, DetectionSummary]
    evaluation: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "quality": [row.as_dict() for row in self.quality],
            "calibration": {name: row.as_dict() for name, row in self.calibration.items()},
            "gain_over_copy": {name: asdict(gain) for name, gain in self.gains.items()},
            "detection": {f"{f}-{s}": row.as_dict() for (f, s), row in self.detection.items()},
            "evaluation": self.evaluation.as_dict(),
        }


def run_demo(checkpoint: Checkpoint, config: DemoConfig) -> DemoResult:
    """Run the demo."""
    groups = {
        key: imagine_group(checkpoint, episodes, seed=config.seed)
        for key, episodes in tqdm(scenes(checkpoint.model, config).items(), "imagine")
    }
    evaluation = evaluate_simulated(
        checkpoint, config.policies, task=config.task, episodes=config.rollouts,
        seed=config.seed + 1, workers=config.workers,
    )  # fmt: skip
    nominal = groups[NOMINAL, 0]
    rng = np.random.default_rng(config.seed)
    calibrated = table_groups(groups)
    return DemoResult(
        config=config,
        groups=groups,
        quality=image_quality(
            checkpoint.model, nominal.episodes, nominal.rollouts, rng=rng, kind=config.pictures
        ),
        calibration=calibration_table(calibrated, rng),
        gains=gain_table(checkpoint.model, calibrated, config.pictures),
        reliability={name: count(calibrated[name]) for name in (NOMINAL, SHIFTED)},
        detection={
            key: summarize_detection(nominal.watched, group.watched)
            for key, group in groups.items()
            if key[0] != NOMINAL
        },
        evaluation=evaluation,
    )


def scenes(model: WorldModel, config: DemoConfig) -> dict[Key, list[Episode]]:
    """Simulate held-out episodes of every factor and severity."""
    base = Collection(task=config.task, renderer="ray", seed=config.seed)
    plan: list[tuple[Key, Collection, int]] = [((NOMINAL, 0), base, config.nominal)]
    for factor in SHIFTS:
        for severity in SEVERITIES:
            scene = replace(base, factor=factor, severity=severity)
            plan.append(((factor, severity), scene, config.shifted))
    return simulate(model, plan, workers=config.workers)


@torch.inference_mode()
def imagine_group(checkpoint: Checkpoint, episodes: Sequence[Episode], *, seed: int) -> Group:
    """Imagine and monitor the episodes of one factor and severity."""
    features, calibration = FrameFeatures(checkpoint.model), checkpoint.calibration
    batches = [episode.batch for episode in episodes]
    rollouts = roll_out(checkpoint.model, batches, horizon=calibration.horizon, seed=seed)
    claims = calibration.claims(checkpoint.model, batches, seed=seed)
    watched = [
        calibration.monitor.watch(signals(features, episode, claim))
        for episode, claim in zip(episodes, claims, strict=True)
    ]
    shown = [
        calibration.shown(checkpoint.model, episode, rollout)
        for episode, rollout in zip(episodes, rollouts, strict=True)
    ]
    return Group(episodes, rollouts, shown, watched)


def merge(groups: Sequence[Group]) -> Group:
    """Concatenate groups."""
    return Group(
        [episode for group in groups for episode in group.episodes],
        [rollout for group in groups for rollout in group.rollouts],
        [rollout for group in groups for rollout in group.shown],
        [watched for group in groups for watched in group.watched],
    )


def count(group: Group) -> Reliability:
    """Count shown confidence against outcomes at `HORIZONS`."""
    names = [episode.name for episode in group.episodes]
    return count_reliability(group.shown, names=names, horizons=HORIZONS)


def table_groups(groups: Mapping[Key, Group]) -> dict[str, Group]:
    """Groups of the calibration table: nominal, all shifts together, and each factor."""
    shifted = {
        factor: merge([groups[factor, severity] for severity in SEVERITIES]) for factor in SHIFTS
    }
    return {
        NOMINAL: groups[NOMINAL, 0],
        SHIFTED: merge(list(shifted.values())),
        **{f"shifted: {factor}": group for factor, group in shifted.items()},
    }


def calibration_table(
    groups: Mapping[str, Group], rng: np.random.Generator
) -> dict[str, CalibrationSummary]:
    """Calibration of the shown confidence per group, of nominal episodes also by horizon.

    For comparison, the same of nominal and of all shifted episodes before recalibration.
    """

    def row(group: Group, horizon: int | None = None) -> CalibrationSummary:
        bins = count(group).episode_bins(horizon=horizon)
        return summarize(bins, rng=rng, num_resamples=200)

    nominal = groups[NOMINAL]
    table = {NOMINAL: row(nominal)}
    table |= {f"{NOMINAL}, horizon {horizon}": row(nominal, horizon) for horizon in HORIZONS}
    table |= {name: row(group) for name, group in groups.items() if name != NOMINAL}
    for name in (NOMINAL, SHIFTED):
        stated = replace(groups[name], shown=groups[name].rollouts)
        table[f"before recalibration: {name}"] = row(stated)
    return table


def gain_table(model: WorldModel, groups: Mapping[str, Group], kind: str) -> dict[str, CopyGain]:
    """Gain of pictures over copying the last frame, for the rows of `calibration_table`."""

    def row(group: Group, horizons: Sequence[int] = HORIZONS) -> CopyGain:
        return CopyGain.of(copy_gains(model, group.episodes, group.rollouts, horizons, kind))

    gains = {name: row(group) for name, group in groups.items()}
    by_horizon = {f"{NOMINAL}, horizon {h}": row(groups[NOMINAL], (h,)) for h in HORIZONS}
    before = {f"before recalibration: {name}": gains[name] for name in (NOMINAL, SHIFTED)}
    return gains | by_horizon | before
