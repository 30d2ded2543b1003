"""Rank correlation of confidence and error: Shepherd's π, AUSE and Kendall's τ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

OUTLIER_DISTANCE = 6.0
"""Mean squared Mahalanobis distance over resamples from which a pair is an outlier."""
MAX_GROUPS = 1000
"""Largest number of groups of pairs that are resampled, or removed, together."""
MAX_PAIRS = 100_000
"""Largest number of pairs in a summary, drawn uniformly. Subsampling adds a standard error of at
most 0.003 to π."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class AssociationSummary:
    """Agreement of score and error rankings, with 95% bootstrap intervals over episodes."""

    num_episodes: int
    num_pairs: int
    """Pairs in the input."""
    num_used: int
    """Pairs drawn from the input; all metrics use only these."""
    num_outliers: int
    """Outliers that π ignores."""
    pi: float
    """Shepherd's π of score and error: -1 if the score falls strictly as errors grow."""
    pi_interval: Interval
    ause: float
    """Area under the sparsification error curve; 0 for ranking by the errors themselves."""
    ause_interval: Interval
    ause_chance: float
    """Expected AUSE of a random ranking; depends only on the errors."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def shepherds_pi(
    score: Float[np.ndarray, " n"],
    error: Float[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
    num_resamples: int = 200,
) -> tuple[float, Bool[np.ndarray, " n"]]:
    """Spearman's ρ without bivariate outliers, and the outlier mask.

    Schwarzkopf, De Haas and Rees 2012 (doi:10.3389/fnhum.2012.00200): a pair is an outlier if its
    squared Mahalanobis distance, averaged over resamples of the pairs, is at least 6. The average
    is a quadratic form in the resamples' means and covariances, so one pass over the pairs is
    enough. More than 1000 pairs are resampled in 1000 interleaved groups. There is no p-value,
    because subpatches of a video are not independent. NaN if score or error is constant.
    """
    _check_errors(score, error)
    monomials = _monomials(score, error)
    groups = min(len(error), MAX_GROUPS)
    sums = _sums(monomials, np.arange(len(error)) % groups, groups)
    draws = rng.multinomial(groups, np.full(groups, 1 / groups), size=num_resamples)
    outlier = monomials @ _distance_forms(draws @ sums).mean(axis=0) >= OUTLIER_DISTANCE
    return _spearman(_Order.of(score), _Order.of(error), ~outlier), outlier


def ause(score: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]) -> float:
    """Area under the sparsification error curve (Ilg et al. 2018, arXiv:1802.07095).

    The sparsification curve is the mean error of the remaining pairs, over the mean error of all,
    as the lowest scores are removed first. AUSE integrates its difference from the oracle curve,
    which removes the largest errors first. Ties are removed evenly, so a constant score gets the
    expected AUSE of a random ranking. NaN if all errors are 0.

    >>> ause(np.array([0.9, 0.5]), np.array([1.0, 3.0]))  # the ranking by the errors themselves
    0.0
    """
    _check_errors(score, error)
    areas = []
    for distrust in (-score, error):
        _, group = np.unique(distrust, return_inverse=True)
        mass, total = np.bincount(group), np.bincount(group, error)
        areas.append(float(_kept_error(mass[None], total[None])[0]))
    return areas[0] - areas[1]


def kendall_tau(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], *, level: float = 0.95
) -> tuple[float, Interval]:
    """Kendall's τ-b of independent pairs, and its confidence interval.

    artanh τ is treated as normal with variance 0.437 / (n - 4) (Fieller, Hartley and Pearson 1957).
    |τ| = 1 is reduced by half a pair first, so that the interval is not a single point. [-1, 1] for
    n <= 4; NaN if x or y is constant.
    """
    from scipy.special import ndtri
    from scipy.stats import kendalltau

    _check_pairs(x, y)
    n = len(x)
    tau = float(kendalltau(x, y).statistic) if n > 1 else float("nan")
    if np.isnan(tau):
        return tau, (tau, tau)
    if n <= 4:
        return tau, (-1.0, 1.0)
    largest = 1 - 2 / (n * (n - 1))
    centre = np.arctanh(np.clip(tau, -largest, largest))
    half = ndtri((1 + level) / 2) * np.sqrt(0.437 / (n - 4))
    return tau, (min(float(np.tanh(centre - half)), tau), max(float(np.tanh(centre + half)), tau))


def summarize_association(
    scores: Sequence[Float[np.ndarray, ...]],
    errors: Sequence[Float[np.ndarray, ...]],
    *,
    rng: np.random.Generator,
    num_resamples: int = 200,
) -> AssociationSummary:
    """π and AUSE of all pairs, one array per episode, with bootstrap intervals over episodes.

    A higher score means more trust: pass confidence, or a negated variance. Each resample of
    episodes has its own outliers, by plain Mahalanobis distance. Percentile intervals (95%) are 5
    to 20% too narrow for 30 episodes, and NaN for one.
    """
    if len(scores) != len(errors) or not len(errors):
        raise ValueError(
            "`scores` and `errors` need one array per episode, for the same episodes and at least "
            f"one; got {len(scores)} and {len(errors)}."
        )
    for one, other in zip(scores, errors, strict=True):
        _check_errors(one, other)
    score, error, episode = _draw(scores, errors, rng)
    pi, outlier = shepherds_pi(score, error, rng=rng)
    share = np.full(len(scores), 1 / len(scores))
    draws = rng.multinomial(len(scores), share, size=num_resamples).astype(np.float64)
    pi_values, ause_values = _resample(score, error, episode, draws)
    return AssociationSummary(
        num_episodes=len(scores),
        num_pairs=sum(e.size for e in errors),
        num_used=len(error),
        num_outliers=int(outlier.sum()),
        pi=pi,
        pi_interval=_percentiles(pi_values, len(scores)),
        ause=ause(score, error),
        ause_interval=_percentiles(ause_values, len(scores)),
        ause_chance=ause(np.zeros_like(error), error),
    )


def _draw(
    scores: Sequence[np.ndarray], errors: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Score, error and episode of all pairs, or of `MAX_PAIRS` drawn uniformly."""
    score = np.concatenate([s.ravel() for s in scores])
    error = np.concatenate([e.ravel() for e in errors])
    episode = np.repeat(np.arange(len(errors)), [e.size for e in errors])
    if len(error) > MAX_PAIRS:
        drawn = rng.choice(len(error), MAX_PAIRS, replace=False)
        score, error, episode = score[drawn], error[drawn], episode[drawn]
    return score.astype(np.float64), error.astype(np.float64), episode


