"""A threshold that a nominal episode exceeds, at any time, with probability at most alpha."""

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

    If the next episode is exchangeable with the calibration episodes, the chance that its score
    exceeds `value_` at any time is at most `alpha`, however the scores within an episode depend on
    each other. The chance is over calibration sets and episodes together. An episode that runs
    longer than the calibration episodes did is not exchangeable with them.

    With `delta`, the chance for future episodes is at most `alpha` for all calibration sets but a
    share of at most `delta`, if episodes are independent (Wilks 1941; Vovk 2012, conditional
    validity): this threshold is then likely to keep its rate, not only thresholds on average.
    """

    def __init__(self, alpha: float, *, delta: float | None = None) -> None:
        self.num_needed = episodes_needed(alpha, delta)
        self.alpha, self.delta = alpha, delta

    def fit(self, maxima: Float[np.ndarray, " episode"]) -> EpisodeThreshold:
        """Learn from the largest score of each calibration episode."""
        n = len(maxima)
        if n < self.num_needed:
            promise = f"`alpha`={self.alpha:g}"
            if self.delta is not None:
                promise += f" with `delta`={self.delta:g}"
            raise ValueError(
                f"{promise} needs at least {self.num_needed} calibration episodes, "
                f"got {n}, which support {smallest_alpha(n, self.delta):.3g} at best."
            )
        if not np.isfinite(maxima).all():
            raise ValueError(
                "`maxima` must be finite; a calibration episode has no score or a broken one."
            )
        self.value_ = float(np.sort(maxima)[self._rank(n) - 1])
        return self

    def _rank(self, n: int) -> int:
        """Which of `n` sorted maxima, counted from 1, is the threshold.

        The chance of exceeding the k-th of them is Beta(n + 1 - k, k) over calibration sets: its
        mean is 1 - k / (n + 1), and P(Beta > alpha) = P(Binomial(n, alpha) <= n - k).
        """
        if self.delta is None:
            return math.ceil(round((n + 1) * (1 - self.alpha), 9))
        from scipy.special import bdtr

        above = bdtr(np.arange(n), n, self.alpha)  # P(Beta > alpha) with so many maxima above
        return n + 1 - int(np.sum(above <= self.delta * (1 + 1e-8)))

    def exceeded(self, score: float) -> bool:
        """Whether `score` is an alarm."""
        require_fitted(self, "value_")
        return bool(score > self.value_)
