"""The benchmark of all promises."""

import numpy as np
import pytest
from scipy.stats import beta

from benchmarks import promises
from worldmodel.monitors.guarantees.episode_threshold import (
    EpisodeThreshold,
)


def rank(n: int, alpha: float, delta: float) -> int:
    """Which of the sorted maxima is the threshold, from 1."""
    value = EpisodeThreshold(alpha, delta=delta).fit(np.arange(1.0, n + 1)).value_
    return int(value)


SMALL = promises.PromiseSize(episodes=400, sets=200, fleets=20, pool=20_000)


def test_the_benchmark_measures_what_theory_says() -> None:
    """Promises (a) and (b) at phi = 0.9; 400 episodes and 200 sets, seed 0, 4 standard errors."""
    rows = [
        *promises.promise_a(np.random.default_rng(0), 0.9, SMALL),
        *promises.promise_b(np.random.default_rng(0), 0.9, SMALL),
    ]
    measured = {(row.what[:3], row.n): row for row in rows}
    exact = {("(a)", 19): 1 / 20, ("(a)", 59): 3 / 60, ("(a)", 150): 7 / 151}
    for n in (59, 150):
        exact["(b)", n] = 1 - beta.cdf(0.05, n + 1 - rank(n, 0.05, 0.05), rank(n, 0.05, 0.05))
        exact["the", n] = 1 - beta.cdf(0.05, *{59: (3, 57), 150: (7, 144)}[n])
    for key, value in exact.items():
        row = measured.pop(key)
        assert row.error is not None
        assert row.value == pytest.approx(value, abs=4 * row.error)
    assert measured == {}


def test_the_benchmark_fails_if_a_promise_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds fitted for 0.2 but measured against 0.05; then refusals alone, which are kept."""
    refusals = list(promises.refusals())
    monkeypatch.setattr(promises, "EpisodeThreshold", lambda alpha: EpisodeThreshold(4 * alpha))
    rows = list(promises.promise_a(np.random.default_rng(0), 0.5, SMALL))
    assert [row.kept for row in rows] == [False] * 3
    monkeypatch.setattr(promises, "measure", lambda size, seed: [*rows, *refusals])
    assert promises.main(["--quick"]) == 1
    monkeypatch.setattr(promises, "measure", lambda size, seed: refusals)
    assert promises.main(["--quick"]) == 0
    assert [row.kept for row in refusals] == [True] * 3
