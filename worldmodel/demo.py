"""Demo: simulate held-out episodes, imagine them, check calibration and monitor, rank policies.

All episodes are new: model, monitor and recalibration were fitted on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from worldmodel.calibration.calibrated import Calibration, Checkpoint
from worldmodel.calibration.features import FrameFeatures, signals
from worldmodel.demo_config import DemoConfig
from worldmodel.envs.collect import Collection
from worldmodel.envs.factors import NOMINAL, SEVERITIES, SHIFTS
from worldmodel.episodes.episode import Episode
from worldmodel.evaluation.evaluate import Evaluation, evaluate
from worldmodel.evaluation.simulate import Key, policy_episodes, simulate
from worldmodel.model import WorldModel
from worldmodel.monitors.metrics.detection import DetectionSummary, summarize_detection
from worldmodel.monitors.metrics.watched import WatchedEpisode
from worldmodel.monitors.reliability.counts import CalibrationSummary, Reliability, summarize
from worldmodel.rollouts.open_loop import EpisodeRollouts, roll_out
from worldmodel.rollouts.quality import QualityRow, image_quality
from worldmodel.rollouts.recalibrate import recalibrated
from worldmodel.rollouts.reliability import count_reliability

HORIZONS = (1, 4, 8, 16)
"""Horizons, in frames, of the calibration table."""


@dataclass(frozen=True)
class Group:
    """Episodes of one factor and severity, with their rollouts and verdicts."""

    episodes: Sequence[Episode]
    rollouts: Sequence[EpisodeRollouts]
    watched: Sequence[WatchedEpisode]


@dataclass(frozen=True)
class DemoResult:
    """All results of the demo."""

    config: DemoConfig
    groups: Mapping[Key, Group]
    quality: Sequence[QualityRow]
    calibration: Mapping[str, CalibrationSummary]
    """Row name of the calibration table -> figures."""
    reliability: Mapping[str, Reliability]
    """Reliability of the stated confidence, "nominal" and "shifted"."""
    detection: Mapping[Key, DetectionSummary]
    evaluation: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "quality": [row.as_dict() for row in self.quality],
            "calibration": {name: row.as_dict() for name, row in self.calibration.items()},
            "detection": {f"{f}-{s}": row.as_dict() for (f, s), row in self.detection.items()},
            "evaluation": self.evaluation.as_dict(),
        }


def run_demo(checkpoint: Checkpoint, config: DemoConfig) -> DemoResult:
    """Run the demo."""
    groups = {
        key: imagine_group(checkpoint, episodes, seed=config.seed)
        for key, episodes in tqdm(scenes(checkpoint.model, config).items(), "imagine")
    }
    runs = policy_episodes(
        checkpoint.model, config.policies, task=config.task, episodes=config.rollouts,
        seed=config.seed + 1, workers=config.workers,
    )  # fmt: skip
    evaluation = evaluate(checkpoint.model, checkpoint.gate, runs, seed=config.seed)
    nominal = groups[NOMINAL, 0]
    rng = np.random.default_rng(config.seed)
    reliability = {
        NOMINAL: count(nominal),
        "shifted": count(merge([g for (name, _), g in groups.items() if name != NOMINAL])),
    }
    return DemoResult(
        config=config,
        groups=groups,
        quality=image_quality(checkpoint.model, nominal.episodes, nominal.rollouts, rng=rng),
        calibration=calibration_table(checkpoint.calibration, groups, reliability, rng),
        reliability=reliability,
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
    return Group(episodes, rollouts, watched)


def merge(groups: Sequence[Group]) -> Group:
    """Concatenate groups."""
    return Group(
        [episode for group in groups for episode in group.episodes],
        [rollout for group in groups for rollout in group.rollouts],
        [watched for group in groups for watched in group.watched],
    )


def count(group: Group) -> Reliability:
    """Count stated confidence against outcomes at `HORIZONS`."""
    names = [episode.name for episode in group.episodes]
    return count_reliability(group.rollouts, names=names, horizons=HORIZONS)


def calibration_table(
    calibration: Calibration,
    groups: Mapping[Key, Group],
    reliability: Mapping[str, Reliability],
    rng: np.random.Generator,
) -> dict[str, CalibrationSummary]:
    """Calibration of nominal episodes (stated and recalibrated, by horizon) and of each shift."""

    def row(counted: Reliability, horizon: int | None = None) -> CalibrationSummary:
        return summarize(counted.episode_bins(horizon=horizon), rng=rng, num_resamples=200)

    def corrected(group: Group) -> Reliability:
        rollouts = [recalibrated(rollout, calibration.recalibration) for rollout in group.rollouts]
        return count(replace(group, rollouts=rollouts))

    stated = {"as stated": reliability[NOMINAL], "recalibrated": corrected(groups[NOMINAL, 0])}
    table = {f"nominal, {kind}": row(counted) for kind, counted in stated.items()}
    table |= {
        f"nominal, {kind}, horizon {horizon}": row(counted, horizon)
        for kind, counted in stated.items()
        for horizon in HORIZONS
    }
    table["shifted, all factors"] = row(reliability["shifted"])
    for factor in SHIFTS:
        table[f"shifted: {factor}"] = row(
            count(merge([groups[factor, severity] for severity in SEVERITIES]))
        )
    return table
