"""Confidence lowered where the frame a rollout starts from looks unlike those of training."""

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
"""Strengths that are tried."""


class AppearanceDiscount:
    """P(error <= ε) to the power 1 + a x (unfamiliar frame) + b x (unfamiliar position).

    Unfamiliar is by how much a score of the monitor's appearance channel, for the last real frame
    before the imagined one, exceeds what is usual for an episode's largest, in units of that. The
    strengths a and b are those of the lowest Brier score on the episodes given: they must include
    unfamiliar ones.
    """

    def __init__(self, features: FrameFeatures, judge: AlarmRule) -> None:
        self.features, self.judge = features, judge

    def unfamiliar(
        self, episode: Episode, rollout: EpisodeRollouts
    ) -> tuple[Float[Tensor, "time 1 1 1 1"], Float[Tensor, "time view 1 h w"]]:
        """By how much the frame that a rollout started from is unfamiliar, whole and in parts."""
        channel = self.judge.channels_.appearance
        assert channel is not None, "the monitor was fitted with features of frames"
        last = np.arange(len(rollout.horizon)) - rollout.horizon
        starts, index = np.unique(last, return_inverse=True)
        pooled, positions = self.features.of_episode(episode.frames[torch.from_numpy(starts)])
        whole = self._excess("appearance", channel.score(pooled))[index]
        parts = self._excess("region", channel.position_scores(positions))[index]
        return whole[:, None, None, None, None], parts[:, :, None]

    def _excess(self, name: str, score: Float[np.ndarray, "*any"]) -> Float[Tensor, "*any"]:
        usual = self.judge.scales_[name].centre
        return torch.from_numpy((score / usual - 1).clip(0)).float()

    def fit(
        self, episodes: Sequence[Episode], rollouts: Sequence[EpisodeRollouts]
    ) -> AppearanceDiscount:
        """Choose the strengths."""
        excess = [self.unfamiliar(e, r) for e, r in zip(episodes, rollouts, strict=True)]
        levels = torch.tensor(EPSILONS)

        def brier(strengths: tuple[float, float]) -> float:
            total = 0.0
            for (whole, parts), rollout in zip(excess, rollouts, strict=True):
                rows = torch.from_numpy(rollout.horizon > 0)
                power = 1 + strengths[0] * whole[rows] + strengths[1] * parts[rows]
                stated = rollout.confidence[rows].float() ** power[..., None]
                reached = rollout.error[rows][..., None] <= levels
                total += float((stated - reached.float()).square().mean())
            return total

        self.strengths_ = min(product(EXPONENTS, EXPONENTS), key=brier)
        return self

    def discounted(
        self, episodes: Sequence[Episode], rollouts: Sequence[EpisodeRollouts]
    ) -> list[EpisodeRollouts]:
        """The same rollouts with lowered confidence; frames that were not imagined keep theirs."""
        require_fitted(self, "strengths_")
        results = []
        for episode, rollout in zip(episodes, rollouts, strict=True):
            whole, parts = self.unfamiliar(episode, rollout)
            power = 1 + self.strengths_[0] * whole + self.strengths_[1] * parts
            lowered = (rollout.confidence.float() ** power[..., None]).to(rollout.confidence.dtype)
            results.append(replace(rollout, confidence=lowered))
        return results
