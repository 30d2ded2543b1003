"""Every way to state confidence on the same imagined episodes: heads, losses, events, baselines.

Heads learn from rollouts over episodes of their own; curves that turn a baseline's score into
probabilities, and recalibration, from further nominal ones; everything is judged on others again.
Nothing is fitted to a shifted episode.
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

from tqdm import tqdm

from benchmarks.calibration.appearance_discount import AppearanceDiscount
from benchmarks.calibration.baselines import BASELINES, Baseline, divided_by_motion, ensemble
from benchmarks.calibration.episodes import BenchmarkData, RolledEpisodes
from benchmarks.calibration.heads import ABLATION, HeadRecipe, restated, train_head
from benchmarks.calibration.measures import CalibrationRow, Estimate, measure
from benchmarks.calibration.rescore import Scores
from benchmarks.calibration.score_curves import fit_scores, with_confidence
from worldmodel.calibration.features import FrameFeatures
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.rollouts.open_loop import EpisodeRollouts
from worldmodel.rollouts.recalibrate import fit_recalibration, recalibrated

SHIPPED = "the model's own head"
OWN = HeadRecipe()
"""What the discount is tried on."""
OVER_MOTION = " / motion"
"""How the names of signals end that are divided by motion."""


@dataclass(frozen=True)
class MethodForecasts:
    """What one method said of every group of episodes, and what it took."""

    forecasts: Mapping[str, Sequence[EpisodeRollouts]]
    cost: float
    """CPU seconds of rollout and statement, per CPU second of the rollout alone."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """What π and AUSE rank by; empty: the confidence."""


Method = Callable[[], MethodForecasts]


@dataclass(frozen=True)
class Comparison:
    """One model and the episodes its confidence is judged on."""

    model: WorldModel
    gather: Callable[[], BenchmarkData]
    """Makes what is compared on, when it is needed for the first time."""
    steps: int
    """Training steps of every compared head."""
    recipes: Sequence[HeadRecipe] = ABLATION
    """Heads that are trained and compared."""
    alarm_rule: AlarmRule | None = None
    """Whose appearance channel discounts confidence; None: that is left out."""
    members: Sequence[WorldModel] = ()
    """Further members of a deep ensemble; none: that is left out."""
    seed: int = 0
    kept: dict[tuple[str, int], tuple[Scores, float]] = field(default_factory=dict, repr=False)
    """Scores of signals that two methods share."""

    @cached_property
    def materials(self) -> BenchmarkData:
        """What everything is compared on."""
        return self.gather()

    def methods(self) -> dict[str, Method]:
        """Name -> what states confidence that way."""
        methods: dict[str, Method] = {SHIPPED: self.shipped}
        for curve in ("isotonic", "platt", "beta", "temperature"):
            methods[f"{SHIPPED}, {curve}"] = partial(self.recalibrated, curve)
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
        """As the model's own head states it."""
        assert not self.model.states_confidence, "our own heads are compared"
        return self.by_head(self.model.confidence, event="rollout")

    def recalibrated(self, curve: str) -> MethodForecasts:
        """The same through curves fitted on the nominal calibration episodes."""
        curves = fit_recalibration(self.materials.calibrate.rollouts, method=curve)
        stated = self.shipped()
        return MethodForecasts(
            {
                name: [recalibrated(rollout, curves) for rollout in group]
                for name, group in stated.forecasts.items()
            },
            stated.cost,
        )

    def head(self, recipe: HeadRecipe) -> MethodForecasts:
        """A head trained for the comparison."""
        head = train_head(
            self.model, recipe, self.materials.banks, steps=self.steps, seed=self.seed
        )
        return self.by_head(head, event=recipe.event)

    def by_head(self, head: Any, *, event: str) -> MethodForecasts:
        """What a head says of the features kept."""
        groups = self.materials.groups
        began, frames, forecasts = time.process_time(), 0, {}
        for name, group in groups.items():
            forecasts[name] = restated(self.model, head, group.rollouts, event=event)
            frames += sum(int((rollout.horizon > 0).sum()) for rollout in group.rollouts)
        return MethodForecasts(forecasts, self.cost(time.process_time() - began, frames))

    def discounted(self) -> MethodForecasts:
        """The plain head, discounted where the last real frame is unfamiliar."""
        assert self.alarm_rule is not None, "asked for with a judge only"
        head = train_head(self.model, OWN, self.materials.banks, steps=self.steps, seed=self.seed)
        learn = self.materials.corrupted.joined(self.materials.calibrate)
        discount = AppearanceDiscount(FrameFeatures(self.model), self.alarm_rule)
        discount.fit(learn.episodes, restated(self.model, head, learn.rollouts))
        began, frames, forecasts = time.process_time(), 0, {}
        for name, group in self.materials.groups.items():
            stated = restated(self.model, head, group.rollouts)
            forecasts[name] = discount.discounted(group.episodes, stated)
            frames += sum(int((rollout.horizon > 0).sum()) for rollout in group.rollouts)
        return MethodForecasts(forecasts, self.cost(time.process_time() - began, frames))

    def baseline(self, name: str, baseline: Baseline) -> MethodForecasts:
        """A surprise score, through curves fitted on the nominal calibration episodes."""
        calibrate = self.materials.calibrate
        fitted = fit_scores(calibrate.rollouts, self.scored(name, baseline, calibrate)[0])
        seconds, frames, forecasts, scores = 0.0, 0, {}, {}
        for kind, group in self.materials.groups.items():
            scores[kind], taken = self.scored(name, baseline, group)
            forecasts[kind] = with_confidence(group.rollouts, scores[kind], fitted)
            seconds += taken
            frames += sum(int((rollout.horizon > 0).sum()) for rollout in group.rollouts)
        return MethodForecasts(forecasts, self.cost(seconds, frames), scores)

    def scored(self, name: str, baseline: Baseline, group: RolledEpisodes) -> tuple[Scores, float]:
        """A baseline's score of every imagined subpatch, and the CPU seconds it took.

        A signal over motion shares the scores of the plain signal.
        """
        plain = name.removesuffix(OVER_MOTION)
        key = (plain, id(group))
        if key not in self.kept:
            batches = [episode.batch for episode in group.episodes]
            began = time.process_time()
            score = BASELINES.get(plain, baseline).score
            scores = score(self.model, batches, group.rollouts, seed=self.seed)
            self.kept[key] = scores, time.process_time() - began
        scores, taken = self.kept[key]
        return (scores if plain == name else divided_by_motion(scores, group.rollouts)), taken

    def cost(self, seconds: float, num_frames: int) -> float:
        """CPU seconds of rollout and statement, per CPU second of the rollout alone."""
        return 1 + seconds / (num_frames * self.materials.seconds_per_frame)


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method on every group."""

    method: str
    cost: float
    rows: Sequence[CalibrationRow]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are undefined become null."""
        return _finite(asdict(self))

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> MethodResult:
        """The inverse of `as_dict`."""
        rows = [
            CalibrationRow(**{name: _figure(value) for name, value in row.items()})
            for row in stored["rows"]
        ]
        return cls(method=stored["method"], cost=stored["cost"], rows=rows)


