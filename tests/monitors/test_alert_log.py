"""Alert log: JSON round trips, and no written line is lost when the writer is killed."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldmodel.monitors import Evidence, Level, Verdict
from worldmodel.monitors.alert_log import Alert, AlertLog, read_alerts

NUMBERS = st.none() | st.floats()
EVIDENCE = st.dictionaries(st.text(), st.tuples(NUMBERS, NUMBERS, st.text()), max_size=3)
MAPS = st.none() | arrays(np.float64, st.just((2, 3)), elements=st.floats(0, 1))


def verdict(score: float = 1.5, **changes: object) -> Verdict:
    fields = {
        "level": Level.STOP,
        "causes": ("appearance",),
        "evidence": {"appearance": Evidence(score, 1.0)},
        "trust_map": np.array([[0.1, 1 / 3]]),
        "latency_s": 0.01,
    }
    return Verdict(**{**fields, **changes})


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(Level), st.lists(st.text(), max_size=3), EVIDENCE, MAPS)
def test_verdict_round_trips_through_json_bit_for_bit(
    level: Level,
    causes: list[str],
    evidence: dict[str, tuple[float | None, float | None, str]],
    trust_map: np.ndarray | None,
) -> None:
    parts = {name: Evidence(*values) for name, values in evidence.items()}
    verdict = Verdict(level, tuple(causes), parts, trust_map, 1 / 3)
    back = Verdict.from_dict(json.loads(json.dumps(verdict.as_dict(), allow_nan=False)))
    assert back == verdict
    assert back.latency_s == verdict.latency_s


def test_equality_of_verdicts_ignores_only_latency() -> None:
    assert verdict() == verdict(latency_s=7.0)
    others = [
        verdict(score=np.nextafter(1.5, 2)),
        verdict(level=Level.NOTICE),
        verdict(causes=()),
        verdict(trust_map=None),
        verdict(trust_map=np.array([[0.1, 1 / 3]], np.float32)),
        verdict(trust_map=np.array([[0.1], [1 / 3]])),
        verdict(evidence={"appearance": Evidence(1.5, 1.0, "note")}),
    ]
    assert all(other != verdict() for other in others)
    assert verdict(score=np.nan) == verdict(score=np.nan)


@pytest.mark.parametrize(
    "fields", [{}, {"level": "panic"}, {**verdict().as_dict(), "evidence": {"a": 1}}]
)
def test_invalid_verdicts_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be a verdict as written by `as_dict`"):
        Verdict.from_dict(fields)


def test_alerts_are_read_in_order_and_appended_to_existing_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "alerts.jsonl"
    alerts = [Alert(episode="a", step=i, verdict=verdict(score=i / 3)) for i in range(4)]
    for part in (alerts[:2], alerts[2:]):
        with AlertLog(path, trust_maps=True) as log:
            for alert in part:
                log.write(alert)
    assert list(read_alerts(path)) == alerts
    assert [a.time_s for a in read_alerts(path)] == [a.time_s for a in alerts]


def test_trust_maps_are_stored_only_on_request(tmp_path: Path) -> None:
    with AlertLog(tmp_path / "alerts.jsonl") as log:
        log.write(Alert(step=0, verdict=verdict()))
    (alert,) = read_alerts(tmp_path / "alerts.jsonl")
    assert alert.verdict == verdict(trust_map=None)


@pytest.mark.parametrize("torn", [b'{"epi', b"x" * 10_000])
def test_unfinished_last_line_is_skipped_and_then_removed(tmp_path: Path, torn: bytes) -> None:
    path, alert = tmp_path / "alerts.jsonl", Alert(step=0, verdict=verdict(trust_map=None))
    with AlertLog(path) as log:
        log.write(alert)
    path.write_bytes(path.read_bytes() + torn)
    assert list(read_alerts(path)) == [alert]
    with AlertLog(path) as log:
        log.write(alert)
    assert list(read_alerts(path)) == [alert, alert]


DEEP = "[" * 100_000
LINE = json.dumps(Alert(step=3, verdict=verdict(), time_s=1.5).as_dict())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"episode": ""}', "missing required field `step`"),
        (LINE.replace('"step": 3', '"step": "3"'), "`step`: expected `int`, got `str`"),
        (LINE.replace('"time_s": 1.5', '"time_s": NaN'), "no NaN and no infinity, after `time_s`"),
        (LINE.replace('"stop"', '"panic"'), "`level`: invalid enum value 'panic'"),
        (LINE.replace("[[0.1,", "[[0.1], [0.1,"), "must be a verdict"),
        (LINE.replace("[[0.1,", '[["0.1",'), r"`trust_map\[0\]\[0\]`: expected"),
        (LINE.replace('"score": 1.5', '"score": "high"'), "invalid enum value 'high'"),
        (LINE.replace("[[0.1,", f"[[{DEEP}0.1,"), r"`trust_map\[0\]|nested too deeply"),
        (LINE.replace('"step": 3', f'"other": {DEEP}'), "nested too deeply"),
        (LINE[:-1], "is not valid JSON"),
    ],
)
def test_invalid_line_and_field_are_named_in_the_error(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_text(f"{LINE}\n{line}\n")
    alerts = read_alerts(path)
    assert next(alerts).step == 3
    with pytest.raises(ValueError, match=message) as caught:
        next(alerts)
    assert str(caught.value).startswith(f"{path}, line 2")


KILLED = """
import sys
from worldmodel.monitors import Level, Verdict
from worldmodel.monitors.alert_log import Alert, AlertLog
log = AlertLog(sys.argv[1])
for step in range(100):
    log.write(Alert(step=step, verdict=Verdict(Level.STOP)))
    if step == 20:
        print("written", flush=True)
        sys.stdin.read()
"""


def test_killed_writer_loses_no_written_line(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert [alert.step for alert in read_alerts(path)] == list(range(21))


def test_a_failed_write_leaves_no_part_of_a_line_and_later_ones_follow(tmp_path: Path) -> None:
    """As on a full disk: the write takes what fits, and the rest fails."""
    path, alert = tmp_path / "alerts.jsonl", Alert(step=0, verdict=verdict(trust_map=None))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AlertLog(path) as log:
        log.write(alert)
        size = path.stat().st_size
        for room in (1, size // 2, size - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, unlimited[1]))
            try:
                with pytest.raises(OSError, match="File too large"):
                    log.write(alert)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            assert path.stat().st_size == size
        log.write(alert)
    assert list(read_alerts(path)) == [alert, alert]


def test_a_line_that_could_not_be_cut_back_is_cut_before_the_next(tmp_path: Path) -> None:
    path, alert = tmp_path / "alerts.jsonl", Alert(step=0, verdict=verdict(trust_map=None))
    with AlertLog(path) as log:
        log.write(alert)
        with path.open("ab") as other:
            other.write(b'{"torn')
        log.write(alert)
    assert list(read_alerts(path)) == [alert, alert]


def test_a_second_writer_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path: Path) -> None:
    path, alert = tmp_path / "alerts.jsonl", Alert(step=0, verdict=verdict(trust_map=None))
    message = r"alerts\.jsonl is being written by another process; wait until it ends, or write"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        with pytest.raises(ValueError, match=message):
            AlertLog(path)
        writer.kill()
    with AlertLog(path) as log:
        with pytest.raises(ValueError, match=message):
            AlertLog(path)
        log.write(alert)
    assert len(list(read_alerts(path))) == 22
