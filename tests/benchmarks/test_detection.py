"""The detection benchmark: what counts as an alarm and as the right cause, and going on later."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.detection import run as bench
from benchmarks.detection.__main__ import main
from benchmarks.detection.run import (
    ACTIONS,
    LOOKS,
    SETTLED,
    Cell,
    DetectionConfig,
    Watched,
    as_commanded,
    first_cause,
    main_cause,
    settled_cause,
)
from benchmarks.detection.tables import tables
from worldmodel.envs.collect import Collection, record
from worldmodel.monitors.alarm_rule import AlarmRule, MonitorConfig, Scale
from worldmodel.monitors.channels.channel_set import SIGNALS
from worldmodel.monitors.verdict import Level

TIME = 20
CONFIG = DetectionConfig(nominal=4, shifted=2, onset=6)


def alarm_rule() -> AlarmRule:
    """Every signal's unit is 1, and 3 gives notice."""
    made = AlarmRule(MonitorConfig())
    made.scales_ = {name: Scale(0.0, 1.0) for name in SIGNALS}
    made.thresholds_ = dict.fromkeys(list(Level)[1:], 3.0)
    return made


def watched(cell: Cell, *, seed: int, cause: str | None) -> Watched:
    """From its onset on an episode of a shift has a high score, and the cause from 2 frames on."""
    rng = np.random.default_rng(seed)
    scores = {name: rng.normal(size=TIME).clip(-2, 2) for name in SIGNALS}
    levels, causes = np.zeros(TIME, int), [[] for _ in range(TIME)]  # type: list[list[str]]
    if cause is not None:
        scores["colour"][cell.onset :] += 20
        levels[cell.onset :] = Level.NOTICE
        names = ["unknown"] * 2 + [cause] * TIME
        causes[cell.onset :] = [[names[i]] for i in range(TIME - cell.onset)]
    error = np.concatenate([np.zeros(4), rng.uniform(0.1, 0.2, TIME - 4)])
    return Watched(
        scores={name: list(values) for name, values in scores.items()},
        levels=levels.tolist(),
        causes=causes,
        error=error.tolist(),
    )


def right_name(cell: Cell) -> str | None:
    kinds = {"looks": cell.name, "wiring": "action_ignored"}
    return {**kinds, "policy": "action_out_of_range"}.get(cell.kind)


@pytest.fixture(scope="module")
def results() -> dict[Cell, list[Watched]]:
    return {
        cell: [watched(cell, seed=i, cause=right_name(cell)) for i in range(number)]
        for cell, number in bench.plan(CONFIG)
    }


def test_the_plan_has_every_shift_severity_and_onset() -> None:
    cells = [cell for cell, _ in bench.plan(CONFIG)]
    assert len(cells) == len(set(cells)) == 4 + 6 * (len(LOOKS) + 2 * len(ACTIONS))
    seeds = {cell.collection(0).seed for cell in cells if cell.kind in ("nominal", "benign")}
    assert len(seeds) == 4  # no scene is counted twice


def test_tables_of_a_perfect_monitor(results: dict[Cell, list[Watched]]) -> None:
    detection, weak, both, signals, benign, at_once, soon, most, harm = tables(
        results, alarm_rule()
    )
    assert len(weak.rows) == len(LOOKS) + 2 * len(ACTIONS)
    assert all(str(cell).startswith("1.00 [") for row in weak.rows for cell in row[1:])
    assert len(detection.rows) == 6 * (len(LOOKS) + 2 * len(ACTIONS))
    for row in detection.rows:
        assert str(row[3]).startswith("1.00 [")
        assert row[-1] == "0"
    assert all(row[1:] == ("8", row[2], "0", "0") for row in both.rows)
    assert all(str(row[2]).startswith("1.00") for row in both.rows)
    colour = signals.columns.index("colour")
    assert all(row[colour] == "1.00" for row in signals.rows)
    assert all(str(row[2]).startswith("0.00 [0.00") for row in benign.rows)
    assert str(at_once.rows[-1][-2]).startswith("0.00")
    assert str(at_once.rows[-1][-1]).startswith(
        "0.00"
    )  # "unknown" is not right, nor is it another cause
    for table in (soon, most):
        assert all(str(row[-2]).startswith("1.00") for row in table.rows)
    assert sum(int(row[2]) for row in harm.rows) == 2 * 9 * len(LOOKS)  # mid-episode ones twice
    assert {row[-1][:4] for row in harm.rows if row[2] != "0"} == {"1.00"}


