"""Alerts as JSON lines: nothing is lost in the file, whenever the writer dies."""

import json
import os
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
def test_a_verdict_survives_json_bit_for_bit(
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


def test_verdicts_differ_by_anything_but_their_latency() -> None:
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
def test_what_is_no_verdict_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be a verdict as `as_dict` gives it"):
        Verdict.from_dict(fields)


def test_alerts_come_back_in_order_and_a_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "new" / "alerts.jsonl"
    alerts = [Alert(episode="a", step=i, verdict=verdict(score=i / 3)) for i in range(4)]
    for part in (alerts[:2], alerts[2:]):
        with AlertLog(path, trust_maps=True) as log:
            for alert in part:
                log.write(alert)
    assert list(read_alerts(path)) == alerts
    assert [a.time_s for a in read_alerts(path)] == [a.time_s for a in alerts]


def test_maps_of_trust_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    with AlertLog(tmp_path / "alerts.jsonl") as log:
        log.write(Alert(step=0, verdict=verdict()))
    (alert,) = read_alerts(tmp_path / "alerts.jsonl")
    assert alert.verdict == verdict(trust_map=None)


@pytest.mark.parametrize("torn", [b'{"epi', b"x" * 10_000])
def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path: Path, torn: bytes) -> None:
    path, alert = tmp_path / "alerts.jsonl", Alert(step=0, verdict=verdict(trust_map=None))
    with AlertLog(path) as log:
        log.write(alert)
    path.write_bytes(path.read_bytes() + torn)
    assert list(read_alerts(path)) == [alert]
    with AlertLog(path) as log:
        log.write(alert)
    assert list(read_alerts(path)) == [alert, alert]


def test_a_line_that_is_no_alert_is_named(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_text('{"episode": ""}\n')
    with pytest.raises(ValueError, match=r"alerts\.jsonl line 1 is no alert"):
        list(read_alerts(path))


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


def test_a_killed_writer_loses_nothing_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert [alert.step for alert in read_alerts(path)] == list(range(21))
