"""Episode threshold: a nominal episode ever exceeds it with probability at most alpha."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from worldmodel.monitors.errors import require_fitted


def episodes_needed(alpha: float, delta: float | None = None) -> int:
    """Fewest calibration episodes that support `alpha`, with probability 1 - `delta` if given.

    >>> episodes_needed(0.05), episodes_needed(0.01)
    (19, 99)
    >>> episodes_needed(0.05, delta=0.05), episodes_needed(0.01, delta=0.05)
    (59, 299)
    """
    for name, value in {"alpha": alpha, "delta": delta}.items():
        if value is not None and not 0 < value < 1:
            raise ValueError(f"`{name}` must lie in (0, 1), got {value}.")
    if delta is None:
        return math.ceil(round(1 / alpha, 9)) - 1
    return math.ceil(round(math.log(delta) / math.log1p(-alpha), 9))


def smallest_alpha(num_episodes: int, delta: float | None = None) -> float:
    """Smallest `alpha` that `num_episodes` calibration episodes support.

    >>> smallest_alpha(19)
    0.05
    >>> round(smallest_alpha(59, delta=0.05), 4)
    0.0495
    """
    if delta is None or num_episodes == 0:
        return 1 / (num_episodes + 1)
    return 1 - delta ** (1 / num_episodes)


class EpisodeThreshold:
    """Split-conformal bound on an episode's supremum (Vovk et al. 2005).

    If the next episode is exchangeable with the calibration episodes, the probability that its
    score ever exceeds `value_` is at most `alpha`, for any dependence within an episode. The
    probability is over calibration sets and episodes together (marginal validity). An episode
    longer than the calibration episodes is not exchangeable with them.

    With `delta`, episodes must be independent, and the probability given the calibration set is at
    most `alpha` for all but a share `delta` of calibration sets (conditional validity: Wilks 1941;
    Vovk 2012).
    """

    def __init__(self, alpha: float, *, delta: float | None = None) -> None:
        self.num_needed = episodes_needed(alpha, delta)
        self.alpha, self.delta = alpha, delta

    def fit(self, maxima: Float[np.ndarray, " episode"]) -> EpisodeThreshold:
        """Fit to the largest score of each calibration episode."""
        n = len(maxima)
        if n < self.num_needed:
            target = f"`alpha`={self.alpha:g}"
            if self.delta is not None:
                target += f" with `delta`={self.delta:g}"
            raise ValueError(
                f"{target} needs at least {self.num_needed} calibration episodes, "
                f"got {n}, which support {smallest_alpha(n, self.delta):.3g} at best."
            )
        if not np.isfinite(maxima).all():
            raise ValueError(
                "`maxima` must be finite; a calibration episode has a missing or invalid score."
            )
        self.value_ = float(np.sort(maxima)[self._rank(n) - 1])
        return self

    def _rank(self, n: int) -> int:
        """Rank of the threshold among `n` sorted maxima, counted from 1.

        The probability of exceeding the k-th maximum is Beta(n + 1 - k, k) over calibration sets:
        its mean is 1 - k / (n + 1), and P(Beta > alpha) = P(Binomial(n, alpha) <= n - k).
        """
        if self.delta is None:
            return math.ceil(round((n + 1) * (1 - self.alpha), 9))
        from scipy.special import bdtr

        above = bdtr(np.arange(n), n, self.alpha)  # P(Beta > alpha) by number of maxima above
        return n + 1 - int(np.sum(above <= self.delta * (1 + 1e-8)))

    def exceeded(self, score: float) -> bool:
        """Whether `score` is an alarm."""
        require_fitted(self, "value_")
        return bool(score > self.value_)
