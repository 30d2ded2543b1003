"""Compare confidence methods on the same rollouts: heads, losses, events and baselines.

Heads are trained on one set of nominal episodes. Recalibration, and the curves that map a
baseline's score to probabilities, are fitted on a second set. All methods are evaluated on a third
set. No method is fitted to shifted episodes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.calibration.appearance_discount import AppearanceDiscount
from benchmarks.calibration.baselines import BASELINES, Baseline, divided_by_motion, ensemble
from benchmarks.calibration.episodes import BenchmarkData, RolledEpisodes
from benchmarks.calibration.heads import ABLATION, HeadRecipe, restated, train_head
from benchmarks.calibration.measures import HORIZONS, CalibrationRow, IntervalEstimate, measure
from benchmarks.calibration.rescore import Scores
from benchmarks.calibration.score_curves import fit_scores, with_confidence
from worldmodel.calibration.features import FrameFeatures, looks_familiar
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.rollouts.open_loop import EpisodeRollouts
from worldmodel.rollouts.quality import CopyGain, copy_gains
from worldmodel.rollouts.recalibrate import fit_recalibration, recalibrated

SHIPPED = "the model's own head"
OWN = HeadRecipe()
"""Head that the appearance discount is applied to."""
OVER_MOTION = " / motion"
"""Suffix of the names of signals divided by motion."""


@dataclass(frozen=True)
class MethodForecasts:
    """Forecasts of one method on every group of episodes, and its cost."""

    forecasts: Mapping[str, Sequence[EpisodeRollouts]]
    cost: float
    """CPU time of rollout and confidence, relative to the rollout alone."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Scores that π and AUSE rank by; empty: the confidence."""


Method = Callable[[], MethodForecasts]


