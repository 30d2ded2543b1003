"""Rank correlation metrics against scipy, the paper's algorithm and hand-made cases."""

import json

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from worldmodel.monitors.metrics.rank_correlation import (
    MAX_PAIRS,
    ause,
    kendall_tau,
    shepherds_pi,
    summarize_association,
)


def rng(seed: int = 0) -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(seed)


def related(n: int, seed: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and error, the error spread as the confidence says; heavy-tailed."""
    draw = rng(seed)
    scale = np.exp(0.8 * draw.normal(size=n))
    confidence = 1 / (1 + scale)
    return np.round(confidence, 1) if ties else confidence, np.abs(scale * draw.normal(size=n))


def mean_distance(score: np.ndarray, error: np.ndarray, num_resamples: int) -> np.ndarray:
    """The source's outlier measure, resample by resample."""
    pairs, draw = np.stack((score, error), axis=1), rng(99)
    distance = np.zeros(len(pairs))
    for _ in range(num_resamples):
        resample = pairs[draw.integers(len(pairs), size=len(pairs))]
        gap = pairs - resample.mean(axis=0)
        distance += np.einsum("ni,ij,nj->n", gap, np.linalg.inv(np.cov(resample.T)), gap)
    return distance / num_resamples


@pytest.mark.parametrize("n", [60, 3000])  # pair by pair, and in groups
@pytest.mark.parametrize("ties", [False, True])
def test_pi_is_spearmans_rho_without_the_sources_outliers(n: int, ties: bool) -> None:
    score, error = related(n, seed=n, ties=ties)
    pi, outlier = shepherds_pi(score, error, rng=rng())

    distance = mean_distance(score, error, num_resamples=400)
    clear = np.abs(distance / 6 - 1) > 0.05  # resampled otherwise, the mean differs by some 2%
    assert 0 < outlier.sum() < 0.2 * n
    np.testing.assert_array_equal(outlier[clear], distance[clear] >= 6)
    expected = spearmanr(score[~outlier], error[~outlier]).statistic
    assert pi == pytest.approx(expected, abs=1e-12)


def test_planted_outliers_turn_spearmans_rho_but_not_pi() -> None:
    """60 pairs on a weakly falling line and 6 far above and to the right of them."""
    score = np.append(np.arange(60.0), np.full(6, 200.0))
    error = np.append(60 - 0.15 * np.arange(60) + 30 * rng(3).random(60), np.full(6, 300.0))
    pi, outlier = shepherds_pi(score, error, rng=rng())

    assert np.flatnonzero(outlier).tolist() == [60, 61, 62, 63, 64, 65]
    assert spearmanr(score, error).statistic > 0
    assert pi == pytest.approx(spearmanr(score[:60], error[:60]).statistic)
    assert pi < -0.15


def test_pi_is_invariant_to_units() -> None:
    score, error = related(500, seed=1)
    pi, outlier = shepherds_pi(score, error, rng=rng())
    other, same = shepherds_pi(1e-9 * score - 7e-6, 1e6 * error, rng=rng())
    np.testing.assert_array_equal(outlier, same)
    assert other == pytest.approx(pi)


def test_ause_of_two_pairs_in_the_wrong_order_is_ln_2() -> None:
    """Errors 3 and 1, the 3 kept longest: (2 + ln 2) / 2 against the oracle's (2 - ln 2) / 2."""
    assert ause(np.array([0.9, 0.5]), np.array([3.0, 1.0])) == pytest.approx(np.log(2))


def test_ause_is_the_area_between_the_two_curves() -> None:
    score, error = related(4000, seed=2)

    def curve(distrust: np.ndarray) -> np.ndarray:
        removed_last_first = error[np.argsort(distrust)]
        return np.cumsum(removed_last_first) / np.arange(1, 4001) / error.mean()

    # A Riemann sum over 4000 steps of a curve that spans about 1.
    assert ause(score, error) == pytest.approx(np.mean(curve(-score) - curve(error)), abs=1e-3)


def test_ause_of_oracle_constant_and_random_scores() -> None:
    _, error = related(20_000, seed=3)
    assert ause(-error, error) == 0.0
    chance = ause(np.full(20_000, 0.5), error)
    random = [ause(rng(seed).random(20_000), error) for seed in range(10)]
    assert np.mean(random) == pytest.approx(chance, abs=0.01)  # sd of one: about 0.009
    assert ause(related(20_000, seed=3)[0], error) < 0.5 * chance
    assert ause(error, error) > 1.5 * chance


def test_equal_scores_are_removed_evenly() -> None:
    """The mean over all orders of two tied pairs equals the AUSE of the tie."""
    error = np.array([1.0, 2.0, 5.0])
    tied = ause(np.array([0.9, 0.1, 0.1]), error)
    orders = [ause(np.array(score), error) for score in ([0.9, 0.2, 0.1], [0.9, 0.1, 0.2])]
    assert tied == pytest.approx(np.mean(orders))


@pytest.mark.parametrize("ties", [False, True])
def test_kendalls_tau_is_scipys(ties: bool) -> None:
    score, error = related(300, seed=4, ties=ties)
    tau, (low, high) = kendall_tau(score, error)
    assert tau == kendalltau(score, error).statistic
    assert low < tau < high


def test_interval_of_tau_has_nominal_coverage() -> None:
    """Bivariate normal, correlation 0.6, so tau = 2 / pi asin 0.6; 40 pairs, 600 data sets, seed 5.

    The share covered has the standard error 0.009; 0.03 is more than three of them.
    """
    draw, truth = rng(5), 2 / np.pi * np.arcsin(0.6)
    covered = 0
    for _ in range(600):
        x, noise = draw.normal(size=(2, 40))
        _, (low, high) = kendall_tau(x, 0.6 * x + 0.8 * noise)
        covered += low <= truth <= high
    assert covered / 600 == pytest.approx(0.95, abs=0.03)


def test_interval_of_tau_at_its_edges() -> None:
    rising = np.arange(10.0)
    tau, (low, high) = kendall_tau(rising, rising)
    assert (tau, high) == pytest.approx((1.0, 1.0))
    assert 0.7 < low < 0.95
    assert kendall_tau(rising[:4], -rising[:4]) == (-1.0, (-1.0, 1.0))
    tau, interval = kendall_tau(rising, np.zeros(10))
    assert np.isnan([tau, *interval]).all()


def episodes(
    seed: int, *, num_episodes: int, pairs: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores and errors whose scale has a part that the score misses in a whole episode."""
    draw = rng(seed)
    scores, errors = [], []
    for _ in range(num_episodes):
        scale = np.exp(0.7 * draw.normal(size=pairs))
        scores.append((1 / (1 + scale)).astype(np.float32))
        noise = draw.normal(size=pairs) * np.exp(0.5 * draw.normal())
        errors.append(np.abs(scale * noise).astype(np.float32))
    return scores, errors


def test_a_summary_of_a_sample_agrees_with_all_pairs() -> None:
    """12 x 20 000 pairs, 100 000 of them used: standard errors below 0.003 and 0.002, times 3."""
    scores, errors = episodes(0, num_episodes=12, pairs=20_000)
    summary = summarize_association(scores, errors, rng=rng(), num_resamples=10)
    score, error = np.concatenate(scores), np.concatenate(errors)
    pi, outlier = shepherds_pi(score, error, rng=rng())

    assert (summary.num_pairs, summary.num_used) == (240_000, MAX_PAIRS)
    assert summary.pi == pytest.approx(pi, abs=0.009)
    assert summary.num_outliers / MAX_PAIRS == pytest.approx(outlier.mean(), abs=0.003)
    assert summary.ause == pytest.approx(ause(score, error), abs=0.006)
    assert summary.ause_chance == pytest.approx(ause(np.zeros_like(error), error), abs=0.006)


def test_intervals_have_the_width_of_the_episode_spread() -> None:
    """30 episodes of 200 pairs: the interval against the spread over 40 fresh sets of episodes.

    Pairs as unit would give half the width for pi. Width and spread are known to about 15% and
    11%; 40% is twice that.
    """
    scores, errors = episodes(0, num_episodes=30, pairs=200)
    summary = summarize_association(scores, errors, rng=rng())
    fresh = []
    for seed in range(1, 41):
        score, error = map(np.concatenate, episodes(seed, num_episodes=30, pairs=200))
        pi, _ = shepherds_pi(score, error, rng=rng(), num_resamples=20)
        fresh.append((pi, ause(score, error)))
    spread = np.std(fresh, axis=0)
    for value, (low, high), sd in zip(
        (summary.pi, summary.ause),
        (summary.pi_interval, summary.ause_interval),
        spread,
        strict=True,
    ):
        assert low < value < high
        assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.4)


def test_identical_episodes_give_intervals_without_width() -> None:
    """Every resample is the same data: what differs is grouping (AUSE) and plain distance (π)."""
    scores, errors = episodes(0, num_episodes=1, pairs=5000)
    summary = summarize_association(scores * 4, errors * 4, rng=rng(), num_resamples=5)
    assert summary.ause_interval == pytest.approx((summary.ause, summary.ause), abs=1e-3)
    assert summary.pi_interval == pytest.approx((summary.pi, summary.pi), abs=2e-3)


def test_summary_repeats_with_the_same_seed_and_is_json() -> None:
    scores, errors = episodes(0, num_episodes=3, pairs=50)
    first, second = (
        summarize_association(scores, errors, rng=rng(7), num_resamples=20) for _ in range(2)
    )
    assert first == second
    assert (first.num_episodes, first.num_pairs, first.num_used) == (3, 150, 150)
    score, error = np.concatenate(scores), np.concatenate(errors)
    assert first.ause == pytest.approx(ause(score, error))
    pi, outlier = shepherds_pi(score, error, rng=rng())
    assert first.num_outliers == outlier.sum()
    assert first.pi == pytest.approx(pi)
    assert json.loads(json.dumps(first.as_dict()))["pi"] == first.pi


def test_a_constant_score_has_no_pi_and_the_ause_of_chance() -> None:
    _, errors = episodes(0, num_episodes=4, pairs=50)
    scores = [np.full(50, 0.9, dtype=np.float32)] * 4
    summary = summarize_association(scores, errors, rng=rng(), num_resamples=5)
    assert np.isnan([summary.pi, *summary.pi_interval]).all()
    assert summary.ause == summary.ause_chance > 0.3


def test_all_zero_errors_give_nan() -> None:
    summary = summarize_association(
        [np.array([0.1, 0.9])] * 2, [np.zeros(2)] * 2, rng=rng(), num_resamples=5
    )
    assert np.isnan([summary.pi, summary.ause, summary.ause_chance]).all()


def test_one_episode_has_no_interval() -> None:
    scores, errors = episodes(0, num_episodes=1, pairs=50)
    summary = summarize_association(scores, errors, rng=rng(), num_resamples=5)
    assert np.isnan([*summary.pi_interval, *summary.ause_interval]).all()
    assert summary.pi < 0


@pytest.mark.parametrize(
    ("scores", "errors", "message"),
    [
        ([], [], "at least one; got 0 and 0"),
        ([np.ones(2)], [], "got 1 and 0"),
        ([np.ones(2)], [np.ones(3)], r"same non-empty shape, got \(2,\) and \(3,\)"),
        ([np.ones(0)], [np.ones(0)], "same non-empty shape"),
        ([np.array([0.1, np.nan])], [np.ones(2)], "must be finite"),
        ([np.ones(2)], [np.array([0.1, -0.25])], "`error` must not be negative, got -0.25"),
    ],
)
def test_invalid_input_is_refused(
    scores: list[np.ndarray], errors: list[np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        summarize_association(scores, errors, rng=rng())
