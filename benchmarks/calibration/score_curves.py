"""Map an anomaly score to the probability that an error stays below a threshold."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int

from benchmarks.calibration.rescore import Scores
from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.reliability.recalibration import BANDS, IsotonicRecalibration
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts

NUM_RANKS = 400
"""Quantile bins of scores per horizon band."""


class ScoreConfidence:
    """P(error <= ε) from an anomaly score, by one isotonic curve per ε and horizon band.

    Only the rank of a score within its band matters, not its unit. Confidence decreases with the
    score and increases with ε. Bands are those of `HorizonRecalibration`.
    """

    def __init__(self, epsilons: Sequence[float] = EPSILONS) -> None:
        self.epsilons = tuple(epsilons)

    def fit(
        self,
        scores: Float[np.ndarray, " n"],
        errors: Float[np.ndarray, " n"],
        horizons: Int[np.ndarray, " n"],
    ) -> ScoreConfidence:
        """Fit to subpatches of nominal episodes that the model was not trained on.

        Raises:
            ValueError: no subpatch, a score that is not finite, or a horizon below 1.
        """
        if not len(scores) or not np.isfinite(scores).all():
            raise ValueError("`scores` must be finite numbers, at least one.")
        if horizons.min() < 1:
            raise ValueError(f"`horizons` must be at least 1, got {horizons.min()}.")
        band = np.minimum(np.searchsorted(BANDS, horizons), len(BANDS) - 1)
        self.bands_ = tuple(BANDS[number] for number in np.unique(band))
        self.knots_, self.curves_ = [], []
        for number in np.unique(band):
            of_band = band == number
            shares = np.linspace(0, 1, NUM_RANKS + 1)[1:-1]
            knots = np.unique(np.quantile(scores[of_band], shares))
            rank = rank_score(scores[of_band], knots)
            self.knots_.append(knots)
            self.curves_.append(
                [IsotonicRecalibration().fit(rank, errors[of_band] <= e) for e in self.epsilons]
            )
        return self

    def predict(
        self, scores: Float[np.ndarray, "*any"], *, horizon: int
    ) -> Float64[np.ndarray, "*any levels"]:
        """Confidence for every ε at a horizon."""
        require_fitted(self, "curves_")
        band = min(bisect_left(self.bands_, horizon), len(self.bands_) - 1)
        rank = rank_score(scores, self.knots_[band])
        confidence = np.stack([curve.predict(rank) for curve in self.curves_[band]], axis=-1)
        return np.maximum.accumulate(confidence, axis=-1)  # rounding can break monotonicity


def rank_score(
    scores: Float[np.ndarray, "*any"], knots: Float[np.ndarray, " knots"]
) -> Float64[np.ndarray, "*any"]:
    """Share of `knots` above each score: 1 for the least surprising.

    >>> rank_score(np.array([0.0, 0.5, 9.0]), np.array([0.2, 0.8]))
    array([1. , 0.5, 0. ])
    """
    return 1 - np.searchsorted(knots, scores) / len(knots)


def fit_scores(rollouts: Sequence[EpisodeRollouts], scores: Scores) -> ScoreConfidence:
    """Fit to every imagined subpatch of a valid view."""
    parts = []
    for rollout, score in zip(rollouts, scores, strict=True):
        horizon = torch.from_numpy(rollout.horizon)[:, None, None, None, None]
        counted = (horizon > 0).expand(score.shape)
        if rollout.view_valid is not None:
            counted = counted & rollout.view_valid[..., None, None, None]
        flat = (score[counted], rollout.error[counted], horizon.expand(score.shape)[counted])
        parts.append([values.numpy() for values in flat])
    return ScoreConfidence().fit(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def with_confidence(
    rollouts: Sequence[EpisodeRollouts], scores: Scores, fitted: ScoreConfidence
) -> list[EpisodeRollouts]:
    """Rollouts with confidence from scores; 1 at real frames."""
    results = []
    for rollout, score in zip(rollouts, scores, strict=True):
        confidence = torch.ones_like(rollout.confidence)
        for horizon in np.unique(rollout.horizon[rollout.horizon > 0]):
            rows = torch.from_numpy(rollout.horizon == horizon)
            values = fitted.predict(score[rows].numpy(), horizon=int(horizon))
            confidence[rows] = torch.from_numpy(values).to(confidence.dtype)
        if rollout.view_valid is not None:
            confidence[~rollout.view_valid] = 1.0
        results.append(replace(rollout, confidence=confidence))
    return results
