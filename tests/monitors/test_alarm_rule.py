"""Alarm rule: false alarm rates, missing signals, scales and hysteresis."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import lfilter

from worldmodel.monitors.alarm_rule import (
    AlarmRule,
    DisturbedEpisodes,
    MonitorConfig,
    held_levels,
)
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.nuisances import declared
from worldmodel.monitors.verdict import Level


def episode(rng: np.random.Generator, shift: float = 0.0, doubt: float = 0.0) -> EpisodeSignals:
    """5 to 30 frames, AR(1) in time around the episode's own mean; rollouts of 8 steps."""
    time = int(rng.integers(5, 31))

    def walk(*shape: int) -> np.ndarray:
        steps = lfilter([0.44], [1.0, -0.9], rng.normal(size=(time, *shape)), axis=0)
        return rng.normal(size=shape) + steps + shift

    confidence = 0.7 - doubt + 0.1 * rng.normal() + 0.05 * walk(4, 4)
    return EpisodeSignals(
        pooled=walk(5),
        positions=walk(2, 2, 2),
        confidence=confidence.clip(0, 1),
        horizon=np.arange(time) % 9,
    )


def episodes(rng: np.random.Generator, n: int, **change: float) -> list[EpisodeSignals]:
    return [episode(rng, **change) for _ in range(n)]


def alarms(
    alarm_rule: AlarmRule, watched: list[EpisodeSignals], level: Level = Level.NOTICE
) -> float:
    alarm_score = [alarm_rule.alarm_score(alarm_rule.scores(e)).max() for e in watched]
    return float(np.mean(alarm_rule.levels(np.array(alarm_score)) >= level))


CONFIG = MonitorConfig(alpha_notice=0.1, alpha_degrade=0.05, alpha_stop=0.05)


def test_false_alarm_rate_holds_for_three_signals_at_every_level() -> None:
    """30 monitors, each fitted on 4 + 19 episodes and shown 15 new ones; seed 0.

    The rate of a monitor varies by sqrt(a (1 - a) / 21) over calibration sets: 0.065 at a = 0.1,
    0.048 at 0.05. With the binomial part the mean over 30 monitors has a standard error of 0.019
    and 0.014. Three of them are allowed.
    """
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(30):
        alarm_rule = AlarmRule(CONFIG).fit(episodes(rng, 19), reference=episodes(rng, 4))
        watched = episodes(rng, 15)
        rates.append(
            [alarms(alarm_rule, watched, level) for level in (Level.NOTICE, Level.DEGRADE)]
        )
    notice, degrade = np.mean(rates, axis=0)
    assert notice <= 0.1 + 3 * 0.019
    assert degrade <= 0.05 + 3 * 0.014
    assert notice > 0.02  # the promise is not kept by silence


@pytest.fixture(scope="module")
def alarm_rule() -> AlarmRule:
    rng = np.random.default_rng(1)
    return AlarmRule(CONFIG).fit(episodes(rng, 99), reference=episodes(rng, 60))


def test_no_episode_sets_both_a_scale_and_a_threshold() -> None:
    """Of 60 calibration episodes every third sets scales; of 19 none is spared."""
    rng = np.random.default_rng(3)
    calibration, reference = episodes(rng, 60), episodes(rng, 6)
    alarm_rule = AlarmRule(CONFIG).fit(calibration, reference=reference)
    rest = [episode for i, episode in enumerate(calibration) if i % 3]
    maxima = [alarm_rule.alarm_score(alarm_rule.scores(e)).max() for e in rest]
    np.testing.assert_allclose(alarm_rule.maxima_, maxima)
    few = AlarmRule(CONFIG).fit(calibration[:19], reference=reference)
    assert (alarm_rule.num_calibration_, few.num_calibration_) == (40, 19)


def test_scales_from_the_reference_are_those_of_episodes_a_channel_has_not_seen() -> None:
    """20 monitors, 10 new episodes each, seed 0: half exceed the centre, or fewer, as channels of
    half the reference find everything odder. Scored by channels of their own half: 0.88 and 1.
    """
    rng = np.random.default_rng(0)
    above: dict[str, list[bool]] = {"appearance": [], "region": []}
    for _ in range(20):
        alarm_rule = AlarmRule(CONFIG).fit(episodes(rng, 19), reference=episodes(rng, 6))
        for scores in map(alarm_rule.scores, episodes(rng, 10)):
            for name, found in above.items():
                found.append(scores[name].max() > alarm_rule.scales_[name].centre)
    for name, found in above.items():
        assert 0.05 < np.mean(found) < 0.5, name


def without(episode: EpisodeSignals, *, features: bool, confidence: bool) -> EpisodeSignals:
    return EpisodeSignals(
        pooled=None if features else episode.pooled,
        positions=None if features else episode.positions,
        confidence=None if confidence else episode.confidence,
        horizon=None if confidence else episode.horizon,
    )


