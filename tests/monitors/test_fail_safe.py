"""Fail-safe: any input gives a verdict, never an exception, and invalid input is never trusted.

The shape checks of the test suite are off here, as on a robot.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jaxtyping
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldmodel.monitors import (
    EpisodeSignals,
    Level,
    MonitorConfig,
    PredictionCheck,
    RuntimeMonitor,
)
from worldmodel.monitors.replay import RecordedStep, replay

SHAPE = (8, 8, 3)
MAP = (2, 4, 4)
ACTION = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
MANY = settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(MANY, max_examples=30)
"""For whole sessions."""


@pytest.fixture(autouse=True)
def as_on_a_robot() -> Iterator[None]:
    """No shape checks, and warnings that are not errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


def features(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = frame.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).astype(np.float32)
    return places.mean(axis=(0, 1)), places


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 160, SHAPE, dtype=np.uint8)


def claim(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.6, 1.0, MAP)


def episode(seed: int) -> EpisodeSignals:
    pooled, places = zip(*(features(picture(10 * seed + t)) for t in range(4)), strict=True)
    return EpisodeSignals(
        pooled=np.stack(pooled),
        positions=np.stack(places),
        confidence=np.stack([claim(10 * seed + t) for t in range(4)]),
        horizon=np.arange(1, 5),
    )


@pytest.fixture(scope="module")
def fitted() -> RuntimeMonitor:
    config = MonitorConfig(alpha_notice=0.1, alpha_degrade=0.1, alpha_stop=0.1, calm_steps=3)
    episodes = [episode(seed) for seed in range(40)]
    return RuntimeMonitor(config, features=features).fit(episodes, frame_shape=SHAPE)


@pytest.fixture
def monitor(fitted: RuntimeMonitor) -> RuntimeMonitor:
    return fitted.sibling()


def good(seed: int = 0) -> tuple[Any, Any, Any]:
    return picture(10 * seed), ACTION, PredictionCheck(claim(10 * seed), 1)


ANY_ARRAY = st.one_of(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes()),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    ),
    hnp.arrays(object, (2,), elements=st.none() | st.text(max_size=1)),
)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
) | st.lists(st.integers(), max_size=3)

