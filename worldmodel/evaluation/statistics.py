"""Intervals of success rates, and the agreement of imagined with real success rates.

Functions that compare two arrays of rates take the imagined rates first, the real ones second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

Rates = Float[np.ndarray, " policy"]

LEAST_POLICIES = 4
"""Fewest policies with a correlation, and fewest families with an interval of it."""
EXACT_POLICIES = 8
"""Up to this many policies (8! = 40320 orders) the permutation test is exact."""
ROUNDING = 1e-9
"""Rates that differ by less are equal, such as 0.3 and 0.1 + 0.2."""
SAMPLED_ORDERS = 20_000
"""Random orders for more policies; the smallest p-value is 1 / `SAMPLED_ORDERS`."""


@dataclass(frozen=True)
class Proportion:
    """Proportion of `n` trials and its confidence interval."""

    value: float
    low: float
    high: float
    n: int


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Proportion:
    """Wilson score interval (Wilson 1927): within [0, 1], wide for small `n`.

    >>> wilson_interval(0, 10)
    Proportion(value=0.0, low=0.0, high=0.277..., n=10)
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"`successes` must lie in [0, n] and `n` above 0, got {successes} of {n}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Proportion(successes / n, float(interval.low), float(interval.high), n)


@dataclass(frozen=True)
class SuccessBounds:
    """Success rate of rollouts that passed a gate, and bounds for all rollouts."""

    gated: Proportion | None
    """Success rate of the trusted rollouts; None if the gate stopped all."""
    coverage: Proportion
    """Fraction of rollouts that passed the gate."""
    pessimistic: Proportion
    """Every rollout that the gate stopped counts as a failure."""
    optimistic: Proportion
    """Every rollout that the gate stopped counts as a success."""


def success_bounds(
    success: Bool[np.ndarray, " rollout"],
    trusted: Bool[np.ndarray, " rollout"],
    *,
    confidence: float = 0.95,
) -> SuccessBounds:
    """Success rate of the trusted rollouts, and worst-case bounds for all rollouts.

    A gate that stops failures more often than successes biases `gated`. The success rate of all
    rollouts lies between `pessimistic` and `optimistic` for every gate (Manski 1990).
    """
    n = len(success)
    num_trusted, num_good = int(trusted.sum()), int((success & trusted).sum())

    def share(successes: int, trials: int) -> Proportion:
        return wilson_interval(successes, trials, confidence=confidence)

    return SuccessBounds(
        gated=share(num_good, num_trusted) if num_trusted else None,
        coverage=share(num_trusted, n),
        pessimistic=share(num_good, n),
        optimistic=share(num_good + n - num_trusted, n),
    )


@dataclass(frozen=True)
class Correlation:
    """Correlation over `k` policies; fields are None where they are undefined.

    Three policies or fewer have no correlation: two give 1 or -1 whatever they do.
    """

    value: float | None
    """None for fewer than `LEAST_POLICIES`, or if one rate is the same for all policies."""
    interval: tuple[float, float] | None
    """None without a value, and for |value| = 1, where the formula gives a width of zero."""
    p_value: float | None
    """Two-sided p-value of the permutation test."""
    drop_one: tuple[float, float] | None
    """Lowest and highest leave-one-policy-out value; None if any of them is undefined."""
    k: int


def pearson(
    imagined: Rates, real: Rates, *, generator: np.random.Generator, confidence: float = 0.95
) -> Correlation:
    """Pearson correlation with the interval of Fisher 1921.

    `generator` draws the permutations if there are more than `EXACT_POLICIES` policies. Interval
    and p-value assume independent policies; those of `pigeonhole.correlations` do not.
    """
    check_pairs(imagined, real)
    k = len(real)
    if k < LEAST_POLICIES:
        return Correlation(None, None, None, None, k)
    value = linear(imagined, real)
    return Correlation(
        value=value,
        interval=fisher_interval(value, k, variance=1.0, confidence=confidence),
        p_value=permutation_p_value(imagined, real, generator=generator),
        drop_one=drop_one_range(linear, imagined, real),
        k=k,
    )


def spearman(
    imagined: Rates, real: Rates, *, generator: np.random.Generator, confidence: float = 0.95
) -> Correlation:
    """Spearman rank correlation (ties: mean rank), with the interval of Bonett and Wright 2000.

    `generator` as in `pearson`.
    """
    check_pairs(imagined, real)
    k = len(real)
    if k < LEAST_POLICIES:
        return Correlation(None, None, None, None, k)
    value = monotone(imagined, real)
    variance = 1.0 if value is None else 1 + value**2 / 2
    ranks = stats.rankdata(imagined), stats.rankdata(real)
    return Correlation(
        value=value,
        interval=fisher_interval(value, k, variance=variance, confidence=confidence),
        p_value=permutation_p_value(*ranks, generator=generator),
        drop_one=drop_one_range(monotone, imagined, real),
        k=k,
    )


