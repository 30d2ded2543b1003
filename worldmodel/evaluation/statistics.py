"""How far a success rate, and an agreement between imagined and real ones, can be believed.

Wherever two rows of rates are compared, the imagined one comes first and the real one second.
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

EXACT_POLICIES = 8
"""Up to so many policies (8! = 40320 orders) the permutation test visits every order."""
SAMPLED_ORDERS = 20_000
"""Random orders beyond that; they bound the smallest p-value."""
CURVE_LEVELS = 200
"""Points of a risk-coverage curve: enough to draw it."""


@dataclass(frozen=True)
class Proportion:
    """A share of `n` trials and its interval."""

    value: float
    low: float
    high: float
    n: int


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Proportion:
    """Score interval of Wilson 1927: never outside [0, 1], wide where `n` is small.

    >>> wilson_interval(0, 10)
    Proportion(value=0.0, low=0.0, high=0.277..., n=10)
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"`successes` must lie in [0, n] and `n` above 0, got {successes} of {n}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
    z = normal_quantile(confidence)
    share = successes / n
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    # At 0 and n successes the exact end is 0 or 1; rounding may leave it by an epsilon.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return Proportion(share, low, high, n)


def normal_quantile(confidence: float) -> float:
    """Half-width, in standard deviations, of the central interval of a normal distribution."""
    return float(stats.norm.ppf((1 + confidence) / 2))


@dataclass(frozen=True)
class SuccessBounds:
    """Success of rollouts of which a monitor's gate let only some through."""

    gated: Proportion | None
    """Success among the rollouts let through; None if there were none."""
    coverage: Proportion
    """Share of rollouts let through."""
    pessimistic: Proportion
    """Every gated rollout counted as a failure."""
    optimistic: Proportion
    """Every gated rollout counted as a success."""


def success_bounds(
    success: Bool[np.ndarray, " rollout"],
    trusted: Bool[np.ndarray, " rollout"],
    *,
    confidence: float = 0.95,
) -> SuccessBounds:
    """Success and its bounds where only rollouts with `trusted` were let through.

    A gate that stops rollouts unevenly biases `gated`; the truth about rollouts of this kind lies
    between `pessimistic` and `optimistic` whatever the gate does (Manski 1990).
    """
    n = len(success)
    let_through, good = int(trusted.sum()), int((success & trusted).sum())

    def share(successes: int, trials: int) -> Proportion:
        return wilson_interval(successes, trials, confidence=confidence)

    return SuccessBounds(
        gated=share(good, let_through) if let_through else None,
        coverage=share(let_through, n),
        pessimistic=share(good, n),
        optimistic=share(good + n - let_through, n),
    )


@dataclass(frozen=True)
class Correlation:
    """A correlation over `k` policies; None marks what the data cannot say."""

    value: float | None
    """None if either side is the same for all policies."""
    interval: tuple[float, float] | None
    """None for k <= 3 and for a perfect correlation, where the formula would claim certainty."""
    p_value: float | None
    """Share of all ways to pair the rates that correlate at least as strongly, of either sign."""
    drop_one: tuple[float, float] | None
    """Least and greatest value with one policy left out; None if one of these is undefined."""
    k: int


