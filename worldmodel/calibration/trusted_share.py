"""Confidence thresholds with a bounded fraction of errors among trusted predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worldmodel.calibration.features import MONITOR_EPSILON
from worldmodel.monitors.guarantees.risk_control import NUM_BINS, RiskControl
from worldmodel.monitors.reliability.measures import ReliabilityBins
from worldmodel.rollouts.open_loop import EpisodeRollouts
from worldmodel.rollouts.recalibrate import count_all

RISKS = (0.05, 0.1, 0.2)
"""Bounds on the fraction of errors among trusted predictions."""


@dataclass(frozen=True, kw_only=True)
class TrustedShare:
    """Threshold on the stated confidence that bounds the errors among trusted predictions.

    See `RiskControl`. The guarantee holds for confidence as stated, because these episodes are
    held out. It does not hold for recalibrated confidence, which was fitted to them.
    """

    alpha: float
    """Bound on the expected fraction of errors among the trusted subpatches of an episode."""
    epsilon: float = MONITOR_EPSILON
    confidence: str = "as stated"
    num_episodes: int
    num_needed: int
    """Episodes required for `alpha`."""
    threshold: float | None
    """Trust confidence at or above it; 2: trust nothing; None: too few episodes."""
    share_trusted: float | None
    """Trusted fraction of the subpatches of these episodes."""


def trusted_shares(rollouts: Sequence[EpisodeRollouts]) -> list[TrustedShare]:
    """Threshold on the stated confidence for each risk of `RISKS`, over all horizons and cameras.

    `rollouts` must be of held-out episodes.
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
