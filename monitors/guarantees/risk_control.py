"""Which subpatches to trust so that at most a share alpha of them is wrong, by conformal risk."""

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
"""Thresholds that are tried: 0, 0.01, ..., 0.99, and trusting nothing."""
TRUST_NOTHING = 2.0
"""A threshold that no confidence reaches."""

Group = TypeVar("Group", bound=Hashable)


class RiskControl:
    """Conformal risk control by episodes (Angelopoulos et al. 2022, arXiv:2208.02814).

    Of an episode's subpatches whose confidence is at least `threshold_`, some share is wrong (0 if
    there are none). If the next episode is exchangeable with the calibration episodes, the expected
    share is at most `alpha`, however calibrated the confidence is and however the subpatches of an
    episode depend on each other. The expectation is over calibration sets and episodes together:
    it promises nothing of a single episode.

    The theorem needs a loss that never rises with the threshold, and that share can. So the loss is
    the largest share at any threshold at least as strict, which bounds it from above.
    """

    def __init__(self, alpha: float) -> None:
        self.num_needed = episodes_needed(alpha)
        self.alpha = alpha

    def fit(
        self,
        confidence: Sequence[Float[np.ndarray, "*any"]],
        correct: Sequence[Bool[np.ndarray, "*any"]],
    ) -> RiskControl:
        """Learn from forecasts and outcomes: one array of each per episode."""
        pairs = zip(confidence, correct, strict=True)
        sums = [bin_forecasts(stated, true, num_bins=NUM_BINS).sums for stated, true in pairs]
        return self.fit_bins(ReliabilityBins(np.stack(sums) if sums else np.zeros((0, 4, 1))))

    def fit_bins(self, bins: ReliabilityBins) -> RiskControl:
        """Learn from streaming sums whose leading axis is the episode, such as `episode_bins`.

        The edges of the bins are the thresholds tried; use narrow bins (100 or more). Episodes
        without a forecast do not count.
        """
        bins = ReliabilityBins(bins.sums[bins.count.any(axis=-1)])
        n = len(bins.sums)
        if n < self.num_needed:
            raise ValueError(
                f"`alpha`={self.alpha:g} needs at least {self.num_needed} calibration episodes, "
                f"got {n}, which support {smallest_alpha(n):.3g} at best."
            )
        bound = (worst_shares(bins).sum(axis=0) + 1) / (n + 1)  # the next episode may be all wrong
        kept = np.flatnonzero(bound <= self.alpha)
        self.num_episodes_ = n
        self.threshold_ = lower_edge(int(kept[0]), len(bound)) if len(kept) else TRUST_NOTHING
        return self

    def trusted(self, confidence: Float[np.ndarray, "*any"]) -> Bool[np.ndarray, "*any"]:
        """Which subpatches may be trusted."""
        require_fitted(self, "threshold_")
        return np.asarray(require_probabilities(confidence) >= self.threshold_)


def risk_controls(
    alpha: float, groups: Mapping[Group, ReliabilityBins]
) -> dict[Group, RiskControl]:
    """A threshold for each group that has the episodes for it, else the one of all together.

    Args:
        alpha: share of wrong ones among the trusted.
        groups: camera, band of horizons or both -> sums whose leading axis is the episode, the
            same episodes in the same order. A group that must share has no promise of its own:
            the shared threshold's is for all groups taken together.
    """
    total = np.sum([bins.sums for bins in groups.values()], axis=0)
    pooled = RiskControl(alpha).fit_bins(ReliabilityBins(total))

    def own(bins: ReliabilityBins) -> RiskControl:
        enough = bins.count.any(axis=-1).sum() >= pooled.num_needed
        return RiskControl(alpha).fit_bins(bins) if enough else pooled

    return {group: own(bins) for group, bins in groups.items()}


def worst_shares(bins: ReliabilityBins) -> Float64[np.ndarray, "*episode bins"]:
    """Largest share of wrong ones among the trusted at each bin's lower edge or a stricter one.

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


def lower_edge(index: int, num_bins: int) -> float:
    """The least confidence that falls into a bin: the quotient, up to rounding.

    >>> lower_edge(29, 100) >= 0.29, int(lower_edge(29, 100) * 100), int(0.29 * 100)
    (True, 29, 28)
    """
    edge = index / num_bins
    while int(edge * num_bins) < index:
        edge = float(np.nextafter(edge, 1.0))
    while index and int(np.nextafter(edge, 0.0) * num_bins) >= index:
        edge = float(np.nextafter(edge, 0.0))
    return edge
