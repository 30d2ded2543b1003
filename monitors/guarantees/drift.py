"""Drift detection across a fleet's episodes: a sequential test, valid after every episode."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.guarantees.episode_threshold import episodes_needed, smallest_alpha

SHIFTS = np.array([0.0, 0.5, 1.0])
"""Shifts to bet on, in standard deviations of a nominal episode's score; 0 keeps its stake."""
PATIENCE = 50
"""Episodes until the stakes are first redistributed, on average; later redistribution is rarer."""


def payoffs(rank: Int[np.ndarray, "*any"], size: int) -> Float64[np.ndarray, "*any bet"]:
    """Payoff of each bet per unit staked, if a score ranks `rank`-th highest (from 1) of `size`.

    Cut N(0, 1) into `size` slices of equal mass: the bet on a shift pays `size` times the mass of
    N(shift, 1) in the slice. The mean over all ranks is 1, so the game is fair for uniform ranks.

    >>> payoffs(np.array([1, 2]), 2).round(2).tolist()
    [[1.0, 1.38, 1.68], [1.0, 0.62, 0.32]]
    """
    from scipy.special import ndtr, ndtri

    rank = rank[..., None]
    return size * (ndtr(ndtri(rank / size) + SHIFTS) - ndtr(ndtri((rank - 1) / size) + SHIFTS))


def settled(
    stakes: Float64[np.ndarray, "*any bet"],
    payoff: Float64[np.ndarray, "*any bet"],
    num_before: int,
) -> Float64[np.ndarray, "*any bet"]:
    """Stakes after one more episode: redistribute a share evenly over all bets, then pay out.

    The share is that of the Simple Jumper (Vovk et al. 2021, arXiv:2102.10439), but falls as
    1 / (episodes + `PATIENCE`), so that a long run without drift costs little.
    """
    share = 1 / (num_before + PATIENCE)
    even = share / len(SHIFTS) * stakes.sum(axis=-1, keepdims=True)
    return ((1 - share) * stakes + even) * payoff


def block_means(
    scores: Float[np.ndarray, " episode"], blocks: Sequence[Hashable], *, size: int
) -> Float64[np.ndarray, " block"]:
    """One score per block of episodes, for `FleetDrift`: the mean of its first `size` episodes.

    Episodes of one robot or one day resemble each other and are not exchangeable with others;
    blocks of them may be. Blocks come in order of their last counted episode; smaller ones are left
    out, because a mean over fewer episodes spreads more.

    Args:
        scores: Largest score of each episode, in order of time.
        blocks: Block of each episode, for example its day, its robot, or its number // `size`.
        size: Episodes per block.

    >>> block_means(np.array([1.0, 3.0, 5.0, 9.0, 7.0]), ["mo", "mo", "tu", "mo", "tu"], size=2)
    array([2., 6.])
    """
    if size < 1 or len(blocks) != len(scores):
        raise ValueError(
            f"`size` must be at least 1 and `blocks` hold one block per score, got size {size} and "
            f"{len(blocks)} blocks for {len(scores)} scores."
        )
    waiting: dict[Hashable, list[float]] = {}
    means = []
    for block, score in zip(blocks, scores, strict=True):
        members = waiting.setdefault(block, [])
        members.append(float(score))
        if len(members) == size:
            means.append(math.fsum(members) / size)
    return np.array(means, dtype=np.float64)


