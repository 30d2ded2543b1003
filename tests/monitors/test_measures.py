"""Calibration metrics against netcal, torchmetrics, scikit-learn and scoringrules."""

import numpy as np
import pytest
import scoringrules
import torch
from netcal.metrics import ECE, MCE
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from benchmarks.calibration.hidden_video_effect import errors, simulate
from worldmodel.monitors.reliability.counts import summarize
from worldmodel.monitors.reliability.measures import (
    ReliabilityBins,
    bin_forecasts,
    bin_rows,
    brier_decomposition,
    episode_bootstrap,
    expected_calibration_error,
    max_calibration_error,
    per_video_calibration_error,
)


def forecasts(seed: int, n: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident forecasts."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(2.0, 1.0, n)
    return confidence, rng.random(n) < 0.2 + 0.6 * confidence


@pytest.mark.parametrize("num_bins", [5, 15, 40])
def test_pooled_errors_agree_with_netcal_and_torchmetrics(num_bins: int) -> None:
    confidence, correct = forecasts(seed=num_bins)
    bins = bin_forecasts(confidence, correct, num_bins=num_bins)
    ece = expected_calibration_error(bins)
    mce = max_calibration_error(bins, min_mass=0.0)

    assert ece == pytest.approx(ECE(num_bins).measure(confidence, correct), abs=1e-9)
    assert mce == pytest.approx(MCE(num_bins).measure(confidence, correct), abs=1e-9)
    p, y = torch.from_numpy(confidence), torch.from_numpy(correct)
    for norm, ours in (("l1", ece), ("max", mce)):
        theirs = binary_calibration_error(p, y, n_bins=num_bins, norm=norm)
        assert ours == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("num_bins", [5, 15])
def test_reliability_curve_agrees_with_scikit_learn(num_bins: int) -> None:
    confidence, correct = forecasts(seed=num_bins)
    bins = bin_forecasts(confidence, correct, num_bins=num_bins)
    observed, stated = calibration_curve(correct, confidence, n_bins=num_bins)

    full = bins.count > 0
    np.testing.assert_allclose(bins.correct[full] / bins.count[full], observed, atol=1e-12)
    np.testing.assert_allclose(bins.confidence[full] / bins.count[full], stated, atol=1e-12)
    share = np.histogram(confidence, bins=num_bins, range=(0, 1))[0][full] / len(confidence)
    by_hand = share @ np.abs(observed - stated)
    assert expected_calibration_error(bins) == pytest.approx(by_hand, abs=1e-12)


def test_brier_score_agrees_with_scikit_learn_and_scoringrules() -> None:
    confidence, correct = forecasts(seed=1)
    brier = brier_decomposition(bin_forecasts(confidence, correct)).brier

    assert brier == pytest.approx(brier_score_loss(correct, confidence), abs=1e-12)
    outcome = correct.astype(float)
    assert brier == pytest.approx(scoringrules.brier_score(outcome, confidence).mean(), abs=1e-12)


def test_murphy_terms_are_those_of_a_hand_written_case() -> None:
    confidence = np.array([0.25] * 4 + [0.75] * 4)
    correct = np.array([True, False, False, False, True, True, True, True])
    split = brier_decomposition(bin_forecasts(confidence, correct, num_bins=2))

    assert split.reliability == pytest.approx(0.5 * 0.25**2)  # the upper half came true every time
    assert split.resolution == pytest.approx(0.375**2)  # 0.25 and 1 around the base rate 0.625
    assert split.uncertainty == pytest.approx(0.625 * 0.375)
    assert split.within_bin == pytest.approx(0.0, abs=1e-12)
    assert split.skill == pytest.approx(1 - split.brier / (0.625 * 0.375))


def test_within_bin_term_vanishes_as_bins_narrow() -> None:
    confidence, correct = forecasts(seed=2, n=20_000)
    terms = [
        abs(brier_decomposition(bin_forecasts(confidence, correct, num_bins=bins)).within_bin)
        for bins in (2, 10, 100)
    ]
    assert terms[0] > 10 * terms[1] > 10 * terms[2]


def test_maximum_error_leaves_out_light_bins() -> None:
    confidence = np.array([0.9] * 999 + [0.1])
    correct = np.array([True] * 900 + [False] * 99 + [True])  # the lone forecast in 0.1 is 0.9 off
    bins = bin_forecasts(confidence, correct, num_bins=10)

    assert max_calibration_error(bins) == pytest.approx(0.9)  # exactly 0.1% of the mass
    assert max_calibration_error(bins, min_mass=0.0011) == pytest.approx(900 / 999 - 0.9)


def hidden_effect_errors(seed: int, **options: float) -> tuple[float, float]:
    """C3-style and pooled error of a perfectly calibrated forecaster."""
    return errors(bin_rows(*simulate(np.random.default_rng(seed), **options), num_bins=15))


def test_calibrated_forecaster_with_hidden_video_effect_looks_bad_only_per_video() -> None:
    """110 videos of 2000 forecasts, probit effect of sd 0.3; medians over the seeds 0 to 8.

    Infinitely many forecasts would give E|effect| E[density(x)] = 0.24 * 0.28 = 0.067 per video;
    chance in 15 bins adds some 0.004. Over 40 seeds the per-video error had an sd of 0.004, the
    pooled one a median of 0.005 and the quartiles 0.003 and 0.009: the 110 effects do not quite
    cancel. The median of 9 lies within a third of these spreads.
    """
    per_video, pooled = np.median([hidden_effect_errors(seed) for seed in range(9)], axis=0)
    assert per_video == pytest.approx(0.071, abs=0.005)
    assert pooled == pytest.approx(0.004, abs=0.002)


def test_per_video_error_vanishes_with_data_except_for_the_hidden_effect() -> None:
    """One seed each; per-video errors of 110 videos have an sd of 0.004 under the effect."""
    _, pooled = hidden_effect_errors(1, num_videos=2750, num_forecasts=200)
    assert pooled < 0.004  # five times smaller than with 110 videos
    long, _ = hidden_effect_errors(2, num_forecasts=4000)
    assert long == pytest.approx(0.069, abs=0.012)
    without, _ = hidden_effect_errors(2, num_forecasts=4000, effect_sd=0.0)
    assert without < 0.025  # only chance is left: it falls with the root of the forecasts
    few, _ = hidden_effect_errors(2, num_forecasts=250, effect_sd=0.0)
    assert few == pytest.approx(4 * without, rel=0.1)


def test_per_video_error_is_the_mean_of_netcals() -> None:
    videos = [forecasts(seed, n=400) for seed in range(6)]
    bins = ReliabilityBins(np.stack([bin_forecasts(p, y, num_bins=10).sums for p, y in videos]))
    expected = np.mean([ECE(10).measure(p, y) for p, y in videos])
    assert per_video_calibration_error(bins) == pytest.approx(expected, abs=1e-9)


def test_videos_without_a_forecast_are_ignored() -> None:
    bins = bin_rows(np.full((3, 4), 0.75), np.ones((3, 4), dtype=bool), num_bins=2)
    bins.sums[1] = 0.0
    assert np.isnan(expected_calibration_error(bins)[1])
    assert per_video_calibration_error(bins) == pytest.approx(0.25)


def test_bootstrap_interval_has_the_width_of_the_episode_spread() -> None:
    """50 episodes of 200 forecasts at 0.5 whose frequency varies by episode (sd 0.1), seed 3.

    The mean of 50 frequencies has the standard error sqrt((0.01 + 0.25 / 200) / 50) = 0.015; one
    that ignored the episodes would be 0.005. The interval's width is twice 1.96 standard errors;
    over seeds it varies by about 12% (50 episodes, 500 resamples), so 40% is safe.
    """
    rng = np.random.default_rng(3)
    rate = (0.5 + rng.normal(0.0, 0.1, (50, 1))).clip(0, 1)
    bins = bin_rows(np.full((50, 200), 0.5), rng.random((50, 200)) < rate, num_bins=10)

    def frequency(sample: ReliabilityBins) -> float:
        pooled = sample.pooled()
        return float(pooled.correct.sum() / pooled.count.sum())

    low, high = episode_bootstrap(bins, frequency, rng=rng)
    assert low < frequency(bins) < high
    assert high - low == pytest.approx(2 * 1.96 * 0.015, rel=0.4)


@pytest.mark.parametrize("num_bins", [3, 10, 15, 49, 100, 200])
def test_every_edge_falls_into_the_bin_above(num_bins: int) -> None:
    """0.29, 0.57 and 0.58 times 100 are below 29, 57 and 58 in double precision."""
    for index in range(num_bins):
        bins = bin_forecasts(np.array([index / num_bins]), np.array([True]), num_bins=num_bins)
        assert bins.count.argmax() == index


def test_outcomes_that_are_not_boolean_are_refused() -> None:
    with pytest.raises(ValueError, match="`correct` must be boolean, got float64"):
        bin_rows(np.full((1, 2), 0.5), np.array([[0.2, 2.0]]), num_bins=2)
    with pytest.raises(ValueError, match=r"same shape, got \(1, 2\) and \(1, 1\)"):
        bin_rows(np.full((1, 2), 0.5), np.ones((1, 1), dtype=bool), num_bins=2)


def test_one_episode_has_no_interval() -> None:
    bins = bin_rows(np.full((1, 4), 0.5), np.ones((1, 4), dtype=bool), num_bins=2)
    with pytest.raises(ValueError, match="at least 2 episodes for an interval, got 1"):
        episode_bootstrap(bins, lambda sample: 0.0, rng=np.random.default_rng(0))
    summary = summarize(bins, rng=np.random.default_rng(0))
    assert summary.ece_interval is None
    assert summary.per_video_ece_interval is None


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan, np.inf])
def test_confidence_outside_the_unit_interval_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"`confidence` must hold probabilities in \[0, 1\]"):
        bin_forecasts(np.array([0.5, wrong]), np.array([True, True]))


def test_single_precision_rounding_is_tolerated() -> None:
    bins = bin_forecasts(np.array([1.0 + 1e-7, -1e-7]), np.array([True, False]))
    assert expected_calibration_error(bins) == 0.0


def test_brier_score_of_empty_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="`bins` must hold a forecast"):
        brier_decomposition(ReliabilityBins(np.zeros((4, 15))))