OTHER_TYPES = ("i1", ">u2", "<i8", "?", ">f4", "<f8", "f2", "g", "c8", "S1", "U1", "M8[s]", "O")
BROKEN_FRAMES = st.one_of(
    ANYTHING,
    ANY_ARRAY,
    st.sampled_from(OTHER_TYPES).map(lambda kind: picture(0).astype("i4").astype(kind)),
    st.sampled_from([np.nan, np.inf, -np.inf]).map(lambda x: np.where(picture(0) > 90, x, 1.0)),
    st.integers(0, 255).map(lambda grey: np.full(SHAPE, grey, np.uint8)),
    st.sampled_from([(8, 3, 8), (4, 8, 3), (1, 8, 8, 3), (192,), (8, 8, 4), (8, 8), (8, 0, 3)]).map(
        lambda shape: np.resize(picture(0), shape) if 0 not in shape else np.zeros(shape, np.uint8)
    ),
    st.just(np.ma.masked_array(picture(0), mask=True)),
    st.just(np.ma.masked_array(picture(0))),
    st.just(picture(0).view([("r", "u1")])),
    st.just(np.broadcast_to(np.uint8(77), SHAPE)),
)
LATEST = 1e11
"""Seconds; a time beyond is none."""
BROKEN_TIMES = st.one_of(
    st.none() | st.booleans() | st.text(max_size=3) | st.binary(max_size=3) | st.complex_numbers(),
    st.floats(allow_nan=True).filter(lambda x: not abs(x) <= LATEST),
    st.integers().map(lambda n: n + int(LATEST) + 1 if n >= 0 else n - int(LATEST) - 1),
    st.lists(st.floats()).filter(lambda values: len(values) != 1),
    st.lists(st.none() | st.lists(st.floats()), min_size=1),
    ANY_ARRAY.filter(lambda a: a.shape not in ((), (1,)) or a.dtype.kind not in "iuf"),
    st.just(np.ma.masked_array([1.0], mask=True)),
    st.dictionaries(st.text(max_size=2), st.floats(0, 1)),
)
BROKEN_OBSERVATIONS = BROKEN_FRAMES | st.one_of(
    st.fixed_dictionaries({"image": BROKEN_FRAMES}),
    st.fixed_dictionaries({"image": BROKEN_FRAMES, "time_s": BROKEN_TIMES | st.floats()}),
    st.fixed_dictionaries({"image": st.just(picture(0)), "time_s": BROKEN_TIMES}),
    st.just({"picture": picture(0)}),
    st.just({"image": {"image": picture(0)}}),
    st.just(defaultdict(dict)),
    st.just(MappingProxyType({})),
)
BROKEN_ACTIONS = st.one_of(
    ANYTHING.filter(lambda thing: thing is not None),
    ANY_ARRAY,
    st.integers(0, 9).filter(lambda n: n != 7).map(lambda n: np.zeros(n, np.float32)),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -11.0]).flatmap(
        lambda x: st.integers(0, 6).map(lambda i: np.where(np.arange(7) == i, x, ACTION))
    ),
    st.sampled_from(["i4", "?", "c8", "O", "S3"]).map(ACTION.astype),
    st.just(np.ma.masked_array(ACTION, mask=True)),
    st.just(np.full(7, np.longdouble("1e4000"))),
    st.just(ACTION[None]),
)
BROKEN_MAPS = st.one_of(
    ANYTHING,
    ANY_ARRAY,
    st.sampled_from([np.nan, np.inf, -0.1, 1.1, 1e30]).map(
        lambda x: np.where(claim(0) > 0.8, x, claim(0))
    ),
    st.sampled_from([(4, 4), (2, 4, 5), (2, 0, 4), (0, 4, 4), (1, 2, 4, 4), ()]).map(np.ones),
    st.sampled_from(["i4", "?", "c8", "O", "S3"]).map(claim(0).astype),
    st.just(np.ma.masked_array(claim(0), mask=True)),
)
BROKEN_CLAIMS = st.one_of(
    ANYTHING.filter(lambda thing: thing is not None),
    ANY_ARRAY,
    st.builds(PredictionCheck, BROKEN_MAPS, st.integers(0, 9)),
    st.builds(
        PredictionCheck,
        st.just(claim(0)),
        st.sampled_from([-1, 1.5, 1.0, np.nan, np.inf, "1", None, True, [1], np.array([1])]),
    ),
)
BROKEN_STEPS = st.one_of(
    st.tuples(BROKEN_OBSERVATIONS, st.just(ACTION), st.just(good()[2])),
    st.tuples(st.just(good()[0]), BROKEN_ACTIONS, st.just(good()[2])),
    st.tuples(st.just(good()[0]), st.just(ACTION), BROKEN_CLAIMS),
    st.tuples(BROKEN_OBSERVATIONS, BROKEN_ACTIONS, BROKEN_CLAIMS),
)


def test_valid_step_behind_the_broken_ones_is_trusted(
    monitor: RuntimeMonitor,
) -> None:
    assert monitor.update(*good()).level == Level.TRUST


@MANY
@given(step=BROKEN_STEPS)
def test_invalid_input_is_a_stop_with_its_cause(
    monitor: RuntimeMonitor, step: tuple[Any, Any, Any]
) -> None:
    monitor.reset()
    verdict = monitor.update(*step)
    assert verdict.level == Level.STOP
    assert verdict.causes
    assert verdict.causes[0].startswith(("sensor.", "monitor."))
    assert verdict.evidence[verdict.causes[0]].note


@MANY
@given(times=st.lists(st.floats(-3, 3) | st.floats(), min_size=2, max_size=6))
def test_trust_needs_increasing_times(monitor: RuntimeMonitor, times: list[float]) -> None:
    monitor.reset()
    before = None
    for seed, time_s in enumerate(times):
        frame, action, imagined = good(seed)
        verdict = monitor.update({"image": frame, "time_s": time_s}, action, imagined)
        usable = abs(time_s) <= LATEST
        in_order = usable and (before is None or time_s > before)
        assert ("sensor.late" in verdict.causes) == (not in_order)
        assert in_order or verdict.level == Level.STOP
        before = time_s if usable else None