@dataclass(frozen=True)
class Comparison:
    """One model and the data its confidence is evaluated on."""

    model: WorldModel
    gather: Callable[[], BenchmarkData]
    """Makes the data at first use."""
    steps: int
    """Training steps per head."""
    recipes: Sequence[HeadRecipe] = ABLATION
    """Heads to train and compare."""
    alarm_rule: AlarmRule | None = None
    """Alarm rule whose appearance channel discounts confidence; None: skip the discount."""
    members: Sequence[WorldModel] = ()
    """Further members of a deep ensemble; empty: skip the ensemble."""
    seed: int = 0
    cached: dict[tuple[str, int], tuple[Scores, float]] = field(default_factory=dict, repr=False)
    """Cached scores of signals shared by two methods."""

    @cached_property
    def data(self) -> BenchmarkData:
        """Data shared by all methods."""
        return self.gather()

    def methods(self) -> dict[str, Method]:
        """All methods by name."""
        methods: dict[str, Method] = {SHIPPED: self.shipped}
        for curve in ("isotonic", "platt", "beta", "temperature"):
            methods[f"{SHIPPED}, {curve}"] = partial(self.recalibrated, curve)
        if self.alarm_rule is not None:
            methods[f"{SHIPPED}, isotonic, familiar frames only"] = self.shown
        for recipe in self.recipes:
            methods[recipe.name] = partial(self.head, recipe)
        if self.alarm_rule is not None:
            methods[f"{OWN.name} + discount"] = self.discounted
        baselines: dict[str, Baseline] = dict(BASELINES)
        if self.members:
            baselines[f"ensemble of {1 + len(self.members)}"] = ensemble(self.members)
        for name, baseline in baselines.items():
            methods[name] = partial(self.baseline, name, baseline)
        return methods

    def shipped(self) -> MethodForecasts:
        """Confidence of the model's own head."""
        assert not self.model.states_confidence, "the network has no confidence head of its own"
        return self.by_head(self.model.confidence, event="rollout")

    def recalibrated(self, curve: str) -> MethodForecasts:
        """Own head, recalibrated on the nominal calibration episodes."""
        curves = fit_recalibration(self.data.calibrate.rollouts, method=curve)
        shipped = self.shipped()
        return MethodForecasts(
            {
                name: [recalibrated(rollout, curves) for rollout in group]
                for name, group in shipped.forecasts.items()
            },
            shipped.cost,
        )

    def shown(self) -> MethodForecasts:
        """Own head, recalibrated where a segment starts from a familiar frame, as in reports."""
        assert self.alarm_rule is not None, "`methods` includes this only with an alarm rule"
        curves, features = (
            fit_recalibration(self.data.calibrate.rollouts),
            FrameFeatures(self.model),
        )
        shipped = self.shipped()
        forecasts = {
            name: [
                recalibrated(
                    rollout,
                    curves,
                    familiar=looks_familiar(features, self.alarm_rule, episode, rollout),
                )
                for episode, rollout in zip(self.data.groups[name].episodes, group, strict=True)
            ]
            for name, group in shipped.forecasts.items()
        }
        return MethodForecasts(forecasts, shipped.cost)

    def gains(self, merged: Mapping[str, Sequence[str]]) -> dict[str, CopyGain]:
        """Gain of the pictures over copying the last frame, per group, merged ones included."""
        per_group = {
            name: copy_gains(self.model, group.episodes, group.rollouts, HORIZONS)
            for name, group in self.data.groups.items()
        }
        pooled = {name: np.concatenate([per_group[p] for p in ps]) for name, ps in merged.items()}
        return {name: CopyGain.of(gains) for name, gains in (per_group | pooled).items()}

    def head(self, recipe: HeadRecipe) -> MethodForecasts:
        """Head trained for this comparison."""
        head = train_head(self.model, recipe, self.data.banks, steps=self.steps, seed=self.seed)
        return self.by_head(head, event=recipe.event)

    def by_head(self, head: Any, *, event: str) -> MethodForecasts:
        """Confidence of a head on the stored features."""
        groups = self.data.groups
        started, frames, forecasts = time.process_time(), 0, {}
        for name, group in groups.items():
            forecasts[name] = restated(self.model, head, group.rollouts, event=event)
            frames += sum(int((rollout.horizon > 0).sum()) for rollout in group.rollouts)
        return MethodForecasts(forecasts, self.cost(time.process_time() - started, frames))

    def discounted(self) -> MethodForecasts:
        """Plain head, discounted where the last real frame is unfamiliar."""
        assert self.alarm_rule is not None, (
            "`methods` includes the discount only with an alarm rule"
        )
        head = train_head(self.model, OWN, self.data.banks, steps=self.steps, seed=self.seed)
        training = self.data.corrupted.joined(self.data.calibrate)
        discount = AppearanceDiscount(FrameFeatures(self.model), self.alarm_rule)
        discount.fit(training.episodes, restated(self.model, head, training.rollouts))
        started, frames, forecasts = time.process_time(), 0, {}
        for name, group in self.data.groups.items():
            plain = restated(self.model, head, group.rollouts)
            forecasts[name] = discount.discounted(group.episodes, plain)
            frames += sum(int((rollout.horizon > 0).sum()) for rollout in group.rollouts)
        return MethodForecasts(forecasts, self.cost(time.process_time() - started, frames))

    def baseline(self, name: str, baseline: Baseline) -> MethodForecasts:
        """Anomaly score, mapped to probabilities fitted on the nominal calibration episodes."""
        calibrate = self.data.calibrate
        fitted = fit_scores(calibrate.rollouts, self.scored(name, baseline, calibrate)[0])
        seconds, frames, forecasts, scores = 0.0, 0, {}, {}
        for kind, group in self.data.groups.items():
            scores[kind], score_seconds = self.scored(name, baseline, group)
            forecasts[kind] = with_confidence(group.rollouts, scores[kind], fitted)
            seconds += score_seconds
            frames += sum(int((rollout.horizon > 0).sum()) for rollout in group.rollouts)
        return MethodForecasts(forecasts, self.cost(seconds, frames), scores)

    def scored(self, name: str, baseline: Baseline, group: RolledEpisodes) -> tuple[Scores, float]:
        """Score of every imagined subpatch, and the CPU seconds it took.

        A signal divided by motion reuses the scores of the plain signal.
        """
        plain = name.removesuffix(OVER_MOTION)
        key = (plain, id(group))
        if key not in self.cached:
            batches = [episode.batch for episode in group.episodes]
            started = time.process_time()
            score = BASELINES.get(plain, baseline).score
            scores = score(self.model, batches, group.rollouts, seed=self.seed)
            self.cached[key] = scores, time.process_time() - started
        scores, seconds = self.cached[key]
        return (scores if plain == name else divided_by_motion(scores, group.rollouts)), seconds

    def cost(self, seconds: float, num_frames: int) -> float:
        """CPU time of rollout and confidence, relative to the rollout alone."""
        return 1 + seconds / (num_frames * self.data.seconds_per_frame)


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """Results of one method on every group."""

    method: str
    cost: float
    rows: Sequence[CalibrationRow]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; undefined numbers become null."""
        return _finite(asdict(self))

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> MethodResult:
        """Inverse of `as_dict`."""
        rows = [
            CalibrationRow(**{name: _figure(value) for name, value in row.items()})
            for row in stored["rows"]
        ]
        return cls(method=stored["method"], cost=stored["cost"], rows=rows)


def run(
    comparisons: Sequence[Comparison],
    merged: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    only: Sequence[str] = (),
) -> list[MethodResult]:
    """Evaluate every method that has no result in `folder` yet.

    Args:
        comparisons: One per model; their forecasts are pooled.
        merged: Further groups: name -> names of the groups to merge.
        folder: Results, one file per finished method.
        only: Evaluate only methods whose name contains one of these; empty: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [n for n in comparisons[0].methods() if not only or any(part in n for part in only)]
    results = []
    for number, name in enumerate(tqdm(names, "methods")):
        file = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"
        if not file.is_file():
            pooled = pool_forecasts([c.methods()[name]() for c in comparisons])
            result = evaluate_method(name, pooled, merged, seed=comparisons[0].seed + number)
            unfinished = file.with_suffix(".partial")
            unfinished.write_text(json.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")
            unfinished.replace(file)
        results.append(MethodResult.from_dict(json.loads(file.read_text(encoding="utf-8"))))
    return results


def pool_forecasts(parts: Sequence[MethodForecasts]) -> MethodForecasts:
    """Pool the forecasts of one method over several models."""

    def joined(column: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
        return {name: [item for part in column for item in part[name]] for name in column[0]}

    return MethodForecasts(
        joined([part.forecasts for part in parts]),
        sum(part.cost for part in parts) / len(parts),
        joined([part.scores for part in parts]),
    )


def evaluate_method(
    name: str, method: MethodForecasts, merged: Mapping[str, Sequence[str]], *, seed: int
) -> MethodResult:
    """Measure a method on every group and on merged groups."""
    groups = {group: (group,) for group in method.forecasts} | dict(merged)
    rows = []
    for group, parts in groups.items():
        forecasts = [rollout for part in parts for rollout in method.forecasts[part]]
        scores = (
            [score for part in parts for score in method.scores[part]] if method.scores else None
        )
        rows.append(measure(forecasts, method=name, group=group, scores=scores, seed=seed))
    return MethodResult(method=name, cost=method.cost, rows=rows)


def _finite(value: Any) -> Any:
    """Replace NaN by None in nested JSON values."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _figure(value: Any) -> Any:
    """`IntervalEstimate` from its stored numbers; other values unchanged."""
    if not isinstance(value, dict):
        return value
    return IntervalEstimate(
        **{name: math.nan if part is None else part for name, part in value.items()}
    )