def _resample(
    score: Float64[np.ndarray, " n"],
    error: Float64[np.ndarray, " n"],
    episode: Int[np.ndarray, " n"],
    draws: Float64[np.ndarray, "resample episode"],
) -> tuple[Float64[np.ndarray, " resample"], Float64[np.ndarray, " resample"]]:
    """π and AUSE of each resample, with episodes weighted by their number of draws.

    For AUSE, values are binned into 1000 equal parts by rank, which changes it by less than 0.001.
    """
    monomials, distrust, loss = _monomials(score, error), _Order.of(-score), _Order.of(error)
    forms = _distance_forms(draws @ _sums(monomials, episode, draws.shape[1]))
    pi_values = [
        -_spearman(distrust, loss, draw[episode] * (monomials @ form < OUTLIER_DISTANCE))
        for draw, form in zip(draws, forms, strict=True)
    ]
    areas = []
    for order in (distrust, loss):
        cell = episode * MAX_GROUPS + (order.last - 1) * MAX_GROUPS // len(error)
        size = draws.shape[1] * MAX_GROUPS
        tables = np.bincount(cell, minlength=size), np.bincount(cell, error, minlength=size)
        areas.append(_kept_error(*(draws @ table.reshape(-1, MAX_GROUPS) for table in tables)))
    return np.array(pi_values), areas[0] - areas[1]


def _percentiles(values: Float64[np.ndarray, " resample"], num_episodes: int) -> Interval:
    """95% percentile interval; NaN for a single episode."""
    if num_episodes < 2 or np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class _Order:
    """Sort order of values, reused by every resample."""

    index: Int[np.ndarray, " n"]
    """Indices that sort the values."""
    first: Int[np.ndarray, " n"]
    """Number of smaller values."""
    last: Int[np.ndarray, " n"]
    """Number of smaller or equal values."""

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"]) -> _Order:
        """Sort `values`."""
        index = np.argsort(values)
        new = np.flatnonzero(np.diff(values[index])) + 1
        bounds = np.concatenate(([0], new, [len(values)]))
        first, last = np.empty_like(index), np.empty_like(index)
        first[index] = np.repeat(bounds[:-1], np.diff(bounds))
        last[index] = np.repeat(bounds[1:], np.diff(bounds))
        return cls(index, first, last)

    def running(self, weight: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " positions"]:
        """Cumulative `weight` of the smallest 0, 1, ..., n values."""
        return np.concatenate(([0], np.cumsum(weight[self.index])))


