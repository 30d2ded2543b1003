"""Reliability of the stated confidence of rollouts, by horizon and error level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmodel.monitors.reliability.counts import CalibrationSummary, Reliability, summarize
from worldmodel.monitors.reliability.measures import ReliabilityBins
from worldmodel.networks.confidence_heads import EPSILONS


@runtime_checkable
class Forecasts(Protocol):
    """Stated confidence and true error of every frame of an episode."""

    @property
    def confidence(self) -> Float[Tensor, "time view channel h w levels"]: ...

    @property
    def error(self) -> Float[Tensor, "time view channel h w"]: ...

    @property
    def horizon(self) -> Int[np.ndarray, " time"]: ...

    @property
    def view_valid(self) -> Bool[Tensor, "time view"] | None: ...


def count_reliability(
    rollouts: Sequence[Forecasts],
    *,
    names: Sequence[str],
    horizons: Sequence[int],
    num_bins: int = 15,
) -> Reliability:
    """Count stated confidence against outcomes, at some horizons of every rollout.

    Cameras are named by view index: "0", "1", ...
    """
    views = max((rollout.confidence.shape[1] for rollout in rollouts), default=1)
    cameras = [str(view) for view in range(views)]
    reliability = Reliability(
        epsilons=EPSILONS, horizons=horizons, cameras=cameras, num_bins=num_bins
    )
    levels = np.array(EPSILONS)
    for name, rollout in zip(names, rollouts, strict=True):
        confidence, error = rollout.confidence, rollout.error.numpy()
        for t in np.flatnonzero(np.isin(rollout.horizon, horizons)):
            horizon = int(rollout.horizon[t])
            for view, camera in enumerate(cameras):
                missing = rollout.view_valid is not None and not rollout.view_valid[t, view]
                valid = slice(0) if missing else slice(None)
                stated = confidence[t, view, valid].float().numpy().reshape(-1, len(levels)).T
                correct = error[t, view, valid].reshape(1, -1) <= levels[:, None]
                reliability.update(stated, correct, episode=name, horizon=horizon, camera=camera)
    return reliability


HORIZONS = (1, 4, 8, 16)
"""Horizons, in frames, at which calibration is reported."""


def calibration_table(
    rollouts: Sequence[Forecasts], *, horizons: Sequence[int] = HORIZONS, seed: int = 0
) -> dict[int, CalibrationSummary]:
    """Horizon -> calibration of the confidence over all error levels.

    Horizons that no rollout reaches are left out. `seed` draws the bootstrap resamples.
    """
    names = [str(number) for number in range(len(rollouts))]
    reliability = count_reliability(rollouts, names=names, horizons=horizons)
    table = {}
    for horizon in horizons:
        if not any(horizon in rollout.horizon for rollout in rollouts):
            continue
        sums = reliability.episode_bins(horizon=horizon).sums
        reached = ReliabilityBins(sums[sums[:, 0].sum(axis=-1) > 0])
        table[horizon] = summarize(reached, rng=np.random.default_rng(seed))
    return table
