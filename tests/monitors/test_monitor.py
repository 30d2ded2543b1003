"""Runtime monitor online: equal to batch, with hysteresis, and fail-safe."""

import gc
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from worldmodel.monitors import (
    EpisodeSignals,
    Level,
    MonitorConfig,
    NotFittedError,
    PredictionCheck,
    RuntimeMonitor,
    Verdict,
)

SHAPE = (16, 16, 3)
ACTION = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
CONFIG = MonitorConfig(alpha_notice=0.2, alpha_degrade=0.1, alpha_stop=0.05, calm_steps=3)


def features(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of 4 x 4 patches: channels as features of the position, moments of the whole."""
    patches = frame.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3)).astype(np.float32)
    return np.concatenate([patches.mean(axis=(0, 1)), patches.std(axis=(0, 1))]), patches


def draw_frame(rng: np.random.Generator, bright: float = 0.0) -> np.ndarray:
    return (rng.normal(100 + bright, 25, SHAPE)).clip(0, 255).astype(np.uint8)


def draw_confidence(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.6, 1.0, (2, 4, 4)).astype(np.float32)


def signals(frames: list[np.ndarray], confidence: list[np.ndarray]) -> EpisodeSignals:
    pooled, positions = zip(*map(features, frames), strict=True)
    return EpisodeSignals(
        pooled=np.stack(pooled),
        positions=np.stack(positions),
        confidence=np.stack(confidence),
        horizon=np.arange(1, len(frames) + 1),
    )


def draw_episode(rng: np.random.Generator, num_frames: int = 10) -> EpisodeSignals:
    frames = [draw_frame(rng) for _ in range(num_frames)]
    return signals(frames, [draw_confidence(rng) for _ in frames])


@pytest.fixture(scope="module")
def fitted() -> RuntimeMonitor:
    rng = np.random.default_rng(0)
    return RuntimeMonitor(CONFIG, features=features).fit(
        [draw_episode(rng) for _ in range(19)],
        reference=[draw_episode(rng) for _ in range(20)],
        frame_shape=SHAPE,
    )


@pytest.fixture
def monitor(fitted: RuntimeMonitor) -> RuntimeMonitor:
    return fitted.sibling()


def calm_frame(monitor: RuntimeMonitor, rng: np.random.Generator) -> np.ndarray:
    """A frame that alone raises no level."""
    while True:
        frame = draw_frame(rng)
        pooled, positions = features(frame)
        one = EpisodeSignals(pooled=pooled[None], positions=positions[None])
        if monitor.watch(one).levels[0] == Level.TRUST:
            return frame


def test_online_equals_batch(monitor: RuntimeMonitor) -> None:
    rng = np.random.default_rng(1)
    frames = [draw_frame(rng, bright=12.0 * (i in (3, 4))) for i in range(12)]
    confidence = [draw_confidence(rng) * (0.5 if i == 8 else 1.0) for i in range(12)]
    batch = monitor.watch(signals(frames, confidence))
    verdicts = [
        monitor.update(frame, ACTION, PredictionCheck(c, i + 1))
        for i, (frame, c) in enumerate(zip(frames, confidence, strict=True))
    ]
    np.testing.assert_array_equal([v.level for v in verdicts], batch.levels)
    assert {int(level) for level in batch.levels} >= {0, 3}
    for name, scores in batch.scores.items():
        online = [v.evidence[name].score for v in verdicts]
        np.testing.assert_allclose(online, scores, rtol=1e-6)


def test_cause_and_evidence_name_the_channel_that_found_it(monitor: RuntimeMonitor) -> None:
    rng = np.random.default_rng(2)
    bright = monitor.update(draw_frame(rng, bright=100.0), ACTION)
    assert bright.level == Level.STOP
    assert bright.causes == ("appearance",)
    for name in ("appearance", "region"):
        evidence = bright.evidence[name]
        assert evidence.score > evidence.threshold
        assert "differs from the 20 reference episodes" in evidence.note
        assert f"score {evidence.score:.3g}, threshold {evidence.threshold:.3g}." in evidence.note
    monitor.reset()
    frame = calm_frame(monitor, rng)
    doubtful = monitor.update(frame, ACTION, PredictionCheck(np.full((2, 4, 4), 0.1), 5))
    assert doubtful.level == Level.STOP
    assert doubtful.causes == ("low_confidence",)


def test_verdict_says_which_channel_did_not_run(monitor: RuntimeMonitor) -> None:
    rng = np.random.default_rng(3)
    verdict = monitor.update(calm_frame(monitor, rng), ACTION)
    assert verdict.evidence["confidence"].note == "did not run: no imagined frame."
    assert verdict.evidence["confidence"].score is None
    monitor.features = None
    verdict = monitor.update(draw_frame(rng), ACTION, PredictionCheck(draw_confidence(rng), 1))
    assert verdict.evidence["appearance"].note == "did not run: no feature function."


def test_trust_map_is_low_where_the_frame_is_unfamiliar_or_confidence_is_low(
    monitor: RuntimeMonitor,
) -> None:
    frame = calm_frame(monitor, np.random.default_rng(4))
    frame[4:8, 8:12] = 255  # latent position (1, 2)
    confidence = np.full((2, 4, 4), 0.9)
    confidence[:, 3, 0] = 0.2
    trust = monitor.update(frame, ACTION, PredictionCheck(confidence, 1)).trust_map
    assert trust is not None
    assert trust.shape == (4, 4)
    assert {divmod(int(i), 4) for i in np.argsort(trust, axis=None)[:2]} == {(1, 2), (3, 0)}
    assert trust[3, 0] == pytest.approx(0.2)
    assert trust.min() >= 0
    assert trust.max() == pytest.approx(0.9)


def test_level_falls_only_after_calm_steps(monitor: RuntimeMonitor) -> None:
    rng = np.random.default_rng(5)
    verdicts = [monitor.update(draw_frame(rng, bright=100.0), ACTION)]
    verdicts += [monitor.update(calm_frame(monitor, rng), ACTION) for _ in range(4)]
    assert [v.level for v in verdicts] == [3, 3, 3, 0, 0]
    assert [v.causes for v in verdicts[1:4]] == [("held",), ("held",), ()]
    monitor.update(draw_frame(rng, bright=100.0), ACTION)
    monitor.reset()
    assert monitor.update(calm_frame(monitor, rng), ACTION).level == Level.TRUST


def nan_features(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pooled, positions = features(frame)
    return pooled * np.nan, positions


def short_features(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pooled, positions = features(frame)
    return pooled[:2], positions


def smaller_map(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pooled, positions = features(frame)
    return pooled, positions[:2]


def failing(error: Exception) -> object:
    def function(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (nan_features, "ValueError: `pooled` or `positions` holds NaN"),
        (short_features, r"ValueError: `pooled` must have the shape (6,) per frame, got (2,)"),
        (smaller_map, "ValueError: `positions` must have the shape (4, 4, 3)"),
        (lambda frame: None, "TypeError"),
        (lambda frame: (1.0, 2.0, 3.0), "ValueError"),
        (failing(RuntimeError("CUDA out of memory")), "RuntimeError: CUDA out of memory"),
        (failing(KeyError("weights")), "KeyError: 'weights'"),
        (failing(MemoryError()), "MemoryError"),
        (failing(ZeroDivisionError("x")), "ZeroDivisionError"),
        (failing(StopIteration()), "StopIteration"),
        (failing(OSError("gone")), "OSError: gone"),
        (failing(RuntimeWarning("overflow")), "RuntimeWarning: overflow"),
    ],
)
def test_failing_features_are_a_stop_with_their_cause(
    monitor: RuntimeMonitor, function: object, note: str
) -> None:
    monitor.features = function
    verdict = monitor.update(draw_frame(np.random.default_rng(6)), ACTION)
    assert verdict.level == Level.STOP
    assert verdict.causes == ("monitor.error",)
    assert note in verdict.evidence["monitor.error"].note


@pytest.mark.parametrize(
    ("observation", "action", "cause"),
    [
        (None, ACTION, "sensor.dropped"),
        ({"picture": 1}, ACTION, "sensor.dropped"),
        (np.zeros(SHAPE, np.uint8), ACTION, "sensor.black"),
        (np.full(SHAPE, np.nan), ACTION, "sensor.nan"),
        (np.zeros((8, 8, 3), np.uint8), ACTION, "sensor.shape"),
        (draw_frame(np.random.default_rng(7)), ACTION * np.nan, "sensor.action"),
    ],
)
def test_broken_input_is_a_stop_with_its_cause(
    monitor: RuntimeMonitor, observation: object, action: object, cause: str
) -> None:
    verdict = monitor.update(observation, action)
    assert (verdict.level, verdict.causes) == (Level.STOP, (cause,))
    assert verdict.evidence[cause].note.endswith(".")


@pytest.mark.parametrize(
    "imagined",
    [
        PredictionCheck(np.full((2, 4, 4), np.nan), 1),
        PredictionCheck(np.full((2, 4, 4), 1.5), 1),
        PredictionCheck(np.ones((2, 3, 3)), 1),
        PredictionCheck(np.ones(4), 1),
        PredictionCheck(np.ones((2, 4, 4)), -1),
    ],
)
def test_invalid_prediction_is_a_stop(monitor: RuntimeMonitor, imagined: PredictionCheck) -> None:
    verdict = monitor.update(calm_frame(monitor, np.random.default_rng(8)), ACTION, imagined)
    assert (verdict.level, verdict.causes) == (Level.STOP, ("monitor.error",))


def test_monitor_without_any_score_stops(monitor: RuntimeMonitor) -> None:
    monitor.features = None
    verdict = monitor.update(draw_frame(np.random.default_rng(9)), ACTION)
    assert (verdict.level, verdict.causes) == (Level.STOP, ("monitor.blind",))
    imagined = PredictionCheck(np.ones((2, 4, 4)), 0)  # horizon 0: not imagined
    assert monitor.update(draw_frame(np.random.default_rng(9)), ACTION, imagined).causes == (
        "monitor.blind",
    )


def test_recovery_from_a_fault_takes_the_calm_steps(monitor: RuntimeMonitor) -> None:
    rng = np.random.default_rng(10)
    monitor.update(np.zeros(SHAPE, np.uint8), ACTION)
    levels = [monitor.update(calm_frame(monitor, rng), ACTION).level for _ in range(4)]
    assert levels == [3, 3, 0, 0]


def test_interrupt_passes_through(monitor: RuntimeMonitor) -> None:
    def interrupted(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise KeyboardInterrupt

    monitor.features = interrupted
    with pytest.raises(KeyboardInterrupt):
        monitor.update(draw_frame(np.random.default_rng(11)), ACTION)


def test_episodes_longer_than_calibrated_lose_the_guarantee(
    monitor: RuntimeMonitor,
) -> None:
    rng = np.random.default_rng(12)
    verdicts = [monitor.update(calm_frame(monitor, rng), ACTION) for _ in range(11)]
    assert "promise" not in verdicts[9].evidence
    assert "longest calibration episode" in verdicts[10].evidence["promise"].note


def test_verdict_is_json(monitor: RuntimeMonitor) -> None:
    rng = np.random.default_rng(13)
    for verdict in (
        monitor.update(draw_frame(rng), ACTION, PredictionCheck(draw_confidence(rng), 2)),
        monitor.update(None, ACTION),
        Verdict(Level.TRUST),
    ):
        fields = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
        assert fields["level"] == verdict.level.name.lower()
        assert fields["causes"] == list(verdict.causes)
        assert fields["latency_s"] == verdict.latency_s >= 0


def test_memory_is_constant(monitor: RuntimeMonitor) -> None:
    frames = [draw_frame(np.random.default_rng(i)) for i in range(8)]
    for frame in frames:
        monitor.update(frame, ACTION)
    tracemalloc.start()
    for i in range(16):
        monitor.update(frames[i % 8], ACTION)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for i in range(104):
        monitor.update(frames[i % 8], ACTION)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 4096  # one more frame per update would be 80 kB


def test_siblings_share_no_camera(monitor: RuntimeMonitor) -> None:
    """One robot's camera freezes while another's, seen in turn with it, goes on."""
    stuck, healthy = monitor.sibling(), monitor.sibling()
    rng = np.random.default_rng(16)
    frame = draw_frame(rng)
    causes = []
    for _ in range(4):
        causes.append(stuck.update(frame, ACTION).causes)
        assert "sensor.frozen" not in healthy.update(draw_frame(rng), ACTION).causes
    assert causes[-1] == ("sensor.frozen",)


def test_without_reference_the_calibration_episodes_are_split() -> None:
    rng = np.random.default_rng(14)
    every = [draw_episode(rng) for _ in range(38)]
    split = RuntimeMonitor(CONFIG).fit(every, frame_shape=SHAPE)
    told = RuntimeMonitor(CONFIG).fit(every[1::2], reference=every[::2], frame_shape=SHAPE)
    assert split.alarm_rule_.thresholds_ == told.alarm_rule_.thresholds_
    with pytest.raises(ValueError, match="needs at least 19 calibration episodes, got 18"):
        RuntimeMonitor(CONFIG).fit(every[:36], frame_shape=SHAPE)


def test_use_before_fit_is_refused(tmp_path: Path) -> None:
    for call in (
        lambda m: m.update(None, None),
        lambda m: m.reset(),
        lambda m: m.save(tmp_path),
        lambda m: m.watch(draw_episode(np.random.default_rng(0))),
    ):
        with pytest.raises(NotFittedError, match="RuntimeMonitor is not fitted"):
            call(RuntimeMonitor())


def test_a_loaded_monitor_gives_the_same_verdicts(monitor: RuntimeMonitor, tmp_path: Path) -> None:
    monitor.save(tmp_path / "monitor")
    loaded = RuntimeMonitor.load(tmp_path / "monitor", features=features)
    assert loaded.config == CONFIG
    rng = np.random.default_rng(15)
    for i in range(12):
        frame = draw_frame(rng, bright=8.0 * (i % 3))
        imagined = PredictionCheck(draw_confidence(rng), i + 1)
        one, other = (m.update(frame, ACTION, imagined) for m in (monitor, loaded))
        assert {**one.as_dict(), "latency_s": 0} == {**other.as_dict(), "latency_s": 0}


def test_saving_twice_gives_the_same_bytes_and_no_leftovers(
    monitor: RuntimeMonitor, tmp_path: Path
) -> None:
    for name in "ab":
        monitor.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["monitor.json", "monitor.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def edit(**change: object) -> object:
    def apply(path: Path) -> None:
        path.write_text(
            json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8"
        )

    return apply


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("monitor.safetensors", truncate, "does not match the checksum in monitor.json"),
        ("monitor.safetensors", flip, "does not match the checksum in monitor.json"),
        ("monitor.safetensors", Path.unlink, "No such file"),
        ("monitor.json", truncate, "cannot be read"),
        ("monitor.json", lambda path: path.write_text("[]"), "cannot be read"),
        ("monitor.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        ("monitor.json", edit(format=99), "its format is 99; this version reads 3"),
        ("monitor.json", edit(config={"alpha": 1}), "cannot be read"),
        ("monitor.json", edit(thresholds={"panic": 1.0}), "cannot be read"),
        ("monitor.json", edit(thresholds={"notice": "high"}), "cannot be read"),
        ("monitor.json", edit(frame_shape=None), "cannot be read"),
    ],
)
def test_damaged_monitor_is_refused_with_a_reason(
    monitor: RuntimeMonitor, tmp_path: Path, name: str, damage: object, reason: str
) -> None:
    monitor.save(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=reason) as caught:
        RuntimeMonitor.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("calibrate it again.")