def mmrv(imagined: Rates, real: Rates) -> float:
    """Mean maximum rank violation of Li et al. 2024 (SIMPLER, arXiv:2405.05941); 0 is best.

    For each policy, the largest difference in real success to a policy that imagination ranks on
    the wrong side of it; then the mean over policies. Swapping the arguments changes the result.
    The published definition charges a tie in imagination to the worse of the two policies only, so
    a predictor that cannot tell policies apart pays less than one that ranks them wrongly; see
    `mmrv_with_ties`. Rates that differ by rounding are ties.

    >>> round(mmrv(np.array([0.1, 0.2, 0.9]), np.array([0.5, 0.2, 0.9])), 3)
    0.2
    """
    check_pairs(imagined, real)
    ahead, truly_ahead = (order(rates) < 0 for rates in (imagined, real))
    return float(((ahead != truly_ahead) * np.abs(real[:, None] - real)).max(axis=1).mean())


def mmrv_with_ties(imagined: Rates, real: Rates) -> float:
    """MMRV that charges a tie in imagination to both policies, as if it were ranked wrongly.

    At least `mmrv`, and equal to it if imagination ties no two policies.

    >>> mmrv(np.zeros(2), np.array([0.0, 1.0])), mmrv_with_ties(np.zeros(2), np.array([0.0, 1.0]))
    (0.5, 1.0)
    """
    check_pairs(imagined, real)
    misordered = order(imagined) != order(real)
    return float((misordered * np.abs(real[:, None] - real)).max(axis=1).mean())


def order(rates: Rates) -> Float[np.ndarray, "policy policy"]:
    """Sign of each rate minus each other; 0 for rates that differ by rounding only."""
    difference = rates[:, None] - rates
    return np.where(np.abs(difference) < ROUNDING, 0.0, np.sign(difference))


def check_pairs(imagined: np.ndarray, real: np.ndarray) -> None:
    """Raise unless both arrays hold one finite rate per policy, for at least two policies."""
    if imagined.shape != real.shape or len(real) < 2:
        raise ValueError(
            "`imagined` and `real` must hold one rate each for the same two or more policies, "
            f"got {len(imagined)} and {len(real)}."
        )
    if not (np.isfinite(imagined).all() and np.isfinite(real).all()):
        raise ValueError("`imagined` and `real` must be finite.")


def standardized(values: Rates) -> Rates | None:
    """Values shifted to mean 0 and scaled to norm 1; None if all are equal."""
    if np.ptp(values) == 0:
        return None
    centered = values - values.mean()
    return centered / np.linalg.norm(centered)


def linear(x: Rates, y: Rates) -> float | None:
    """Pearson correlation coefficient; None if `x` or `y` is constant.

    >>> round(linear(np.array([0.0, 0.5, 1.0]), np.array([0.4, 0.2, 0.6])), 3)
    0.5
    """
    u, v = standardized(x), standardized(y)
    return None if u is None or v is None else float(np.clip(u @ v, -1.0, 1.0))


def monotone(x: Rates, y: Rates) -> float | None:
    """Spearman correlation coefficient; None if `x` or `y` is constant."""
    return linear(stats.rankdata(x), stats.rankdata(y))


def fisher_interval(
    value: float | None, k: int, *, variance: float, confidence: float
) -> tuple[float, float] | None:
    """Interval of a correlation: atanh(value) is near normal with variance `variance` / (k - 3).

    >>> low, high = fisher_interval(0.9, 4, variance=1.0, confidence=0.95)
    >>> round(low, 2), round(high, 2)
    (-0.45, 1.0)
    """
    if value is None or k <= 3 or math.isclose(abs(value), 1.0):
        return None
    scale = math.sqrt(variance / (k - 3))
    low, high = np.tanh(stats.norm.interval(confidence, math.atanh(value), scale))
    return float(low), float(high)


def permutation_p_value(x: Rates, y: Rates, *, generator: np.random.Generator) -> float | None:
    """Two-sided permutation p-value of the Pearson correlation; None if `x` or `y` is constant.

    Exact for up to `EXACT_POLICIES` policies. For more, `SAMPLED_ORDERS` random orders, which
    include the given one (Phipson and Smyth 2010), so that p is never 0.
    """
    u, v = standardized(x), standardized(y)
    if u is None or v is None:
        return None
    if len(u) <= EXACT_POLICIES:
        orders = u[np.array(list(itertools.permutations(range(len(u)))))]
    else:
        orders = generator.permuted(np.tile(u, (SAMPLED_ORDERS, 1)), axis=1)
        orders[0] = u
    # The margin: orders whose correlations differ only by rounding are ties.
    return float((np.abs(orders @ v) >= abs(u @ v) - 1e-12).mean())


def drop_one_range(
    coefficient: Callable[[Rates, Rates], float | None], x: Rates, y: Rates
) -> tuple[float, float] | None:
    """Lowest and highest `coefficient` with one policy left out; None if any is undefined."""
    values = [coefficient(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if len(known) == len(values) else None