def test_missing_signals_never_add_an_alarm(alarm_rule: AlarmRule) -> None:
    for whole in episodes(np.random.default_rng(2), 30):
        alarm_score = alarm_rule.alarm_score(alarm_rule.scores(whole))
        for part in (
            without(whole, features=False, confidence=True),
            without(whole, features=True, confidence=False),
        ):
            scores = alarm_rule.scores(part)
            assert (alarm_rule.alarm_score(scores) <= alarm_score).all()
        assert np.isnan(scores["appearance"]).all()
        assert (np.isnan(scores["confidence"]) == (whole.horizon == 0)).all()


def test_each_channel_detects_its_own_shift(alarm_rule: AlarmRule) -> None:
    rng = np.random.default_rng(3)
    strange = [without(e, features=False, confidence=True) for e in episodes(rng, 30, shift=6.0)]
    assert alarms(alarm_rule, strange) > 0.9
    doubtful = [without(e, features=True, confidence=False) for e in episodes(rng, 30, doubt=0.6)]
    assert alarms(alarm_rule, doubtful) > 0.9
    assert alarms(alarm_rule, episodes(rng, 30)) < 0.4


def test_signal_alarms_at_its_threshold_in_its_own_unit(alarm_rule: AlarmRule) -> None:
    for name in alarm_rule.scales_:
        limit = np.array([alarm_rule.threshold(name, Level.STOP)])
        for nudge, level in ((-1e-6, Level.DEGRADE), (1e-6, Level.STOP)):
            reached = alarm_rule.levels(alarm_rule.alarm_score({name: limit + nudge}))[0]
            assert reached == level or CONFIG.alpha_degrade == CONFIG.alpha_stop
        assert alarm_rule.levels(alarm_rule.alarm_score({name: limit + 1e-6}))[0] == Level.STOP


def test_scale_of_a_signal_follows_its_share_of_the_alarm_budget() -> None:
    """Surprise has 20 parts, region 3 and action 1: of 0.24 it may raise 0.2."""
    config = MonitorConfig(alpha_notice=0.24, alpha_degrade=0.1, alpha_stop=0.1)
    values = np.linspace(0, 1, 101)
    maxima = [dict.fromkeys(("region", "action", "surprise"), value) for value in values]
    scales = AlarmRule(config)._scales(dict(enumerate(maxima)))
    assert [scale.centre for scale in scales.values()] == [0.5] * 3
    assert [scale.spread for scale in scales.values()] == pytest.approx([0.47, 0.49, 0.3])


def test_levels_are_nested(alarm_rule: AlarmRule) -> None:
    limits = list(alarm_rule.thresholds_.values())
    assert limits == sorted(limits)
    grid = np.linspace(limits[0] - 1, limits[-1] + 1, 50)
    assert (np.diff(alarm_rule.levels(grid)) >= 0).all()
    assert alarm_rule.levels(grid)[0] == Level.TRUST
    assert alarm_rule.levels(grid)[-1] == Level.STOP


def test_fewer_channels_are_fitted_when_signals_are_missing() -> None:
    rng = np.random.default_rng(4)
    bare = [without(e, features=False, confidence=True) for e in episodes(rng, 30)]
    alarm_rule = AlarmRule(CONFIG).fit(bare[:20], reference=bare[20:])
    assert set(alarm_rule.scores(bare[0])) == {"appearance", "region"}
    whole = episode(rng)
    assert set(alarm_rule.scores(whole)) == {
        "appearance",
        "region",
    }  # confidence was never calibrated


def test_config_for_few_episodes_raises_alpha_to_the_smallest_supported() -> None:
    config = MonitorConfig.for_episodes(9)
    assert (config.alpha_notice, config.alpha_degrade, config.alpha_stop) == (0.1, 0.1, 0.1)
    assert MonitorConfig.for_episodes(99) == MonitorConfig()
    rng = np.random.default_rng(5)
    AlarmRule(config).fit(episodes(rng, 9), reference=episodes(rng, 4))


def test_too_few_episodes_are_refused() -> None:
    rng = np.random.default_rng(6)
    message = (
        r"`alpha_stop`=0\.01 needs at least 99 calibration episodes, got 20, which support 0\.0476 "
        r"at best \(see `MonitorConfig\.for_episodes`\)\."
    )
    with pytest.raises(ValueError, match=message):
        AlarmRule(MonitorConfig()).fit(episodes(rng, 20), reference=episodes(rng, 4))
    with pytest.raises(ValueError, match="`reference` needs at least 2 episodes, got 1"):
        AlarmRule(CONFIG).fit(episodes(rng, 20), reference=episodes(rng, 1))


def test_wrong_config_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\) and not rise, got 0\.01, 0\.02"):
        MonitorConfig(alpha_notice=0.01, alpha_degrade=0.02)
    with pytest.raises(ValueError, match="`calm_steps` must be at least 1, got 0"):
        MonitorConfig(calm_steps=0)


