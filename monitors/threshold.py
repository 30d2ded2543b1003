"""A threshold that a nominal episode exceeds, at any time, with probability at most alpha."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from worldmodel.monitors.errors import require_fitted


def episodes_needed(alpha: float) -> int:
    """Fewest calibration episodes that support `alpha`.

    >>> episodes_needed(0.05), episodes_needed(0.01)
    (19, 99)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must lie in (0, 1), got {alpha}.")
    return math.ceil(round(1 / alpha, 9)) - 1


def smallest_alpha(num_episodes: int) -> float:
    """Smallest `alpha` that `num_episodes` calibration episodes support.

    >>> smallest_alpha(19)
    0.05
    """
    return 1 / (num_episodes + 1)


class EpisodeThreshold:
    """Split-conformal bound on an episode's supremum (Vovk et al. 2005).

    If the next episode is exchangeable with the calibration episodes, the chance that its score
    exceeds `value_` at any time is at most `alpha`, however the scores within an episode depend on
    each other. The chance is over calibration sets and episodes together. An episode that runs
    longer than the calibration episodes did is not exchangeable with them.
    """

    def __init__(self, alpha: float) -> None:
        self.num_needed = episodes_needed(alpha)
        self.alpha = alpha

    def fit(self, maxima: Float[np.ndarray, " episode"]) -> EpisodeThreshold:
        """Learn from the largest score of each calibration episode."""
        n = len(maxima)
        if n < self.num_needed:
            raise ValueError(
                f"`alpha`={self.alpha:g} needs at least {self.num_needed} calibration episodes, "
                f"got {n}, which support {smallest_alpha(n):.3g} at best."
            )
        if not np.isfinite(maxima).all():
            raise ValueError(
                "`maxima` must be finite; a calibration episode has no score or a broken one."
            )
        rank = math.ceil(round((n + 1) * (1 - self.alpha), 9))
        self.value_ = float(np.sort(maxima)[rank - 1])
        return self

    def exceeded(self, score: float) -> bool:
        """Whether `score` is an alarm."""
        require_fitted(self, "value_")
        return bool(score > self.value_)