def _spearman(x: _Order, y: _Order, weight: Shaped[np.ndarray, " n"]) -> float:
    """Weighted Spearman's ρ with mean ranks for ties."""
    sums_x, sums_y = x.running(weight), y.running(weight)
    total = weight.sum()  # also twice the mean rank, ties or not
    a = (sums_x[x.first] + sums_x[x.last] - total) / 2
    b = (sums_y[y.first] + sums_y[y.last] - total) / 2
    spread = np.sqrt((weight @ a**2) * (weight @ b**2))
    return float((weight * a) @ b / spread) if spread > 0 else float("nan")


def _kept_error(
    mass: Shaped[np.ndarray, "resample group"], error: Float64[np.ndarray, "resample group"]
) -> Float64[np.ndarray, " resample"]:
    """Area under a sparsification curve; groups are kept in order, each kept or removed evenly.

    `mass` and `error` are sums per group. In a group of mean error m, with mass a and error S in
    the groups before, the mean error at a kept mass u is m + (S - m a) / u; up to mass b this
    integrates to m (b - a) + (S - m a) ln(b / a).
    """
    before, kept = mass.cumsum(axis=-1) - mass, error.cumsum(axis=-1)
    counts = (mass > 0) & (before > 0)
    growth = np.divide(mass, before, out=np.zeros_like(error), where=counts)
    mean = np.divide(error, mass, out=np.zeros_like(error), where=counts)
    area = ((kept - error - mean * before) * np.log1p(growth)).sum(axis=-1)
    total = kept[..., -1]
    return 1.0 + np.divide(area, total, out=np.full_like(total, np.nan), where=total > 0)


def _monomials(
    score: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]
) -> Float64[np.ndarray, "n 6"]:
    """Monomials 1, x, y, x², xy and y² of the standardised score x and error y."""
    pairs = np.stack((score, error), dtype=np.float64)
    pairs -= pairs.mean(axis=1, keepdims=True)
    spread = pairs.std(axis=1, keepdims=True)
    x, y = pairs / np.where(spread > 0, spread, 1.0)
    return np.stack((np.ones_like(x), x, y, x * x, x * y, y * y), axis=1)


def _sums(
    monomials: Float64[np.ndarray, "n 6"], group: Int[np.ndarray, " n"], num_groups: int
) -> Float64[np.ndarray, "group 6"]:
    """Sums of monomials per group."""
    columns = [np.bincount(group, column, minlength=num_groups) for column in monomials.T]
    return np.stack(columns, axis=1)


def _distance_forms(
    sums: Float64[np.ndarray, "resample 6"],
) -> Float64[np.ndarray, "resample 6"]:
    """Squared Mahalanobis distance from each resample, as coefficients of the monomials."""
    n = sums[:, 0]
    mean = sums[:, 1:3] / n[:, None]
    second = sums[:, [3, 4, 4, 5]].reshape(-1, 2, 2) / n[:, None, None]
    scatter = second - mean[:, :, None] * mean[:, None, :]
    unbiased = scatter * (n / np.maximum(n - 1, 1))[:, None, None]
    inverse = np.linalg.pinv(unbiased, hermitian=True)
    linear = np.einsum("rij,rj->ri", inverse, mean)
    constant = np.einsum("ri,ri->r", linear, mean)
    quadratic = (inverse[:, 0, 0], 2 * inverse[:, 0, 1], inverse[:, 1, 1])
    return np.stack((constant, -2 * linear[:, 0], -2 * linear[:, 1], *quadratic), axis=1)


def _check_pairs(x: Float[np.ndarray, ...], y: Float[np.ndarray, ...]) -> None:
    """Raise unless the arrays have one non-empty shape and are finite."""
    if x.shape != y.shape or not x.size:
        raise ValueError(
            f"Both arrays must have the same non-empty shape, got {x.shape} and {y.shape}."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Values to rank must be finite, got NaN or infinity.")


def _check_errors(score: Float[np.ndarray, ...], error: Float[np.ndarray, ...]) -> None:
    """Check pairs, and raise on negative errors."""
    _check_pairs(score, error)
    if error.min() < 0:
        raise ValueError(
            f"`error` must not be negative, got {error.min():.4g}; pass absolute errors."
        )
