"""All channels together: online equals batch, and a harmless change of look is a notice."""

from pathlib import Path

import numpy as np
import pytest

from worldmodel.monitors.alarm_rule import AlarmRule, MonitorConfig
from worldmodel.monitors.channels.action import recent_actions
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.claims import PredictionCheck
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Level

SHAPE = (8, 8, 3)
CONFIG = MonitorConfig(
    alpha_notice=0.2, alpha_degrade=0.1, alpha_stop=0.05, calm_steps=2, unchecked_steps=3
)
TIME = 12


def features(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    patches = frame.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).astype(np.float32)
    return patches.mean(axis=(0, 1)), patches


def episode(rng: np.random.Generator, *, odd: str = "") -> EpisodeSignals:
    """12 frames, the first two not imagined; the half from frame 6 on may be odd in some way."""
    frames = (110 + 30 * rng.random((TIME, *SHAPE))).astype(np.uint8)
    if odd == "looks":
        frames[6:, :4, :4] = (0, 0, 255)
    actions = rng.uniform(-0.05, 0.05, (TIME, 7))
    ratio = rng.uniform(0.5, 1.5, (TIME, 2, 4, 4))
    ratio[6:] *= 5 if odd == "surprise" else 1
    if odd == "action":
        actions[6:] += 0.5
    actions[3] = np.nan  # unknown
    pooled, positions = zip(*map(features, frames), strict=True)
    return EpisodeSignals(
        pooled=np.stack(pooled),
        positions=np.stack(positions),
        frames=frames,
        confidence=rng.uniform(0.6, 0.9, (TIME, 2, 4, 4)),
        horizon=np.maximum(np.arange(TIME) - 1, 0),
        error_ratio=ratio,
        actions=recent_actions(actions),
    )


@pytest.fixture(scope="module")
def fitted() -> RuntimeMonitor:
    rng = np.random.default_rng(0)
    return RuntimeMonitor(CONFIG, features=features).fit(
        [episode(rng) for _ in range(40)],
        reference=[episode(rng) for _ in range(20)],
        frame_shape=SHAPE,
    )


@pytest.fixture
def monitor(fitted: RuntimeMonitor) -> RuntimeMonitor:
    return fitted.sibling()


@pytest.mark.parametrize("odd", ["", "looks", "surprise", "action"])
def test_online_equals_batch(monitor: RuntimeMonitor, odd: str) -> None:
    signals = episode(np.random.default_rng(1), odd=odd)
    watched = monitor.watch(signals)
    monitor.reset()
    assert signals.confidence is not None
    assert signals.horizon is not None
    assert signals.frames is not None
    assert signals.error_ratio is not None
    assert signals.actions is not None
    for t in range(TIME):
        claim = None
        if signals.horizon[t]:
            claim = PredictionCheck(
                signals.confidence[t], int(signals.horizon[t]), signals.error_ratio[t]
            )
        action = signals.actions[t, -1]
        known = None if np.isnan(action).any() else action
        verdict = monitor.update(signals.frames[t], known, claim)
        assert verdict.level == watched.levels[t]
        for name, scores in watched.scores.items():
            score = verdict.evidence[name].score
            assert np.isnan(scores[t]) if score is None else score == scores[t]


@pytest.mark.parametrize(
    ("odd", "cause"),
    [("looks", "appearance"), ("surprise", "action_ignored"), ("action", "action_out_of_range")],
)
def test_each_change_gets_its_cause(monitor: RuntimeMonitor, odd: str, cause: str) -> None:
    signals = episode(np.random.default_rng(2), odd=odd)
    monitor.reset()
    assert signals.confidence is not None
    assert signals.error_ratio is not None
    assert signals.frames is not None
    assert signals.actions is not None
    for t in range(4, TIME):
        claim = PredictionCheck(signals.confidence[t], t - 1, signals.error_ratio[t])
        verdict = monitor.update(signals.frames[t], signals.actions[t, -1], claim)
    assert verdict.causes[0] == cause


def test_unfamiliar_look_is_a_notice_while_predictions_hold(monitor: RuntimeMonitor) -> None:
    rng = np.random.default_rng(3)
    levels = monitor.watch(episode(rng, odd="looks")).levels
    assert levels[6:].max() == Level.NOTICE
    assert monitor.watch(episode(rng, odd="surprise")).levels.max() == Level.STOP


def test_unfamiliar_look_is_more_than_a_notice_without_checked_predictions(
    monitor: RuntimeMonitor,
) -> None:
    """At first there was no time to check any; later there was, and none came."""
    signals = episode(np.random.default_rng(4), odd="looks")
    assert signals.frames is not None
    strange = signals.frames[-1]
    monitor.reset()
    levels = [monitor.update(strange, None).level for _ in range(CONFIG.unchecked_steps + 1)]
    assert levels[: CONFIG.unchecked_steps] == [Level.NOTICE] * CONFIG.unchecked_steps
    assert levels[-1] == Level.STOP


def test_appearance_only_monitor_needs_no_predictions() -> None:
    rng = np.random.default_rng(5)

    def looks(signals: EpisodeSignals) -> EpisodeSignals:
        return EpisodeSignals(pooled=signals.pooled, positions=signals.positions)

    judge = AlarmRule(CONFIG).fit(
        [looks(episode(rng)) for _ in range(40)],
        reference=[looks(episode(rng)) for _ in range(20)],
    )
    odd = looks(episode(rng, odd="looks"))
    assert judge.frame_levels(judge.scores(odd))[6:].min() == Level.STOP


def test_loaded_monitor_gives_the_same_verdicts(monitor: RuntimeMonitor, tmp_path: Path) -> None:
    monitor.save(tmp_path)
    again = RuntimeMonitor.load(tmp_path, features=features)
    signals = episode(np.random.default_rng(6), odd="surprise")
    one, two = monitor.watch(signals), again.watch(signals)
    assert np.array_equal(one.levels, two.levels)
    assert np.array_equal(one.alarm_score, two.alarm_score)
