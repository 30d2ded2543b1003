"""Evaluation statistics against SciPy, published values and exact small cases."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from worldmodel.evaluation.statistics import (
    check_pairs,
    fisher_interval,
    linear,
    mmrv,
    mmrv_with_ties,
    pearson,
    permutation_p_value,
    spearman,
    success_bounds,
    wilson_interval,
)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 7), (7, 7), (1, 400), (393, 393)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_interval_equals_scipy(successes: int, n: int, confidence: float) -> None:
    ours = wilson_interval(successes, n, confidence=confidence)
    theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert (ours.value, ours.n) == (successes / n, n)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}\\."):
        wilson_interval(successes, n)


def test_confidence_in_percent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`confidence` must lie between 0 and 1, got 95\.0\."):
        wilson_interval(1, 2, confidence=95.0)


def test_success_bounds_count_gated_rollouts_both_ways() -> None:
    success = np.array([True, True, False, True, False])
    trusted = np.array([True, False, True, True, False])
    bounds = success_bounds(success, trusted)
    assert bounds.gated == wilson_interval(2, 3)
    assert bounds.coverage == wilson_interval(3, 5)
    assert bounds.pessimistic == wilson_interval(2, 5)
    assert bounds.optimistic == wilson_interval(4, 5)


def test_the_truth_lies_within_the_bounds_for_every_gate() -> None:
    success = np.array([True, False, True, False])
    for gate in itertools.product([False, True], repeat=4):
        bounds = success_bounds(success, np.array(gate))
        assert bounds.pessimistic.value <= success.mean() <= bounds.optimistic.value


def test_a_gate_that_lets_nothing_through_leaves_no_estimate() -> None:
    bounds = success_bounds(np.array([True, False]), np.array([False, False]))
    assert bounds.gated is None
    assert (bounds.pessimistic.value, bounds.optimistic.value) == (0.0, 1.0)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_pearson_equals_scipy(generator: np.random.Generator, confidence: float) -> None:
    imagined, real = generator.random((2, 11))
    ours = pearson(imagined, real, generator=generator, confidence=confidence)
    theirs = stats.pearsonr(imagined, real)
    assert ours.value == pytest.approx(theirs.statistic)
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval(confidence)))
    assert ours.k == 11


def test_spearman_with_ties_equals_scipy(generator: np.random.Generator) -> None:
    imagined, real = generator.integers(0, 5, (2, 12)) / 4
    ours = spearman(imagined, real, generator=generator)
    rho = stats.spearmanr(imagined, real).statistic
    assert ours.value == pytest.approx(rho)
    half = 1.959964 * np.sqrt((1 + rho**2 / 2) / 9)
    assert ours.interval == pytest.approx(
        (np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)), abs=1e-6
    )


@pytest.mark.parametrize("k", [3, 6, 8])
def test_permutation_p_value_is_exact_when_small(k: int, generator: np.random.Generator) -> None:
    imagined, real = generator.integers(0, 6, (2, k)) / 5  # ties, as success rates have
    theirs = stats.permutation_test(
        (imagined,),
        lambda x, axis: np.abs(stats.zscore(x, axis=axis) @ stats.zscore(real)),
        permutation_type="pairings",
        n_resamples=np.inf,
        alternative="greater",
        vectorized=True,
    )
    ours = permutation_p_value(imagined, real, generator=generator)
    assert ours == pytest.approx(theirs.pvalue, abs=1e-12)


def test_sampled_p_value_is_near_the_t_test_and_repeats() -> None:
    imagined, real = np.random.default_rng(3).normal(size=(2, 30))
    first, second = (
        permutation_p_value(imagined, real, generator=np.random.default_rng(0)) for _ in range(2)
    )
    assert first == second
    # 20000 orders: standard error at most 0.0035; at 30 normal pairs the t-test is near exact.
    assert first == pytest.approx(stats.pearsonr(imagined, real).pvalue, abs=0.02)


def test_sampled_p_value_is_never_zero(generator: np.random.Generator) -> None:
    rates = np.linspace(0, 1, 40)
    assert permutation_p_value(rates, rates, generator=generator) == 1 / 20_000


def test_drop_one_range_by_hand(generator: np.random.Generator) -> None:
    imagined, real = np.array([0.0, 0.1, 0.2, 0.3, 1.0]), np.array([0.3, 0.2, 0.1, 0.0, 1.0])
    leave_out = [np.delete(np.arange(5), i) for i in range(5)]
    for ours, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        values = [theirs(imagined[rest], real[rest]).statistic for rest in leave_out]
        result = ours(imagined, real, generator=generator)
        assert result.drop_one == pytest.approx((min(values), max(values)))
        assert result.drop_one[0] == pytest.approx(-1.0)  # one policy carries the whole agreement


@pytest.mark.parametrize("k", [2, 3])
def test_so_few_policies_have_no_correlation(k: int, generator: np.random.Generator) -> None:
    """Two give 1 or -1 whatever they do, three nearly so."""
    imagined, real = np.array([0.1, 0.5, 0.6])[:k], np.array([0.0, 0.7, 0.5])[:k]
    for correlate in (pearson, spearman):
        result = correlate(imagined, real, generator=generator)
        assert (result.value, result.interval, result.p_value, result.drop_one) == (None,) * 4
        assert result.k == k


def test_a_perfect_correlation_claims_no_certainty(generator: np.random.Generator) -> None:
    rates = np.linspace(0, 1, 6)
    result = pearson(rates, rates / 2, generator=generator)
    assert result.value == pytest.approx(1.0)
    assert result.interval is None
    assert result.p_value == pytest.approx(2 / 720)  # the order itself and its reverse


def test_a_constant_side_has_no_correlation(generator: np.random.Generator) -> None:
    result = pearson(np.zeros(5), np.linspace(0, 1, 5), generator=generator)
    assert (result.value, result.interval, result.p_value, result.drop_one) == (None,) * 4


def test_dropping_the_only_policy_that_differs_leaves_no_range(
    generator: np.random.Generator,
) -> None:
    result = pearson(np.array([0.0] * 4 + [1.0]), np.linspace(0, 1, 5), generator=generator)
    assert result.value is not None
    assert result.drop_one is None


def test_fisher_interval_holds_its_level(generator: np.random.Generator) -> None:
    """2000 draws of 8 pairs at rho = 0.8: standard error 0.005, tolerance four of them."""
    covered = 0
    for _ in range(2000):
        x, noise = generator.normal(size=(2, 8))
        r = np.corrcoef(x, 0.8 * x + 0.6 * noise)[0, 1]
        interval = fisher_interval(float(r), 8, variance=1.0, confidence=0.95)
        assert interval is not None
        covered += interval[0] <= 0.8 <= interval[1]
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_published_values_of_simpler(real_data: Path) -> None:
    tasks = json.loads((real_data / "simpler_success_rates.json").read_text())["tasks"]
    assert len(tasks) == 6
    for task in tasks.values():
        imagined, real = np.array(task["simulated"]), np.array(task["real"])
        assert mmrv(imagined, real) == pytest.approx(task["mmrv"], abs=1e-4)
        assert mmrv(real, imagined) == pytest.approx(task["mmrv_swapped_arguments"], abs=1e-4)
        r = linear(imagined, real)
        assert r == pytest.approx(task["pearson"], abs=1e-4)


def test_mmrv_charges_the_real_difference_of_the_worst_swap() -> None:
    imagined, real = np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.4, 0.9])
    assert mmrv(imagined, real) == pytest.approx((0.8 + 0.5 + 0.8) / 3)
    assert mmrv(real, imagined) == pytest.approx((0.8 + 0.4 + 0.8) / 3)


def test_mmrv_ignores_the_scale_of_imagination(generator: np.random.Generator) -> None:
    imagined, real = generator.random((2, 9))
    assert mmrv(imagined, real) == mmrv(imagined**3 / 2, real)


def test_mmrv_charges_imagined_ties_to_the_worse_policy_or_to_both() -> None:
    imagined, real = np.array([0.5, 0.5, 0.9]), np.array([0.2, 0.6, 0.9])
    assert mmrv(imagined, real) == pytest.approx(0.4 / 3)
    assert mmrv_with_ties(imagined, real) == pytest.approx(0.8 / 3)
    assert mmrv(np.zeros(4), np.array([0.0, 0.0, 1.0, 1.0])) == 0.5  # the better half goes free
    assert mmrv_with_ties(np.zeros(4), np.array([0.0, 0.0, 1.0, 1.0])) == 1.0


def test_mmrv_with_ties_equals_mmrv_without_ties(generator: np.random.Generator) -> None:
    imagined, real = generator.random((2, 9))
    assert mmrv_with_ties(imagined, real) == mmrv(imagined, real)


def test_rounding_breaks_no_tie() -> None:
    imagined, real = np.array([0.1 + 0.2, 0.3]), np.array([0.0, 1.0])
    assert mmrv(imagined, real) == mmrv(imagined[::-1], real) == 0.5


def test_unpaired_rates_are_refused(generator: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"same two or more policies, got 3 and 2\."):
        check_pairs(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="two or more policies"):
        mmrv(np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="must be finite"):
        spearman(np.array([0.1, np.nan]), np.zeros(2), generator=generator)
