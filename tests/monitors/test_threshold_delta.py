"""`delta`: a threshold that keeps its rate for nearly every calibration set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from worldmodel.monitors.alarm_rule import AlarmRule, MonitorConfig
from worldmodel.monitors.channels.sensor import SensorChannel
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.guarantees.episode_threshold import (
    EpisodeThreshold,
    episodes_needed,
    smallest_alpha,
)
from worldmodel.monitors.storage import SavedMonitor, load_monitor, save_monitor
from worldmodel.monitors.validity import MonitorMetadata


def rank(n: int, alpha: float, delta: float) -> int:
    """Which of the sorted maxima is the threshold, from 1."""
    value = EpisodeThreshold(alpha, delta=delta).fit(np.arange(1.0, n + 1)).value_
    return int(value)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2])
def test_rank_is_the_smallest_that_the_beta_law_allows(alpha: float, delta: float) -> None:
    """The rate of the k-th of n maxima is Beta(n + 1 - k, k) over calibration sets."""
    fewest = episodes_needed(alpha, delta)
    for n in (fewest, fewest + 1, 2 * fewest, 700):
        k = np.arange(1, n + 1)
        allowed = beta.cdf(alpha, n + 1 - k, k) >= 1 - delta
        assert rank(n, alpha, delta) == k[allowed][0]


def test_more_calibration_episodes_waste_less() -> None:
    wasted = [1 - rank(n, 0.05, 0.05) / (n + 1) for n in (59, 200, 1000, 10_000)]
    assert wasted == sorted(wasted)
    assert 0.045 < wasted[-1] < 0.05


@pytest.mark.parametrize("delta", [0.05, 0.01, 0.5])
@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.05, 0.01])
def test_fewest_episodes_are_exactly_enough(alpha: float, delta: float) -> None:
    n = episodes_needed(alpha, delta)
    assert (1 - alpha) ** n <= delta * (1 + 1e-9) < (1 - alpha) ** (n - 1)
    assert episodes_needed(smallest_alpha(n, delta), delta) == n
    EpisodeThreshold(alpha, delta=delta).fit(np.arange(float(n)))
    with pytest.raises(ValueError, match=rf"with `delta`={delta:g} needs at least {n} cal"):
        EpisodeThreshold(alpha, delta=delta).fit(np.arange(float(n - 1)))


def test_too_few_episodes_are_refused_with_the_number_needed() -> None:
    message = (
        r"`alpha`=0\.05 with `delta`=0\.05 needs at least 59 calibration episodes, got 58, "
        r"which support 0\.0503 at best\."
    )
    with pytest.raises(ValueError, match=message):
        EpisodeThreshold(0.05, delta=0.05).fit(np.zeros(58))
    with pytest.raises(ValueError, match=r"`delta` must lie in \(0, 1\), got 1\.0"):
        EpisodeThreshold(0.05, delta=1.0)
    assert smallest_alpha(0, 0.05) == smallest_alpha(0) == 1.0


def test_ties_only_lower_the_rate() -> None:
    """Scores of four kinds, 500 sets of 59, seed 0: 0.05 of them plus 3 standard errors."""
    rng = np.random.default_rng(0)
    chance = np.array([0.6, 0.3, 0.07, 0.03])
    sets = rng.choice(4.0 * np.arange(4) / 4, p=chance, size=(500, 59))
    limits = [EpisodeThreshold(0.05, delta=0.05).fit(row).value_ for row in sets]
    rates = np.array([chance[int(limit) + 1 :].sum() for limit in limits])
    assert np.mean(rates > 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)


def signals(rng: np.random.Generator, num_episodes: int) -> list[EpisodeSignals]:
    """Episodes of 6 frames with features alone."""
    return [
        EpisodeSignals(pooled=rng.normal(size=(6, 2)), positions=rng.normal(size=(6, 1, 1, 2)))
        for _ in range(num_episodes)
    ]


def test_a_monitor_with_delta_has_higher_thresholds_and_needs_more_episodes() -> None:
    rng = np.random.default_rng(0)
    alphas = {"alpha_notice": 0.3, "alpha_degrade": 0.2, "alpha_stop": 0.1}
    config = MonitorConfig(**alphas)
    strict = replace(config, delta=0.05)
    calibration, reference = signals(rng, 60), signals(rng, 8)  # both leave some for scales
    loose = AlarmRule(config).fit(calibration, reference=reference).thresholds_
    tight = AlarmRule(strict).fit(calibration, reference=reference).thresholds_
    assert all(tight[level] > loose[level] for level in loose)
    message = r"`alpha_stop`=0\.1 with `delta`=0\.05 needs at least 29 calibration episodes, got 28"
    with pytest.raises(ValueError, match=message):
        AlarmRule(strict).fit(calibration[:28], reference=reference)
    with pytest.raises(ValueError, match=r"`delta` must lie in \(0, 1\) or be None, got 0\.0"):
        MonitorConfig(delta=0.0)


def test_delta_is_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    config = MonitorConfig(alpha_notice=0.3, alpha_degrade=0.2, alpha_stop=0.1, delta=0.05)
    judge = AlarmRule(config).fit(signals(rng, 30), reference=signals(rng, 8))
    saved = SavedMonitor(judge, SensorChannel((4, 4, 3)), MonitorMetadata())
    save_monitor(saved, tmp_path)
    assert load_monitor(tmp_path).alarm_rule.config == config


def test_config_for_few_episodes_keeps_delta() -> None:
    config = MonitorConfig.for_episodes(60, delta=0.05)
    least = 1 - 0.05 ** (1 / 60)
    assert (config.alpha_notice, config.alpha_stop) == (0.05, pytest.approx(least))
    assert config.delta == 0.05
