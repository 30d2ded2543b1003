"""Drift of watched episodes: they score as in calibration, and the test is `FleetDrift`."""

from typing import Any

import numpy as np
import pytest

from worldmodel.monitors import EpisodeSignals, FleetDrift, MonitorConfig
from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.runtime.fleet import fleet_drift, largest_alarm_score
from worldmodel.runtime.watch import SCORE

CONFIG = MonitorConfig(alpha_notice=0.05, alpha_degrade=0.05, alpha_stop=0.05)


def draw(rng: np.random.Generator, num_frames: int = 8) -> EpisodeSignals:
    """Appearance at every frame, confidence from the third on."""
    horizon = np.maximum(np.arange(num_frames) - 1, 0)
    return EpisodeSignals(
        pooled=rng.normal(size=(num_frames, 3)),
        positions=rng.normal(size=(num_frames, 4, 4, 2)),
        confidence=rng.uniform(0.6, 1, (num_frames, 2, 4, 4)),
        horizon=horizon,
    )


def rows(alarm_rule: AlarmRule, episode: EpisodeSignals) -> list[dict[str, Any]]:
    """As a log holds them: NaN where a channel did not run."""
    scores = alarm_rule.scores(episode)
    return [
        {SCORE + name: float(score[t]) for name, score in scores.items()}
        for t in range(len(episode))
    ]


@pytest.fixture(scope="module")
def calibration() -> list[EpisodeSignals]:
    rng = np.random.default_rng(0)
    return [draw(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def alarm_rule(calibration: list[EpisodeSignals]) -> AlarmRule:
    rng = np.random.default_rng(1)
    return AlarmRule(CONFIG).fit(calibration, reference=[draw(rng) for _ in range(10)])


def test_an_episode_scores_as_it_did_in_calibration(
    alarm_rule: AlarmRule, calibration: list[EpisodeSignals]
) -> None:
    found = [largest_alarm_score(alarm_rule, rows(alarm_rule, episode)) for episode in calibration]
    assert alarm_rule.maxima_ is not None
    assert len(alarm_rule.maxima_) == alarm_rule.num_calibration_ > 20
    assert set(alarm_rule.maxima_) <= set(found)  # some episodes set scales, and no threshold


def test_frames_that_no_calibration_episode_reached_do_not_count(alarm_rule: AlarmRule) -> None:
    episode = rows(alarm_rule, draw(np.random.default_rng(2), num_frames=10))
    assert alarm_rule.max_frames_ == 8
    for row in episode[8:]:
        row[SCORE + "appearance"] = 1e6
    assert largest_alarm_score(alarm_rule, episode) == largest_alarm_score(alarm_rule, episode[:8])
    assert largest_alarm_score(alarm_rule, episode[8:]) > 1e5


def test_an_episode_without_a_score_has_no_surprise(alarm_rule: AlarmRule) -> None:
    silent = [
        dict.fromkeys(row, np.nan) for row in rows(alarm_rule, draw(np.random.default_rng(3)))
    ]
    assert largest_alarm_score(alarm_rule, silent) is None
    silent[3][SCORE + "region"] = alarm_rule.scales_["region"].centre
    assert largest_alarm_score(alarm_rule, silent) == 0.0


def test_drift_is_found_after_the_episode_that_fleet_drift_finds_it_at(
    alarm_rule: AlarmRule,
) -> None:
    """Two spreads above every calibration episode, from the fourth episode on."""
    assert alarm_rule.maxima_ is not None
    calm = np.quantile(alarm_rule.maxima_, [0.4, 0.1, 0.6])
    high = alarm_rule.maxima_.max() + 2 + np.arange(20) / 100
    alarm_scores = {f"e/{i}": float(score) for i, score in enumerate([*calm, *high])}
    test = FleetDrift(0.05).fit(alarm_rule.maxima_)
    found = [name for name, score in alarm_scores.items() if test.update(score)]
    drift = fleet_drift(alarm_rule, {"dark": None, **alarm_scores, "last": None})
    assert drift is not None
    assert (drift.alpha, drift.found_after, drift.num_left_out) == (0.05, found[0], 1)
    assert (drift.capital, drift.num_episodes) == (test.capital_, test.num_episodes_)
    assert drift.capital >= 20
    assert drift.num_episodes < 12
    assert drift.sentence() == (
        f"Fleet drift: detected after {drift.num_episodes} episodes, at {found[0]} (evidence "
        f"{drift.capital:.3g}, alarm at 20, alpha 0.05; 1 without a score skipped): the "
        "calibration is stale for this fleet; calibrate again. Alpha holds if episodes are "
        "exchangeable with those of the calibration: same robots, and no dependence between "
        "neighbours in time; else use --drift-block."
    )


def test_nominal_episodes_are_no_drift(alarm_rule: AlarmRule) -> None:
    """60 new episodes of the same distribution, seed 4; false alarms: at most 0.05 of such runs."""
    rng = np.random.default_rng(4)
    alarm_scores = {
        str(i): largest_alarm_score(alarm_rule, rows(alarm_rule, draw(rng))) for i in range(60)
    }
    drift = fleet_drift(alarm_rule, alarm_scores)
    assert drift is not None
    assert (drift.found_after, drift.num_episodes) == (None, 60)
    assert drift.sentence().startswith("Fleet drift: not detected in 60 episodes (evidence ")


def test_a_monitor_without_maxima_tests_nothing(calibration: list[EpisodeSignals]) -> None:
    old = AlarmRule(CONFIG).fit(calibration, reference=calibration[:4])
    old.maxima_ = None
    assert fleet_drift(old, {"a": 1.0}) is None


def test_blocks_compare_means_of_consecutive_episodes(
    calibration: list[EpisodeSignals], alarm_rule: AlarmRule
) -> None:
    rng = np.random.default_rng(1)
    episodes = [draw(rng) for _ in range(80)]
    rule = AlarmRule(CONFIG).fit(episodes, reference=calibration)
    assert rule.maxima_ is not None
    assert len(rule.maxima_) == 53
    high = float(rule.maxima_.max()) + 1
    drift = fleet_drift(rule, {str(i): high for i in range(41)}, block=2)
    assert drift is not None
    assert drift.found_after is not None
    assert int(drift.found_after) + 1 == drift.num_episodes
    assert drift.num_episodes % 2 == 0
    assert "Alpha holds if blocks of 2 consecutive episodes are exchangeable" in drift.sentence()
    calm = fleet_drift(rule, {"only": high}, block=2)
    assert calm is not None
    assert (calm.num_episodes, calm.capital) == (0, 1.0)
    message = (
        "`--drift-block` 3 leaves 17 blocks of the 53 calibration episodes, but the test needs"
    )
    with pytest.raises(ValueError, match=message):
        fleet_drift(rule, {"only": high}, block=3)