@FEW
@given(steps=st.lists(st.just(good()) | BROKEN_STEPS, min_size=2, max_size=8))
def test_monitor_recovers_from_invalid_input_after_calm_steps(
    monitor: RuntimeMonitor, steps: list[tuple[Any, Any, Any]]
) -> None:
    """After any three healthy steps the verdict is that of a monitor that saw no garbage."""
    monitor.reset()
    for step in steps:
        monitor.update(*step)
    after = [monitor.update(*good(seed)) for seed in (1, 2, 3)]
    monitor.reset()
    fresh = [monitor.update(*good(seed)) for seed in (1, 2, 3)]
    assert {v.level for v in fresh} == {Level.TRUST}
    assert after[-1].level == Level.TRUST
    assert after[-1].evidence["appearance"] == fresh[-1].evidence["appearance"]


@FEW
@given(broken=st.lists(BROKEN_STEPS, max_size=6))
def test_session_of_invalid_input_replays_to_the_same_verdicts(
    monitor: RuntimeMonitor, broken: list[tuple[Any, Any, Any]]
) -> None:
    steps = [good(), *broken, good(1)]
    monitor.reset()
    live = [monitor.update(*one) for one in steps]
    recorded = [
        RecordedStep(observation=o, action=a, imagined=i, latency_s=verdict.latency_s)
        for (o, a, i), verdict in zip(steps, live, strict=True)
    ]
    again = list(replay(monitor, recorded))
    assert again == live
    assert [v.latency_s for v in again] == [v.latency_s for v in live]


LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "sliced": lambda a: np.pad(a, [(1, 1)] * a.ndim)[tuple([slice(1, -1)] * a.ndim)],
    "swapped": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": lambda a: (
        np.frombuffer(b"\0" + a.tobytes(), "u1")[1:].view(a.dtype).reshape(a.shape)
    ),
    "subclass": lambda a: a.view(np.recarray),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_layout_does_not_matter(monitor: RuntimeMonitor, layout: Any) -> None:
    frame, action, imagined = good()
    plain = monitor.update(frame, action, imagined)
    monitor.reset()
    parts = [layout(array) for array in (frame, action, imagined.confidence)]
    for part in parts:
        part.flags.writeable = False
    other = monitor.update({"image": parts[0]}, parts[1], PredictionCheck(parts[2], 1))
    assert other.level == Level.TRUST
    assert other == plain


BROKEN_FEATURES = st.one_of(
    ANYTHING,
    ANY_ARRAY,
    st.sampled_from([np.nan, np.inf, 1e200, 1e300]).map(
        lambda x: (np.full(3, x), features(picture(0))[1])
    ),
    st.sampled_from([np.nan, -np.inf, 1e200]).map(
        lambda x: (features(picture(0))[0], np.full((4, 4, 3), x))
    ),
    st.sampled_from(["i4", "?", "c16", "O", "S5"]).map(
        lambda kind: tuple(part.astype(kind) for part in features(picture(0)))
    ),
    st.just(tuple(np.ma.masked_array(part, mask=True) for part in features(picture(0)))),
    st.tuples(ANY_ARRAY, ANY_ARRAY),
)


@MANY
@given(made=BROKEN_FEATURES)
def test_broken_features_are_a_stop(monitor: RuntimeMonitor, made: Any) -> None:
    monitor.features = lambda frame: made
    monitor.reset()
    verdict = monitor.update(*good())
    assert verdict.level == Level.STOP
    assert verdict.evidence[verdict.causes[0]].note or verdict.causes[0] in ("appearance", "region")


class OwnError(Exception):
    """Of a library that derives from nothing more telling."""


