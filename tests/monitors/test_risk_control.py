"""Conformal risk control: its guarantee by simulation, and refused input."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from scipy.stats import beta

from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.guarantees.risk_control import (
    TRUST_NOTHING,
    RiskControl,
    risk_controls,
    worst_shares,
)
from worldmodel.monitors.reliability.measures import ReliabilityBins, bin_forecasts

NUM_RESAMPLES = 500
CENTRES = (np.arange(100) + 0.5) / 100


@cache
def population(*, spread: float, power: float, size: int = 3000) -> ReliabilityBins:
    """Episodes of 300 forecasts whose chances to come true swing from episode to episode.

    In each bin of confidence p the chance is a beta draw of mean p**power; one of 100 hidden
    quantiles moves all bins of an episode together. Power 1 is calibrated on the whole, more is
    overconfident. Some episodes often state high confidence, some hardly ever.
    """
    rng = np.random.default_rng(0)
    mean = CENTRES**power
    quantiles = beta.ppf(CENTRES[:, None], mean / spread, (1 - mean) / spread)
    boldness = rng.uniform(1.0, 6.0, (size, 1))
    weight = rng.gamma(1.0, CENTRES**boldness + 1e-9)
    count = rng.multinomial(300, weight / weight.sum(axis=1, keepdims=True))
    correct = rng.binomial(count, quantiles[rng.integers(100, size=size)])
    sums = np.stack([count, count * CENTRES, correct, np.zeros_like(count)], axis=1)
    return ReliabilityBins(sums.astype(np.float64))


def wrong_shares(bins: ReliabilityBins, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Share of wrong ones among the trusted, and share of trusted ones, per episode."""
    trusted = threshold <= CENTRES
    count = bins.count[:, trusted].sum(axis=1)
    wrong = count - bins.correct[:, trusted].sum(axis=1)
    return wrong / np.maximum(count, 1), count / bins.count.sum(axis=1)


def resampled(
    episodes: ReliabilityBins, n: int
) -> Iterator[tuple[ReliabilityBins, ReliabilityBins]]:
    """So many times n calibration episodes and 30 new ones."""
    rng = np.random.default_rng(n)
    for _ in range(NUM_RESAMPLES):
        chosen = rng.choice(len(episodes.sums), n + 30, replace=False)
        yield (
            ReliabilityBins(episodes.sums[chosen[:n]]),
            ReliabilityBins(episodes.sums[chosen[n:]]),
        )


@pytest.mark.parametrize(("spread", "power"), [(0.3, 1.0), (1.0, 1.0), (0.5, 2.5)])
@pytest.mark.parametrize(
    ("n", "alpha", "useful"), [(20, 0.1, 0.15), (60, 0.05, 0.05), (100, 0.2, 0.5)]
)
def test_at_most_alpha_of_the_trusted_are_wrong(
    spread: float, power: float, n: int, alpha: float, useful: float
) -> None:
    """2 standard errors of the mean over 500 resamplings are allowed, and idleness is not."""
    shares, trusted = [], []
    for calibration, new in resampled(population(spread=spread, power=power), n):
        wrong, share = wrong_shares(new, RiskControl(alpha).fit_bins(calibration).threshold_)
        shares.append(wrong.mean())
        trusted.append(share.mean())
    error = np.std(shares) / np.sqrt(NUM_RESAMPLES)
    assert np.mean(shares) <= alpha + 2 * error
    assert np.mean(trusted) > useful


def test_simulation_detects_a_broken_guarantee() -> None:
    """The threshold that keeps the share on the calibration episodes themselves fails on new ones.

    500 resamplings of 10 episodes, alpha 0.1.
    """
    shares = []
    for calibration, new in resampled(population(spread=1.0, power=1.0), 10):
        kept = np.flatnonzero(worst_shares(calibration).mean(axis=0) <= 0.1)
        threshold = kept[0] / 100 if len(kept) else TRUST_NOTHING
        shares.append(wrong_shares(new, threshold)[0].mean())
    assert np.mean(shares) > 0.1 + 2 * np.std(shares) / np.sqrt(NUM_RESAMPLES)


def test_more_episodes_bring_the_share_close_to_alpha() -> None:
    """1000 of 3000 episodes, the rest new: neither n + 1 nor the worst threshold costs much."""
    episodes = population(spread=0.3, power=1.0).sums
    control = RiskControl(0.1).fit_bins(ReliabilityBins(episodes[:1000]))
    wrong, trusted = wrong_shares(ReliabilityBins(episodes[1000:]), control.threshold_)
    assert 0.085 < wrong.mean() < 0.11
    assert trusted.mean() > 0.5


