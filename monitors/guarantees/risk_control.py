"""Conformal risk control: trust subpatches so that at most a share alpha of them is wrong."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float64

from worldmodel.monitors.arrays import require_probabilities
from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.guarantees.episode_threshold import episodes_needed, smallest_alpha
from worldmodel.monitors.reliability.measures import ReliabilityBins, bin_forecasts

NUM_BINS = 100
"""Candidate thresholds: 0, 0.01, ..., 0.99, and trusting nothing."""
TRUST_NOTHING = 2.0
"""Threshold above every confidence."""

Group = TypeVar("Group", bound=Hashable)


class RiskControl:
    """Conformal risk control over episodes (Angelopoulos et al. 2022, arXiv:2208.02814).

    The risk is the share of wrong subpatches among an episode's trusted ones, those with confidence
    of at least `threshold_` (0 if there are none). If the next episode is exchangeable with the
    calibration episodes, the expected risk is at most `alpha`, for any miscalibration and any
    dependence within an episode. The expectation is over calibration sets and episodes together; a
    single episode has no guarantee.

    The theorem needs a loss that never rises with the threshold, but the share of wrong subpatches
    may rise. The loss is therefore its maximum over all thresholds at least as strict, an upper
    bound. The guarantee holds for every curve, but the bound may be far off: if the most confident
    subpatches are often wrong, nothing is trusted, however right the others are.
    """

    def __init__(self, alpha: float) -> None:
        self.num_needed = episodes_needed(alpha)
        self.alpha = alpha

    def fit(
        self,
        confidence: Sequence[Float[np.ndarray, "*any"]],
        correct: Sequence[Bool[np.ndarray, "*any"]],
    ) -> RiskControl:
        """Fit to confidence and outcomes, one array of each per episode."""
        pairs = zip(confidence, correct, strict=True)
        sums = [bin_forecasts(stated, true, num_bins=NUM_BINS).sums for stated, true in pairs]
        return self.fit_bins(ReliabilityBins(np.stack(sums) if sums else np.zeros((0, 4, 1))))

    def fit_bins(self, bins: ReliabilityBins) -> RiskControl:
        """Fit to streaming sums whose leading axis is the episode, such as `episode_bins`.

        Bin edges are the candidate thresholds, so use 100 bins or more. Episodes without forecasts
        are ignored.
        """
        bins = ReliabilityBins(bins.sums[bins.count.any(axis=-1)])
        n = len(bins.sums)
        if n < self.num_needed:
            raise ValueError(
                f"`alpha`={self.alpha:g} needs at least {self.num_needed} calibration episodes, "
                f"got {n}, which support {smallest_alpha(n):.3g} at best."
            )
        bound = (worst_shares(bins).sum(axis=0) + 1) / (
            n + 1
        )  # + 1: in the next episode all may be wrong
        kept = np.flatnonzero(bound <= self.alpha)
        self.num_episodes_ = n
        self.threshold_ = float(kept[0] / len(bound)) if len(kept) else TRUST_NOTHING
        return self

    def trusted(self, confidence: Float[np.ndarray, "*any"]) -> Bool[np.ndarray, "*any"]:
        """Mask of trusted subpatches."""
        require_fitted(self, "threshold_")
        return np.asarray(require_probabilities(confidence) >= self.threshold_)


def risk_controls(
    alpha: float, groups: Mapping[Group, ReliabilityBins]
) -> dict[Group, RiskControl]:
    """One threshold per group with enough episodes; other groups share the pooled threshold.

    Args:
        alpha: Bound on the expected share of wrong subpatches among the trusted ones.
        groups: Camera, band of horizons or both -> sums whose leading axis is the episode, the
            same episodes in the same order. The pooled threshold is guaranteed only for all groups
            together, not for the group that uses it.
    """
    total = np.sum([bins.sums for bins in groups.values()], axis=0)
    pooled = RiskControl(alpha).fit_bins(ReliabilityBins(total))

    def control(bins: ReliabilityBins) -> RiskControl:
        enough = bins.count.any(axis=-1).sum() >= pooled.num_needed
        return RiskControl(alpha).fit_bins(bins) if enough else pooled

    return {group: control(bins) for group, bins in groups.items()}


def worst_shares(bins: ReliabilityBins) -> Float64[np.ndarray, "*episode bins"]:
    """Largest share of wrong subpatches among the trusted, at each bin's lower edge or stricter.

    >>> p, wrong = np.array([0.1, 0.4, 0.6, 0.9]), np.array([True, False, False, True])
    >>> worst_shares(bin_forecasts(p, ~wrong, num_bins=4)).tolist()  # 2/4, 1/3, 1/2, 1/1
    [1.0, 1.0, 1.0, 1.0]
    >>> worst_shares(bin_forecasts(p, wrong, num_bins=4)).round(2).tolist()  # 2/4, 2/3, 1/2, 0
    [0.67, 0.67, 0.5, 0.0]
    """
    stricter_first = bins.sums[..., ::-1].cumsum(axis=-1)
    count, correct = stricter_first[..., 0, :], stricter_first[..., 2, :]
    share = (count - correct) / np.maximum(count, 1.0)
    return np.maximum.accumulate(share, axis=-1)[..., ::-1]
