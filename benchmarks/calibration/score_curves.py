"""From a surprise score to the probability that an error stays below a bound."""

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
"""Groups of equally many scores, in each of which the error is looked at."""


class ScoreConfidence:
    """P(error <= ε) from a surprise score, by one isotonic curve per ε and band of horizons.

    Only the order of scores within a band counts: the units of a score do not matter. Confidence
    falls with the score and rises with ε. Bands are those of `HorizonRecalibration`.
    """

    def __init__(self, epsilons: Sequence[float] = EPSILONS) -> None:
        self.epsilons = tuple(epsilons)

    def fit(
        self,
        scores: Float[np.ndarray, " n"],
        errors: Float[np.ndarray, " n"],
        horizons: Int[np.ndarray, " n"],
    ) -> ScoreConfidence:
        """Learn from subpatches of nominal episodes the model was not trained on.

        Raises:
            ValueError: no subpatch, a score that is no number, or a horizon below 1.
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
            plain = unsurprising(scores[of_band], knots)
            self.knots_.append(knots)
            self.curves_.append(
                [IsotonicRecalibration().fit(plain, errors[of_band] <= e) for e in self.epsilons]
            )
        return self

    def predict(
        self, scores: Float[np.ndarray, "*any"], *, horizon: int
    ) -> Float64[np.ndarray, "*any levels"]:
        """Confidence for every ε, `horizon` frames after the last real one."""
        require_fitted(self, "curves_")
        band = min(bisect_left(self.bands_, horizon), len(self.bands_) - 1)
        plain = unsurprising(scores, self.knots_[band])
        stated = np.stack([curve.predict(plain) for curve in self.curves_[band]], axis=-1)
        return np.maximum.accumulate(stated, axis=-1)  # rises already, but for rounding


def unsurprising(
    scores: Float[np.ndarray, "*any"], knots: Float[np.ndarray, " knots"]
) -> Float64[np.ndarray, "*any"]:
    """Share of `knots` that lie above each score: 1 for the least surprising.

    >>> unsurprising(np.array([0.0, 0.5, 9.0]), np.array([0.2, 0.8]))
    array([1. , 0.5, 0. ])
    """
    return 1 - np.searchsorted(knots, scores) / len(knots)


def fit_scores(rollouts: Sequence[EpisodeRollouts], scores: Scores) -> ScoreConfidence:
    """Learn from every subpatch that was imagined and is there to compare with."""
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
    """The same rollouts, their confidence from scores; full where nothing was imagined."""
    stated = []
    for rollout, score in zip(rollouts, scores, strict=True):
        confidence = torch.ones_like(rollout.confidence)
        for horizon in np.unique(rollout.horizon[rollout.horizon > 0]):
            rows = torch.from_numpy(rollout.horizon == horizon)
            made = fitted.predict(score[rows].numpy(), horizon=int(horizon))
            confidence[rows] = torch.from_numpy(made).to(confidence.dtype)
        if rollout.view_valid is not None:
            confidence[~rollout.view_valid] = 1.0
        stated.append(replace(rollout, confidence=confidence))
    return stated
