"""Lower the confidence of rollouts that start from frames unlike the training frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.calibration.features import FrameFeatures
from worldmodel.episodes.episode import Episode
from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.monitors.errors import require_fitted
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts

EXPONENTS = (0.0, 0.03, 0.1, 0.3, 1.0)
"""Candidate strengths."""


class AppearanceDiscount:
    """P(error <= ε) to the power 1 + a x (frame novelty) + b x (position novelty).

    Novelty is the relative excess of a score of the monitor's appearance channel, for the last real
    frame, over the usual maximum of an episode. `fit` chooses the strengths a and b by the lowest
    Brier score; its episodes must include unfamiliar ones.
    """

    def __init__(self, features: FrameFeatures, alarm_rule: AlarmRule) -> None:
        self.features, self.alarm_rule = features, alarm_rule

    def novelty(
        self, episode: Episode, rollout: EpisodeRollouts
    ) -> tuple[Float[Tensor, "time 1 1 1 1"], Float[Tensor, "time view 1 h w"]]:
        """Novelty of the last real frame before each frame: of the whole and per position."""
        channel = self.alarm_rule.channels_.appearance
        assert channel is not None, "the monitor was fitted with features of frames"
        last = np.arange(len(rollout.horizon)) - rollout.horizon
        starts, index = np.unique(last, return_inverse=True)
        pooled, positions = self.features.of_episode(episode.frames[torch.from_numpy(starts)])
        whole = self._excess("appearance", channel.score(pooled))[index]
        parts = self._excess("region", channel.position_scores(positions))[index]
        return whole[:, None, None, None, None], parts[:, :, None]

    def _excess(self, name: str, score: Float[np.ndarray, "*any"]) -> Float[Tensor, "*any"]:
        usual = self.alarm_rule.scales_[name].centre
        return torch.from_numpy((score / usual - 1).clip(0)).float()

    def fit(
        self, episodes: Sequence[Episode], rollouts: Sequence[EpisodeRollouts]
    ) -> AppearanceDiscount:
        """Choose the strengths with the lowest Brier score."""
        excess = [self.novelty(e, r) for e, r in zip(episodes, rollouts, strict=True)]
        levels = torch.tensor(EPSILONS)

        def brier(strengths: tuple[float, float]) -> float:
            total = 0.0
            for (whole, parts), rollout in zip(excess, rollouts, strict=True):
                rows = torch.from_numpy(rollout.horizon > 0)
                power = 1 + strengths[0] * whole[rows] + strengths[1] * parts[rows]
                confidence = rollout.confidence[rows].float() ** power[..., None]
                correct = rollout.error[rows][..., None] <= levels
                total += float((confidence - correct.float()).square().mean())
            return total

        self.strengths_ = min(product(EXPONENTS, EXPONENTS), key=brier)
        return self

    def discounted(
        self, episodes: Sequence[Episode], rollouts: Sequence[EpisodeRollouts]
    ) -> list[EpisodeRollouts]:
        """Rollouts with lowered confidence; real frames keep theirs."""
        require_fitted(self, "strengths_")
        results = []
        for episode, rollout in zip(episodes, rollouts, strict=True):
            whole, parts = self.novelty(episode, rollout)
            power = 1 + self.strengths_[0] * whole + self.strengths_[1] * parts
            lowered = (rollout.confidence.float() ** power[..., None]).to(rollout.confidence.dtype)
            results.append(replace(rollout, confidence=lowered))
        return results