def pearson(
    imagined: Rates, real: Rates, *, generator: np.random.Generator, confidence: float = 0.95
) -> Correlation:
    """Pearson's r with the interval of Fisher 1921.

    `generator` draws the orders of the permutation test beyond `EXACT_POLICIES` policies.
    """
    check_pairs(imagined, real)
    value, k = linear(imagined, real), len(real)
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
    """Spearman's rho, ties at their mean rank, with the interval of Bonett and Wright 2000.

    `generator` as in `pearson`.
    """
    check_pairs(imagined, real)
    value, k = monotone(imagined, real), len(real)
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

    For each policy, the greatest real difference to a policy that imagination puts on the wrong
    side of it, averaged. The arguments do not commute.

    >>> round(mmrv(np.array([0.1, 0.2, 0.9]), np.array([0.5, 0.2, 0.9])), 3)
    0.2
    """
    check_pairs(imagined, real)
    misordered = (imagined[:, None] < imagined) != (real[:, None] < real)
    return float((misordered * np.abs(real[:, None] - real)).max(axis=1).mean())


def check_pairs(imagined: np.ndarray, real: np.ndarray) -> None:
    """Raise unless both hold one finite rate for each of at least two policies."""
    if imagined.shape != real.shape or len(real) < 2:
        raise ValueError(
            "`imagined` and `real` need one rate each for the same two or more policies, "
            f"got {len(imagined)} and {len(real)}."
        )
    if not (np.isfinite(imagined).all() and np.isfinite(real).all()):
        raise ValueError("`imagined` and `real` must be finite.")


def standardized(values: Rates) -> Rates | None:
    """The values shifted to mean 0 and scaled to norm 1; None if they are all the same."""
    if np.ptp(values) == 0:
        return None
    centered = values - values.mean()
    return centered / np.linalg.norm(centered)


def linear(x: Rates, y: Rates) -> float | None:
    """Pearson's coefficient.

    >>> round(linear(np.array([0.0, 0.5, 1.0]), np.array([0.4, 0.2, 0.6])), 3)
    0.5
    """
    u, v = standardized(x), standardized(y)
    return None if u is None or v is None else float(np.clip(u @ v, -1.0, 1.0))


def monotone(x: Rates, y: Rates) -> float | None:
    """Spearman's coefficient."""
    return linear(stats.rankdata(x), stats.rankdata(y))


def fisher_interval(
    value: float | None, k: int, *, variance: float, confidence: float
) -> tuple[float, float] | None:
    """Interval of a correlation: atanh(value) is nearly normal, of variance `variance` / (k - 3).

    >>> low, high = fisher_interval(0.9, 4, variance=1.0, confidence=0.95)
    >>> round(low, 2), round(high, 2)
    (-0.45, 1.0)
    """
    if value is None or k <= 3 or math.isclose(abs(value), 1.0):
        return None
    half = normal_quantile(confidence) * math.sqrt(variance / (k - 3))
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)


def permutation_p_value(x: Rates, y: Rates, *, generator: np.random.Generator) -> float | None:
    """Two-sided p-value of Pearson's coefficient, were the pairing of `x` with `y` by chance.

    Exact up to `EXACT_POLICIES` policies; beyond, from `SAMPLED_ORDERS` random orders, the given
    one counted among them (Phipson and Smyth 2010), so never 0.
    """
    u, v = standardized(x), standardized(y)
    if u is None or v is None:
        return None
    if len(u) <= EXACT_POLICIES:
        orders = u[np.array(list(itertools.permutations(range(len(u)))))]
    else:
        orders = generator.permuted(np.tile(u, (SAMPLED_ORDERS, 1)), axis=1)
        orders[0] = u
    # The margin lets orders that only rounding tells apart count as equal.
    return float((np.abs(orders @ v) >= abs(u @ v) - 1e-12).mean())


def drop_one_range(
    coefficient: Callable[[Rates, Rates], float | None], x: Rates, y: Rates
) -> tuple[float, float] | None:
    """Least and greatest `coefficient` over the ways to leave one policy out."""
    values = [coefficient(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if len(known) == len(values) else None


def risk_coverage(
    confidence: Float[np.ndarray, " prediction"], error: Float[np.ndarray, " prediction"]
) -> tuple[Float[np.ndarray, " level"], Float[np.ndarray, " level"]]:
    """Coverage and risk: mean error of the share of predictions that are most confident.

    Predictions of equal confidence enter together. At most `CURVE_LEVELS` levels are kept.

    >>> risk_coverage(np.array([0.9, 0.5, 0.9, 0.1]), np.array([0.0, 4.0, 2.0, 6.0]))
    (array([0.5 , 0.75, 1.  ]), array([1., 2., 3.]))
    """
    order = np.argsort(-confidence, kind="stable")
    kept = np.arange(1, len(order) + 1)
    mean_error = np.cumsum(error[order]) / kept
    ends = np.flatnonzero(np.diff(confidence[order], append=-np.inf))
    levels = ends[np.unique(np.linspace(0, len(ends) - 1, CURVE_LEVELS).round().astype(int))]
    return kept[levels] / len(order), mean_error[levels]