def run(
    benches: Sequence[Comparison],
    merged: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    only: Sequence[str] = (),
) -> list[MethodResult]:
    """Judge every method that `folder` holds no result of yet.

    Args:
        benches: Models whose episodes are judged together, each on its own.
        merged: Further groups: name -> names of the groups they are made of.
        folder: Of the results, one file per method, written when it is done.
        only: Judge only methods whose name contains one of these; none: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [n for n in benches[0].methods() if not only or any(part in n for part in only)]
    results = []
    for number, name in enumerate(tqdm(names, "methods")):
        file = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"
        if not file.is_file():
            stated = together([bench.methods()[name]() for bench in benches])
            result = alarm_rule(name, stated, merged, seed=benches[0].seed + number)
            unfinished = file.with_suffix(".partial")
            unfinished.write_text(json.dumps(result.as_dict(), indent=1) + "\n")
            unfinished.replace(file)
        results.append(MethodResult.from_dict(json.loads(file.read_text())))
    return results


def together(parts: Sequence[MethodForecasts]) -> MethodForecasts:
    """What the same method said for several models."""

    def joined(column: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
        return {name: [item for part in column for item in part[name]] for name in column[0]}

    return MethodForecasts(
        joined([part.forecasts for part in parts]),
        sum(part.cost for part in parts) / len(parts),
        joined([part.scores for part in parts]),
    )


def alarm_rule(
    name: str, stated: MethodForecasts, merged: Mapping[str, Sequence[str]], *, seed: int
) -> MethodResult:
    """Measure what a method said of every group, and of groups taken together."""
    groups = {group: (group,) for group in stated.forecasts} | dict(merged)
    rows = []
    for group, parts in groups.items():
        forecasts = [rollout for part in parts for rollout in stated.forecasts[part]]
        scores = (
            [score for part in parts for score in stated.scores[part]] if stated.scores else None
        )
        rows.append(measure(forecasts, method=name, group=group, scores=scores, seed=seed))
    return MethodResult(method=name, cost=stated.cost, rows=rows)


def _finite(value: Any) -> Any:
    """Plain JSON values with null in place of NaN."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _figure(value: Any) -> Any:
    """A figure from its stored numbers; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return Estimate(**{name: math.nan if part is None else part for name, part in value.items()})
