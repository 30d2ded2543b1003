"""Recalibration of the confidence of rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float64

from worldmodel.monitors.reliability.counts import Reliability
from worldmodel.monitors.reliability.recalibration import CameraRecalibration, HorizonRecalibration
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts
from worldmodel.rollouts.reliability import count_reliability

Curves = HorizonRecalibration | CameraRecalibration
"""Of a model with one camera, and with several, which go by their place in the view axis."""


def restored_curves(arrays: Mapping[str, np.ndarray]) -> Curves:
    """The inverse of `arrays` of either kind: those of several cameras have ":" in their names."""
    several = any(":" in name for name in arrays)
    return (CameraRecalibration if several else HorizonRecalibration).from_arrays(arrays)


def recalibrated(rollouts: EpisodeRollouts, curves: Curves) -> EpisodeRollouts:
    """The same rollouts with recalibrated confidence; frames that were not imagined keep theirs."""
    confidence = rollouts.confidence.clone()
    for horizon in np.unique(rollouts.horizon[rollouts.horizon > 0]):
        rows = torch.from_numpy(rollouts.horizon == horizon)
        stated = rearrange(confidence[rows].float().numpy(), "t v ... level -> v level t ...")
        curved = [_predict(curves, view, n, int(horizon)) for n, view in enumerate(stated)]
        mended = rearrange(np.stack(curved), "v level t ... -> t v ... level")
        confidence[rows] = torch.from_numpy(mended).to(confidence.dtype)
    return replace(rollouts, confidence=confidence)


def _predict(
    curves: Curves, confidence: Float[np.ndarray, " level *any"], view: int, horizon: int
) -> Float64[np.ndarray, " level *any"]:
    if isinstance(curves, CameraRecalibration):
        return curves.predict(confidence, horizon=horizon, camera=str(view))
    return curves.predict(confidence, horizon=horizon)


def count_all(rollouts: Sequence[EpisodeRollouts], *, num_bins: int) -> Reliability:
    """`count_reliability` at every horizon that was reached."""
    horizons = np.unique(np.concatenate([r.horizon[r.horizon > 0] for r in rollouts])).tolist()
    names = [str(number) for number in range(len(rollouts))]
    return count_reliability(rollouts, names=names, horizons=horizons, num_bins=num_bins)


def fit_recalibration(rollouts: Sequence[EpisodeRollouts], *, method: str = "isotonic") -> Curves:
    """Curves of nominal rollouts, of the kind that `method` names; of each camera if several."""
    reliability = count_all(rollouts, num_bins=200)
    if len(reliability.cameras) > 1:
        return CameraRecalibration(EPSILONS, method=method).fit(reliability)
    bins = {
        horizon: [reliability.bins(epsilon=epsilon, horizon=horizon) for epsilon in EPSILONS]
        for horizon in reliability.horizons
    }
    return HorizonRecalibration(EPSILONS, method=method).fit(bins)


def cross_fitted(
    rollouts: Sequence[EpisodeRollouts], *, method: str = "isotonic"
) -> list[EpisodeRollouts]:
    """Every rollout, recalibrated by curves fitted on the other half of the episodes.

    Raises:
        ValueError: if there is only one.
    """
    if len(rollouts) < 2:
        raise ValueError("`rollouts` needs at least 2 episodes: one half recalibrates the other.")
    curves = [fit_recalibration(rollouts[1 - half :: 2], method=method) for half in (0, 1)]
    return [recalibrated(rollout, curves[i % 2]) for i, rollout in enumerate(rollouts)]
