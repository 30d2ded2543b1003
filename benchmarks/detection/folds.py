"""Folds of few episodes, and shares of alarms over them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from worldmodel.evaluation.statistics import wilson_interval

SETS = {
    "DROID": ("droid", "", 3, 6),
    "Bridge WorldGym": ("bridge_worldgym", "", 2, 4),
    "Bridge RLDS": ("bridge_rlds/1.0.0", "train/", 5, 3),
}
"""Name -> folder; prefix of the episode ids (the val split of the RLDS sample repeats its train
split); held-out episodes per fit, of 11, 10 and 25; number of shuffles."""
ValueAndInterval = tuple[float, float, float]
"""Value and its 95% interval."""


def share(alarms: dict[int, list[bool]]) -> ValueAndInterval:
    """Mean alarm rate and a conservative Wilson interval, from rounded numbers of episodes."""
    rates = [np.mean(under_fits) for under_fits in alarms.values()]
    total, n = float(np.sum(rates)), len(rates)
    low = wilson_interval(math.floor(total + 1e-9), n).low
    return total / n, low, wilson_interval(math.ceil(total - 1e-9), n).high


def folds(name: str, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (fitted, held-out) episode indices in random order; incomplete folds are dropped."""
    *_, held, repeats = SETS[name.rsplit(" ", 1)[0]]
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        order = rng.permutation(count).tolist()
        for k in range(0, count - held + 1, held):
            yield order[:k] + order[k + held :], order[k : k + held]