def test_wrong_ones_at_the_top_leave_nothing_to_trust() -> None:
    """Of 100 subpatches, 95 at 0.9 are right and 5 at 0.99 wrong: trusting all would keep 0.1."""
    confidence = np.array([0.9] * 95 + [0.99] * 5)
    control = RiskControl(0.1).fit([confidence] * 200, [confidence < 0.95] * 200)
    assert control.threshold_ == TRUST_NOTHING
    assert not control.trusted(confidence).any()


def test_forecasts_and_their_sums_give_the_same_threshold() -> None:
    """Against the definition: the least hundredth at which all shares, and one more, are few."""
    rng = np.random.default_rng(5)
    confidence = [rng.random((4, 25)).astype(np.float32) for _ in range(40)]
    correct = [rng.random(p.shape) < p**0.3 for p in confidence]
    control = RiskControl(0.15).fit(confidence, correct)
    sums = [
        bin_forecasts(p, y, num_bins=100).sums for p, y in zip(confidence, correct, strict=True)
    ]
    assert (
        RiskControl(0.15).fit_bins(ReliabilityBins(np.stack(sums))).threshold_ == control.threshold_
    )

    tried = np.arange(100) / 100
    total = np.ones(100)
    for p, y in zip(confidence, correct, strict=True):
        shares = [float((~y[p >= t]).mean()) if (p >= t).any() else 0.0 for t in tried]
        total += [max(shares[i:]) for i in range(100)]
    kept = tried[total / 41 <= 0.15]
    assert control.threshold_ == pytest.approx(kept[0], abs=1e-12)
    assert 0 < kept[0] < 0.99
    np.testing.assert_array_equal(control.trusted(confidence[0]), confidence[0] >= kept[0])


def test_nothing_is_trusted_if_all_is_wrong() -> None:
    p = [np.full(50, 0.999)] * 30
    control = RiskControl(0.1).fit(p, [np.zeros(50, dtype=bool)] * 30)
    assert control.threshold_ == TRUST_NOTHING
    assert not control.trusted(np.ones((2, 3))).any()


def test_everything_is_trusted_if_all_is_right() -> None:
    control = RiskControl(0.05).fit([np.zeros(5)] * 19, [np.ones(5, dtype=bool)] * 19)
    assert control.threshold_ == 0.0
    assert control.trusted(np.zeros(3)).all()


def test_too_few_episodes_are_refused_with_the_number_needed() -> None:
    p, y = [np.full(5, 0.9)] * 18, [np.ones(5, dtype=bool)] * 18
    message = "`alpha`=0.05 needs at least 19 calibration episodes, got 18, which support 0.0526"
    with pytest.raises(ValueError, match=message):
        RiskControl(0.05).fit(p, y)
    empty = [np.zeros(0)] * 5  # an episode without a forecast is none
    with pytest.raises(ValueError, match="got 18"):
        RiskControl(0.05).fit(p + empty, y + [np.zeros(0, dtype=bool)] * 5)
    with pytest.raises(ValueError, match="got 0"):
        RiskControl(0.05).fit([], [])
    with pytest.raises(NotFittedError, match="RiskControl is not fitted"):
        RiskControl(0.1).trusted(np.array([0.5]))


def test_a_group_with_too_few_episodes_shares_the_threshold_of_all() -> None:
    good, bad = (population(spread=0.3, power=power).sums[:200] for power in (1.0, 2.5))
    rare = good.copy()
    rare[8:] = 0.0  # a camera that 8 of 200 episodes have
    groups = {
        "good": ReliabilityBins(good),
        "bad": ReliabilityBins(bad),
        "rare": ReliabilityBins(rare),
    }
    controls = risk_controls(0.1, groups)
    for name in ("good", "bad"):
        alone = RiskControl(0.1).fit_bins(groups[name])
        assert controls[name].threshold_ == alone.threshold_
    pooled = RiskControl(0.1).fit_bins(ReliabilityBins(good + bad + rare))
    assert controls["rare"].threshold_ == pooled.threshold_
    assert controls["good"].threshold_ < pooled.threshold_ < controls["bad"].threshold_


@pytest.mark.parametrize("num_bins", [10, 15, 20, 100, 128, 200])
def test_threshold_splits_forecasts_like_the_bins(num_bins: int) -> None:
    """Else a confidence rounded to hundredths could be trusted though its bin is not."""
    for index in range(num_bins):
        edge = index / num_bins
        around = np.array([np.nextafter(edge, 0.0), edge, np.nextafter(edge, 1.0)])
        bins = bin_forecasts(around, np.ones(3, dtype=bool), num_bins=num_bins)
        assert bins.count[index:].sum() == (around >= edge).sum()