def test_a_wrong_name_counts_as_wrong(results: dict[Cell, list[Watched]]) -> None:
    cell = Cell(kind="looks", name="camera", severity=3, onset=0)
    spoilt = {**results, cell: [watched(cell, seed=0, cause="lighting")] * 2}
    row = next(r for r in tables(spoilt, alarm_rule())[6].rows if r[0] == "scene: camera")
    assert str(row[-1]).startswith("0.25")


def test_the_weakest_cell_is_named_with_its_severity(results: dict[Cell, list[Watched]]) -> None:
    """One onset of one severity looks nominal: its AUROC is that of chance."""
    calm = results[Cell(kind="nominal", name="nominal")]
    weak = Cell(kind="looks", name="clutter", severity=1, onset=0)
    spoilt = {**results, weak: calm[: len(results[weak])]}
    row = next(r for r in tables(spoilt, alarm_rule())[1].rows if r[0] == "scene: clutter")
    assert str(row[1]).endswith(" (chance)")
    assert all(str(cell).startswith("1.00") for cell in row[2:])


def test_what_is_held_is_no_alarm_of_its_own() -> None:
    row = Watched(
        scores={},
        levels=[0, 1, 1, 1, 1, 1, 1, 1, 0],
        causes=[[], ["a"], ["b"], ["held"], ["b"], ["b"], ["held"], ["c", "a"], []],
        error=[],
    )
    assert (first_cause(row, 0), main_cause(row, 0), settled_cause(row, 0)) == ("a", "b", "b")
    assert first_cause(row, 3) == "b"
    assert settled_cause(row, 7 - SETTLED + 1) == "c"
    assert first_cause(row, 8) is None
    assert main_cause(row, 8) is None
    assert settled_cause(row, 8) is None


def test_a_fault_behind_the_policy_shows_what_the_policy_meant() -> None:
    scene = Collection(
        renderer="ray", factor="flip_y", severity=3, onset=2, seed=4, size=16, num_steps=5
    )
    (done,) = record([(scene, 0)])
    meant = as_commanded(done)
    assert meant.actions[:2] == pytest.approx(done.actions[:2])
    assert meant.actions[2:4, 1] == pytest.approx(-done.actions[2:4, 1])
    assert not meant.actions[-1].any()


def test_it_goes_on_where_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, results: dict[Cell, list[Watched]]
) -> None:
    done: list[Cell] = []

    def watch_cell(
        model: Any, calibration: Any, cell: Cell, number: int, config: Any
    ) -> list[Watched]:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(cell)
        return results[cell]

    class Stub:
        def __init__(self) -> None:
            self.monitor = self
            self.alarm_rule_ = alarm_rule()

    monkeypatch.setattr(bench, "watch_cell", watch_cell)
    calibration: Any = Stub()
    with pytest.raises(KeyboardInterrupt):
        bench.run.__wrapped__(None, calibration, CONFIG, tmp_path / "out")  # type: ignore[attr-defined]
    first = list(done)
    done.clear()
    monkeypatch.setattr(
        bench, "watch_cell", lambda m, t, cell, n, c: done.append(cell) or results[cell]
    )
    found = bench.run.__wrapped__(None, calibration, CONFIG, tmp_path / "out")  # type: ignore[attr-defined]
    assert not set(first) & set(done)
    assert set(found) == set(results)
    cell = Cell(kind="looks", name="camera", severity=3, onset=0)
    assert json.dumps([asdict(row) for row in found[cell]]) == json.dumps(
        [asdict(row) for row in results[cell]]
    )
    other = DetectionConfig(nominal=5, shifted=2, onset=8)
    with pytest.raises(ValueError, match=r"holds results of other settings; give another `--out`"):
        bench.run.__wrapped__(None, calibration, other, tmp_path / "out")  # type: ignore[attr-defined]


def test_it_writes_into_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no results; give another `--out`"):
        bench.check_settings(tmp_path, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--severities", "7"], "`severity` must be 1, 2 or 3, got 7."),
        (["--onset", "60"], "`onset` must be below the number of frames, 40, got 60."),
        (["--onset", "0"], "`--onset` must be at least 1, got 0."),
        (["--nominal", "1"], "`--nominal` must be at least 2, got 1."),
        (["--shifted", "0"], "`--shifted` must be at least 1, got 0."),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out"), *options]) == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()
    assert not (tmp_path / "out").exists()
