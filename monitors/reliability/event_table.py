"""Calibration table of event forecasts: regions, frames and rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from worldmodel.monitors.reliability.counts import CalibrationSummary, Reliability, summarize
from worldmodel.monitors.reliability.events import (
    Forecast,
    Horizons,
    LevelMaps,
    Mask,
    Probabilities,
    random_boxes,
    region_mean,
    rollout_max,
    whole_frame,
)

STEPS = (4, 8, 16)
"""Rollout lengths that are reported, in steps."""


@runtime_checkable
class Forecaster(Protocol):
    """Forecasts P(error <= ε) of events, like `EventConfidence`."""

    epsilons: tuple[float, ...]

    def region(self, confidence: LevelMaps, horizon: Horizons, mask: Mask) -> Probabilities: ...

    def frame(
        self, confidence: LevelMaps, horizon: Horizons, view_valid: Any = None
    ) -> Probabilities: ...

    def rollout(
        self, confidence: LevelMaps, horizon: Horizons, view_valid: Any = None
    ) -> Probabilities: ...


class SubpatchMeans:
    """Baseline: an event's confidence is the mean over its subpatches."""

    def __init__(self, epsilons: Sequence[float]) -> None:
        self.epsilons = tuple(epsilons)

    def region(self, confidence: LevelMaps, horizon: Horizons, mask: Mask) -> Probabilities:
        """Mean over the positions in `mask`, per frame."""
        return region_mean(confidence, mask)

    def frame(
        self, confidence: LevelMaps, horizon: Horizons, view_valid: Any = None
    ) -> Probabilities:
        """Mean over the whole frame."""
        return region_mean(confidence, whole_frame(confidence.shape, view_valid))

    def rollout(
        self, confidence: LevelMaps, horizon: Horizons, view_valid: Any = None
    ) -> Probabilities:
        """Mean over all frames of a rollout up to this one."""
        means = self.frame(confidence, horizon, view_valid)
        for t in range(1, len(means)):
            if horizon[t] > 1:
                means[t] += (means[t - 1] - means[t]) * (1 - 1 / horizon[t])
        return means


def evaluate_events(
    forecaster: Forecaster,
    forecasts: Mapping[str, Forecast],
    *,
    rng: np.random.Generator,
    steps: Sequence[int] = STEPS,
) -> dict[str, CalibrationSummary]:
    """Kind of event -> row of the calibration table, pooled over ε and horizons.

    Args:
        forecaster: Fitted on other episodes.
        forecasts: Test episodes by name.
        rng: Draws one box of each size per frame, and the bootstrap resamples.
        steps: Rollout lengths to report; lengths that no rollout reaches are left out.
    """
    counted: dict[str, Reliability] = {}
    for episode, forecast in forecasts.items():
        for event, stated, true in _outcomes(forecaster, forecast, rng, steps):
            if len(stated):
                reliability = counted.setdefault(event, Reliability(epsilons=forecaster.epsilons))
                reliability.update(stated.T, true.T, episode=episode)
    return {
        event: summarize(reliability.episode_bins(), rng=rng)
        for event, reliability in counted.items()
    }


def _outcomes(
    forecaster: Forecaster, forecast: Forecast, rng: np.random.Generator, steps: Sequence[int]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield event, forecast probabilities and outcomes, [n, level] each."""
    confidence = np.asarray(forecast.confidence, dtype=np.float32)
    error, horizon = np.asarray(forecast.error, dtype=np.float32), np.asarray(forecast.horizon)
    view_valid = None if forecast.view_valid is None else np.asarray(forecast.view_valid)
    frame, epsilons = whole_frame(error.shape, view_valid), np.array(forecaster.epsilons)

    def kept(stated: np.ndarray, actual: np.ndarray, rows: np.ndarray) -> tuple[Any, Any]:
        rows = rows & ~np.isnan(actual)
        return stated[rows], actual[rows, None] <= epsilons

    height, width = error.shape[-2:]
    for shape in dict.fromkeys([(2, 2), (4, 4), (height, (width + 1) // 2)]):
        if shape[0] <= height and shape[1] <= width:
            mask = random_boxes(rng, [shape], frame)
            stated = forecaster.region(confidence, horizon, mask)
            yield (
                "region {}x{}".format(*shape),
                *kept(stated, region_mean(error, mask), horizon > 0),
            )
    actual = region_mean(error, frame)
    yield "frame", *kept(forecaster.frame(confidence, horizon, view_valid), actual, horizon > 0)
    stated, actual = (
        forecaster.rollout(confidence, horizon, view_valid),
        rollout_max(actual, horizon),
    )
    for count in steps:
        yield f"rollout of {count}", *kept(stated, actual, horizon == count)
