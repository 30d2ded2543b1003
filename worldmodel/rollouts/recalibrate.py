"""Recalibration of the confidence of rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int

from worldmodel.monitors.reliability.counts import Reliability
from worldmodel.monitors.reliability.recalibration import CameraRecalibration, HorizonRecalibration
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts
from worldmodel.rollouts.reliability import count_reliability

Curves = HorizonRecalibration | CameraRecalibration
"""Recalibration curves of a model with one camera, or with several, named by view index."""


def restored_curves(arrays: Mapping[str, np.ndarray]) -> Curves:
    """Curves from their arrays; with several cameras, the array names contain ":"."""
    is_multi_camera = any(":" in name for name in arrays)
    return (CameraRecalibration if is_multi_camera else HorizonRecalibration).from_arrays(arrays)


def recalibrated(
    rollouts: EpisodeRollouts,
    curves: Curves,
    *,
    familiar: Bool[np.ndarray, " time"] | None = None,
) -> EpisodeRollouts:
    """The rollouts with recalibrated confidence; frames that were not imagined keep theirs.

    With `familiar`, only frames whose segment starts from a familiar real frame change: the curves
    are those of nominal episodes, and elsewhere they make the confidence worse.
    """
    confidence = rollouts.confidence.clone()
    chosen = rollouts.horizon > 0
    if familiar is not None:
        chosen &= familiar[start_frames(rollouts)]
    for horizon in np.unique(rollouts.horizon[chosen]):
        rows = torch.from_numpy(chosen & (rollouts.horizon == horizon))
        stated = rearrange(confidence[rows].float().numpy(), "t v ... level -> v level t ...")
        views = [_predict(curves, view, n, int(horizon)) for n, view in enumerate(stated)]
        mapped = rearrange(np.stack(views), "v level t ... -> t v ... level")
        confidence[rows] = torch.from_numpy(mapped).to(confidence.dtype)
    return replace(rollouts, confidence=confidence)


def start_frames(rollouts: EpisodeRollouts) -> Int[np.ndarray, " time"]:
    """Index of the last real frame before each frame's segment; the frame itself if it is real."""
    return np.arange(len(rollouts.horizon)) - rollouts.horizon


def _predict(
    curves: Curves, confidence: Float[np.ndarray, " level *any"], view: int, horizon: int
) -> Float64[np.ndarray, " level *any"]:
    if isinstance(curves, CameraRecalibration):
        return curves.predict(confidence, horizon=horizon, camera=str(view))
    return curves.predict(confidence, horizon=horizon)


def count_all(rollouts: Sequence[EpisodeRollouts], *, num_bins: int) -> Reliability:
    """`count_reliability` at every horizon that the rollouts reach."""
    horizons = np.unique(np.concatenate([r.horizon[r.horizon > 0] for r in rollouts])).tolist()
    names = [str(number) for number in range(len(rollouts))]
    return count_reliability(rollouts, names=names, horizons=horizons, num_bins=num_bins)


def fit_recalibration(rollouts: Sequence[EpisodeRollouts], *, method: str = "isotonic") -> Curves:
    """Fit recalibration curves to nominal rollouts, per camera if there are several."""
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
    """Cross-fitted recalibration: each half of the episodes is recalibrated on the other half.

    Raises:
        ValueError: There is only one episode.
    """
    if len(rollouts) < 2:
        raise ValueError(
            "`rollouts` needs at least 2 episodes: each half is recalibrated on the other."
        )
    curves = [fit_recalibration(rollouts[1 - half :: 2], method=method) for half in (0, 1)]
    return [recalibrated(rollout, curves[i % 2]) for i, rollout in enumerate(rollouts)]