def test_an_exception_of_any_class_is_a_stop(monitor: RuntimeMonitor) -> None:
    def failing(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise OwnError("no weights")

    monitor.features = failing
    verdict = monitor.update(*good())
    assert verdict.causes == ("monitor.error",)
    assert verdict.evidence["monitor.error"].note == "OwnError: no weights"


@pytest.mark.parametrize(("took_s", "late"), [(0.01, False), (0.02, False), (0.021, True)])
def test_missed_deadline_is_a_stop_that_keeps_the_evidence(
    monitor: RuntimeMonitor, took_s: float, late: bool
) -> None:
    clock, monitor.clock, monitor.deadline_s = monitor.clock, iter((0.0, took_s)).__next__, 0.02
    try:
        verdict = monitor.update(*good())
    finally:
        monitor.clock, monitor.deadline_s = clock, None
    assert verdict.latency_s == took_s
    assert verdict.level == (Level.STOP if late else Level.TRUST)
    assert verdict.causes == (("monitor.deadline",) if late else ())
    assert verdict.evidence["appearance"].score is not None
    assert ("monitor.deadline" in verdict.evidence) == late


def test_a_missed_deadline_is_missed_again_in_the_replay(monitor: RuntimeMonitor) -> None:
    monitor.deadline_s = 0.02
    times = (0.01, 0.5, 0.01)
    observation, action, imagined = good()
    steps = [
        RecordedStep(observation=observation, action=action, imagined=imagined, latency_s=s)
        for s in times
    ]
    try:
        verdicts = list(replay(monitor, steps))
    finally:
        monitor.deadline_s = None
    assert [v.level for v in verdicts] == [Level.TRUST, Level.STOP, Level.STOP]
    assert [v.causes for v in verdicts] == [(), ("monitor.deadline",), ("held",)]


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan")])
def test_invalid_deadline_is_refused(deadline_s: float) -> None:
    with pytest.raises(ValueError, match="`deadline_s` must be above 0 or None"):
        RuntimeMonitor(deadline_s=deadline_s)


def test_a_stored_session_replays_on_a_stored_monitor(
    monitor: RuntimeMonitor, tmp_path: Path
) -> None:
    """Frames, actions and claims as files, the monitor as files: the same bits."""
    bright = np.clip(picture(50).astype(int) + 60, 0, 255).astype(np.uint8)
    frames = np.stack([picture(0), picture(10), bright, np.zeros_like(bright), picture(20)])
    claims = np.stack([claim(10 * t) for t in range(5)]).astype(np.float32)
    live = [
        monitor.update(f, ACTION, PredictionCheck(c, 2))
        for f, c in zip(frames, claims, strict=True)
    ]
    assert len({v.level for v in live}) > 1
    monitor.save(tmp_path / "monitor")
    np.savez(tmp_path / "session.npz", frames=frames, claims=claims)
    loaded = RuntimeMonitor.load(tmp_path / "monitor", features=features)
    session = np.load(tmp_path / "session.npz")
    steps = [
        RecordedStep(observation=frame, action=ACTION, imagined=PredictionCheck(stated, 2))
        for frame, stated in zip(session["frames"], session["claims"], strict=True)
    ]
    assert list(replay(loaded, steps)) == live


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda judge: judge.thresholds_.update({Level.STOP: float("nan")}), "and no infinity"),
        (lambda judge: judge.thresholds_.update({Level.STOP: float("inf")}), "and no infinity"),
        (lambda judge: judge.thresholds_.pop(Level.STOP), "its thresholds are"),
        (lambda judge: judge.channels_.appearance.whitener_.fill(np.nan), "NaN or infinite"),
        (lambda judge: judge.channels_.appearance.bank_.fill(np.nan), "NaN or infinite"),
    ],
)
def test_a_monitor_that_could_never_alarm_is_refused(
    fitted: RuntimeMonitor, tmp_path: Path, damage: Any, reason: str
) -> None:
    fitted.save(tmp_path / "good")
    broken = RuntimeMonitor.load(tmp_path / "good")
    damage(broken.alarm_rule_)
    broken.save(tmp_path / "bad")
    with pytest.raises(ValueError, match=reason):
        RuntimeMonitor.load(tmp_path / "bad")
