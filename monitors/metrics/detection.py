"""Detection metrics: AUROC, precision, false positive rate and alarm delay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from worldmodel.monitors.metrics.watched import WatchedEpisode
from worldmodel.monitors.verdict import Level


def auroc(nominal: Float[np.ndarray, " n"], shifted: Float[np.ndarray, " m"]) -> float:
    """AUROC: probability that a shifted score exceeds a nominal one, ties counted half.

    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    from scipy.stats import rankdata

    _need_both(nominal, shifted)
    n, m = len(nominal), len(shifted)
    ranks = rankdata(np.concatenate([nominal, shifted]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def auroc_interval(area: float, n: int, m: int, *, level: float = 0.95) -> tuple[float, float]:
    """Score interval of an AUROC from n nominal and m shifted episodes.

    Method 5 of Newcombe (2006, doi:10.1002/sim.2324). Unlike DeLong and bootstrap intervals, it
    does not shrink to a point at 0 or 1.
    """
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + level) / 2)
    pairs = (n + m) / 2 - 1

    def excess(theta: float) -> float:
        share = pairs * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (area - theta) ** 2 - z**2 * theta * (1 - theta) * (1 + share) / (n * m)

    tiny = 1e-12  # 0 and 1 are spurious roots
    low = 0.0 if area == 0 else brentq(excess, 0.0, min(area, 1 - tiny))
    high = 1.0 if area == 1 else brentq(excess, max(area, tiny), 1.0)
    return float(low), float(high)


def false_positive_rate(
    nominal: Float[np.ndarray, " n"], shifted: Float[np.ndarray, " m"], *, detected: float = 0.95
) -> float:
    """False positive rate at the threshold that detects the share `detected` of shifted scores.

    >>> false_positive_rate(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.5
    """
    _need_both(nominal, shifted)
    rank = math.ceil(round(detected * len(shifted), 9))
    threshold = np.sort(shifted)[::-1][rank - 1]
    return float((nominal >= threshold).mean())


def average_precision(nominal: Float[np.ndarray, " n"], shifted: Float[np.ndarray, " m"]) -> float:
    """Average precision (step-wise); a random score gets the base rate m / (n + m).

    >>> round(average_precision(np.array([0.0, 1.0]), np.array([1.0, 2.0])), 3)
    0.833
    """
    _need_both(nominal, shifted)
    limits = np.unique(shifted)[::-1]
    found = (shifted >= limits[:, None]).sum(axis=1)
    false = (nominal >= limits[:, None]).sum(axis=1)
    gained = np.diff(found, prepend=0) / len(shifted)
    return float((gained * found / (found + false)).sum())


def alarm_delay(
    levels: Int[np.ndarray, " time"], *, onset: int = 0, level: Level = Level.NOTICE
) -> int | None:
    """Frames from `onset` to the first frame of at least `level`; None without an alarm.

    >>> alarm_delay(np.array([0, 0, 1, 0]), onset=1)
    1
    """
    alarms = np.flatnonzero(levels[onset:] >= level)
    return int(alarms[0]) if len(alarms) else None


@dataclass(frozen=True, kw_only=True)
class DetectionSummary:
    """Row of a detection table: one kind of shift against nominal episodes."""

    num_nominal: int
    num_shifted: int
    auroc: float
    """AUROC of the episodes' largest alarm score."""
    auroc_interval: tuple[float, float]
    aupr: float
    """Average precision of the same scores."""
    base_rate: float
    """Share of shifted episodes: the average precision of a random score."""
    fpr95: float
    """False positive rate at the threshold that detects 95% of the shifted episodes."""
    false_alarm_rate: float
    """Share of nominal episodes with any alarm."""
    detected_rate: float
    """Share of shifted episodes with an alarm at or after the onset."""
    detected_interval: tuple[float, float]
    """95% Wilson interval."""
    median_delay: float | None
    """Median frames from onset to alarm, over the detected episodes."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def summarize_detection(
    nominal: Sequence[WatchedEpisode],
    shifted: Sequence[WatchedEpisode],
    *,
    onset: int = 0,
    level: Level = Level.NOTICE,
) -> DetectionSummary:
    """Detection metrics of watched episodes, all cut to the length of the shortest.

    Longer episodes have larger maxima by chance; length must not separate the classes.
    """
    from scipy.stats import binomtest

    length = min(len(episode.levels) for episode in (*nominal, *shifted))
    if onset >= length:
        raise ValueError(f"`onset` must be below the shortest length {length}, got {onset}.")
    calm, odd = (
        np.array([episode.alarm_score[onset:length].max() for episode in episodes])
        for episodes in (nominal, shifted)
    )
    delays = [alarm_delay(e.levels[:length], onset=onset, level=level) for e in shifted]
    found = [delay for delay in delays if delay is not None]
    area = auroc(calm, odd)
    interval = binomtest(len(found), len(shifted)).proportion_ci(method="wilson")
    return DetectionSummary(
        num_nominal=len(nominal),
        num_shifted=len(shifted),
        auroc=area,
        auroc_interval=auroc_interval(area, len(nominal), len(shifted)),
        aupr=average_precision(calm, odd),
        base_rate=len(shifted) / (len(nominal) + len(shifted)),
        fpr95=false_positive_rate(calm, odd),
        false_alarm_rate=float(np.mean([(e.levels[:length] >= level).any() for e in nominal])),
        detected_rate=len(found) / len(shifted),
        detected_interval=(float(interval.low), float(interval.high)),
        median_delay=float(np.median(found)) if found else None,
    )


def _need_both(nominal: Float[np.ndarray, " n"], shifted: Float[np.ndarray, " m"]) -> None:
    if not len(nominal) or not len(shifted):
        raise ValueError(
            f"`nominal` and `shifted` must not be empty, got {len(nominal)}, {len(shifted)} scores."
        )