def test_inconsistent_signals_are_refused() -> None:
    with pytest.raises(ValueError, match="`pooled` and `positions` must be given together"):
        EpisodeSignals(pooled=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="`confidence` and `horizon` must be given together"):
        EpisodeSignals(horizon=np.zeros(3, int))
    with pytest.raises(ValueError, match="`horizon` must be 0 or more, got -1"):
        EpisodeSignals(confidence=np.zeros((1, 2, 2)), horizon=np.array([-1]))
    with pytest.raises(ValueError, match=r"same number of frames, at least 1, got \[\]"):
        EpisodeSignals()


def test_levels_fall_only_after_calm_steps() -> None:
    levels = np.array([0, 1, 3, 0, 2, 0, 0, 0, 0])
    np.testing.assert_array_equal(held_levels(levels, 1), levels)
    np.testing.assert_array_equal(held_levels(levels, 3), [0, 1, 3, 3, 3, 2, 2, 0, 0])


NUISANCE = declared(["noise:3"])[0]


def noisy(episode: EpisodeSignals) -> EpisodeSignals:
    assert episode.pooled is not None
    return replace(episode, pooled=2 * episode.pooled)


def test_thresholds_hold_under_each_nuisance_and_scales_span_them() -> None:
    """A nuisance that doubles one signal raises that signal's scale, not the others' thresholds."""
    rng = np.random.default_rng(11)
    reference, calibration = episodes(rng, 40), episodes(rng, 60)
    copies = DisturbedEpisodes(NUISANCE, ((i, noisy(e)) for i, e in enumerate(calibration)), {})
    plain = AlarmRule(CONFIG).fit(calibration, reference=reference)
    tolerant = AlarmRule(CONFIG).fit(calibration, reference=reference, disturbed=[copies])
    assert tolerant.scales_["appearance"].spread > 1.5 * plain.scales_["appearance"].spread
    assert tolerant.scales_["appearance"].centre == plain.scales_["appearance"].centre
    assert tolerant.threshold("region") == pytest.approx(plain.threshold("region"), rel=0.5)
    fresh = [noisy(e) for e in episodes(rng, 400)]
    rates = {}
    for name, rule in {"plain": plain, "tolerant": tolerant}.items():
        limit = rule.limits[Level.NOTICE]
        rates[name] = np.mean([rule.alarm_score(rule.scores(e)).max() > limit for e in fresh])
    alpha = CONFIG.alpha_notice
    assert rates["plain"] > 3 * alpha
    assert rates["tolerant"] < alpha + 3 * np.sqrt(alpha * (1 - alpha) / 60)


def moved(episode: EpisodeSignals, axis: int, distance: float) -> EpisodeSignals:
    """Copy whose pooled features are shifted along one axis."""
    assert episode.pooled is not None
    return replace(episode, pooled=episode.pooled + distance * np.eye(5)[axis])


def test_a_nuisance_along_one_direction_hides_no_shift_along_another() -> None:
    """Shifts by 9 along another axis, 100 episodes, seed 14. With the effect of the nuisance in the
    covariance all are found; without, the scale spans the nuisance and 9 are found."""
    rng = np.random.default_rng(14)
    reference, calibration = episodes(rng, 40), episodes(rng, 60)

    def fitted(familiar: dict[int, EpisodeSignals]) -> AlarmRule:
        copies = [(i, moved(e, 0, 9.0)) for i, e in enumerate(calibration)]
        disturbed = [DisturbedEpisodes(NUISANCE, copies, familiar)]
        return AlarmRule(CONFIG).fit(calibration, reference=reference, disturbed=disturbed)

    blunt = fitted({})
    sharp = fitted({i: moved(e, 0, 9.0) for i, e in enumerate(reference[:20])})
    fresh = episodes(rng, 100)
    assert alarms(sharp, [moved(e, 1, 9.0) for e in fresh]) > 0.9
    assert alarms(blunt, [moved(e, 1, 9.0) for e in fresh]) < 0.5
    assert alarms(sharp, [moved(e, 0, 9.0) for e in fresh]) < 0.2


def test_few_episodes_take_the_scales_of_nuisances_from_the_reference() -> None:
    rng = np.random.default_rng(12)
    reference, calibration = episodes(rng, 20), episodes(rng, 19)
    copies = DisturbedEpisodes(
        NUISANCE,
        [(i, noisy(e)) for i, e in enumerate(calibration)],
        {i: noisy(e) for i, e in enumerate(reference)},
    )
    plain = AlarmRule(CONFIG).fit(calibration, reference=reference)
    tolerant = AlarmRule(CONFIG).fit(calibration, reference=reference, disturbed=[copies])
    assert tolerant.scales_["appearance"].spread > 1.5 * plain.scales_["appearance"].spread
    assert max(tolerant.thresholds_.values()) < 3


def test_too_few_copies_are_refused() -> None:
    rng = np.random.default_rng(13)
    copies = DisturbedEpisodes(NUISANCE, list(enumerate(episodes(rng, 5))), {})
    with pytest.raises(ValueError, match="needs at least 19 calibration episodes, got 5"):
        AlarmRule(CONFIG).fit(episodes(rng, 20), reference=episodes(rng, 4), disturbed=[copies])
