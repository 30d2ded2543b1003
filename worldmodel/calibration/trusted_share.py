"""From which stated confidence on a model may be trusted, so that few of the trusted are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worldmodel.calibration.features import MONITOR_EPSILON
from worldmodel.monitors.guarantees.risk_control import NUM_BINS, RiskControl
from worldmodel.monitors.reliability.measures import ReliabilityBins
from worldmodel.rollouts.open_loop import EpisodeRollouts
from worldmodel.rollouts.recalibrate import count_all

RISKS = (0.05, 0.1, 0.2)
"""Shares of wrong ones among the trusted that thresholds are sought for."""


@dataclass(frozen=True, kw_only=True)
class TrustedShare:
    """From which stated confidence on to trust, so that few of the trusted are wrong.

    See `RiskControl`. The promise is about confidence as stated, which these episodes had no part
    in; recalibrated confidence was fitted on them, so that it gets no promise from them.
    """

    alpha: float
    """Expected share of wrong ones among an episode's trusted subpatches, at most."""
    epsilon: float = MONITOR_EPSILON
    confidence: str = "as stated"
    num_episodes: int
    num_needed: int
    """Episodes that `alpha` needs."""
    threshold: float | None
    """Trust at or above; 2: trust nothing; None: too few episodes."""
    share_trusted: float | None
    """Of the subpatches of these episodes."""


def trusted_shares(rollouts: Sequence[EpisodeRollouts]) -> list[TrustedShare]:
    """Thresholds on stated confidence for each share of `RISKS`, all horizons and cameras together.

    `rollouts` must be of episodes that no part of the model was trained on.
    """
    sums = count_all(rollouts, num_bins=NUM_BINS).episode_bins(epsilon=MONITOR_EPSILON).sums
    bins = ReliabilityBins(sums[sums[:, 0].any(axis=-1)])
    count = bins.pooled().count
    rows = []
    for alpha in RISKS:
        control, threshold, share = RiskControl(alpha), None, None
        if len(bins.sums) >= control.num_needed:
            threshold = control.fit_bins(bins).threshold_
            share = float(count[int(threshold * NUM_BINS) :].sum() / count.sum())
        rows.append(
            TrustedShare(
                alpha=alpha,
                num_episodes=len(bins.sums),
                num_needed=control.num_needed,
                threshold=threshold,
                share_trusted=share,
            )
        )
    return rows