class FleetDrift:
    """Detects that a fleet's episodes score higher than the calibration episodes.

    A conformal test martingale (Vovk et al. 2003; Volkhonskiy et al. 2017, arXiv:1706.03415) over
    whole episodes. Each episode is ranked among the calibration episodes *and* all earlier ones. An
    initial capital of 1, the evidence, is bet on high ranks; drift is reported at 1 / `alpha`. For
    exchangeable episodes the ranks are independent and uniform and the game is fair, so the
    probability of *ever* reaching 1 / `alpha` is at most `alpha` (Ville 1939). Ranks among the
    calibration episodes alone would be dependent, and the guarantee would not hold.

    Exchangeable means that any order of calibration and fleet episodes is equally likely. Episodes
    that resemble their neighbours in time, or that come from other robots than the calibration
    episodes, are not: without drift, an autocorrelation of 0.6 raises alarms in most fleets. There,
    test one score per block of episodes (`block_means`), of calibration and of the fleet: blocks
    long enough to forget each other, days over the same robots, or robots, with as many robots in
    the calibration as `alpha` needs episodes.

    Slow changes become part of the history and may go undetected.
    """

    def __init__(self, alpha: float = 0.05, *, seed: int = 0) -> None:
        """Store `alpha`, and the `seed` that breaks ties between equal scores."""
        self.num_needed = episodes_needed(alpha)
        if seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {seed}.")
        self.alpha, self.seed = alpha, seed

    def fit(self, scores: Float[np.ndarray, " episode"]) -> FleetDrift:
        """Start from a capital of 1 and the largest score of each calibration episode.

        The guarantee holds for any number of them, but with too few an alarm comes too late.
        """
        n = len(scores)
        if n < self.num_needed:
            raise ValueError(
                f"`alpha`={self.alpha:g} needs at least {self.num_needed} calibration episodes, "
                f"got {n}, which support {smallest_alpha(n):.3g} at best."
            )
        if not np.isfinite(scores).all():
            raise ValueError(
                "`scores` must be finite; a calibration episode has a missing or invalid score."
            )
        self._begin(scores, n, np.full(len(SHIFTS), 1 / len(SHIFTS)))
        return self

    def _begin(
        self, history: Float[np.ndarray, " episode"], num_calibration: int, stakes: np.ndarray
    ) -> None:
        self._history: list[float] = np.sort(history).tolist()
        self.num_calibration_ = num_calibration
        self.stakes_ = stakes

    @property
    def num_episodes_(self) -> int:
        """Fleet episodes seen so far."""
        return len(self._history) - self.num_calibration_

    @property
    def capital_(self) -> float:
        """Evidence of drift: current capital, from an initial 1."""
        require_fitted(self, "stakes_")
        return float(self.stakes_.sum())

    @property
    def found_(self) -> bool:
        """Whether the capital has reached 1 / `alpha`."""
        return self.capital_ >= 1 / self.alpha

    def update(self, score: float) -> bool:
        """Add a finished episode's largest score; return whether drift has been detected.

        After a detection, later episodes are ignored until the next `fit`.
        """
        if self.found_:
            return True
        if not math.isfinite(score):
            raise ValueError(
                f"`score` must be finite, got {score}; leave out an episode without a score."
            )
        payoff = payoffs(np.array(self._rank(score)), len(self._history) + 1)
        self.stakes_ = settled(self.stakes_, payoff, self.num_episodes_)
        insort(self._history, float(score))
        return self.found_

    def _rank(self, score: float) -> int:
        """Rank of `score` from the top, counted from 1; ties are broken by a seeded draw."""
        history = self._history
        high = bisect_right(history, score)
        equal = high - bisect_left(history, score)
        rank = len(history) - high + 1
        if equal:
            rank += int(np.random.default_rng((self.seed, len(history))).integers(equal + 1))
        return rank

    def arrays(self) -> dict[str, np.ndarray]:
        """Full state as NumPy arrays; grows by 8 bytes per episode."""
        require_fitted(self, "stakes_")
        return {
            "alpha": np.array(self.alpha),
            "seed": np.array(self.seed),
            "num_calibration": np.array(self.num_calibration_),
            "history": np.array(self._history),
            "stakes": self.stakes_.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FleetDrift:
        """Inverse of `arrays`: resumes the test."""
        drift = cls(float(arrays["alpha"]), seed=int(arrays["seed"]))
        history, stakes = np.asarray(arrays["history"]), np.asarray(arrays["stakes"])
        n = int(arrays["num_calibration"])
        if stakes.shape != (len(SHIFTS),) or not (np.isfinite(stakes) & (stakes >= 0)).all():
            raise ValueError(
                f"`stakes` must be {len(SHIFTS)} finite non-negative numbers, got {stakes}."
            )
        if history.ndim != 1 or not np.isfinite(history).all() or not 0 < n <= len(history):
            raise ValueError(
                "`history` must hold finite scores, including those of the calibration set, got "
                f"shape {history.shape} and {n} calibration episodes."
            )
        drift._begin(history, n, stakes.copy())
        return drift
