"""Certificates: verdicts from measurements, storage, and what commands make of them."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from worldmodel.certificate import (
    FILE,
    MONITOR,
    PLAN,
    RANK,
    SHOW,
    CalibrationError,
    Certificate,
    Gain,
    Mean,
    Outcomes,
    certificate_note,
    verified_uses,
)
from worldmodel.checkpoint import fingerprint
from worldmodel.model import WorldModel


def gain(horizon: int, value: float, half: float = 0.2) -> Gain:
    mean = Mean(value=value, low=value - half, high=value + half, n=40)
    return Gain(horizon=horizon, imagined=25 + value, copied=25.0, gain=mean)


def increase(value: float) -> Mean:
    return Mean(value=value, low=value - 0.1, high=value + 0.1, n=40)


GOOD = Certificate(
    model="0" * 16,
    made="2026-12-01",
    data="held-out",
    episodes=40,
    gains=[gain(h, 3.0) for h in (1, 2, 4, 8, 16)],
    actions={name: increase(0.8) for name in ("shuffled", "zeroed", "mirrored")},
    offsets={"-1": 0.5, "0": 0.2, "1": 0.4},
    inverse_dynamics={"real": 0.6, "imagined": 0.5},
    outcomes=Outcomes(
        failures=30, successes=30, success_given_failure=0.1, failure_given_success=0.1
    ),
    off_expert=1.1,
    calibration=[CalibrationError(data="held-out", episodes=40, ece=0.01)],
)


def certified(**changes: object) -> Certificate:
    measured = replace(GOOD, **changes)  # type: ignore[arg-type]
    return replace(measured, uses=verified_uses(measured))


def passed(found: Certificate) -> dict[str, bool | None]:
    return {use: verified.passed for use, verified in found.uses.items()}


def test_a_good_model_is_certified_for_everything() -> None:
    found = certified()
    assert passed(found) == dict.fromkeys((SHOW, MONITOR, RANK, PLAN), True)
    expected = "The model is certified to show pictures, monitor, rank policies and plan."
    assert found.sentence() == expected


def test_a_half_trained_model_is_worse_than_a_copy() -> None:
    """Five dB worse at every horizon: nothing to show, and nothing to monitor."""
    found = certified(gains=[gain(h, -5.0) for h in (1, 2, 4)])
    assert (passed(found)[SHOW], passed(found)[MONITOR]) == (False, False)
    assert found.worse_until == 4
    assert "worse than repeating the last frame up to 4 frames; " in found.sentence()
    assert "-5.0 dB [-5.2, -4.8] against repeating the last frame at 1 frames" in found.sentence()


def test_slightly_worse_is_no_worse() -> None:
    """The interval must exclude half a decibel."""
    assert certified(gains=[gain(8, -0.2)]).uses[SHOW].passed
    assert not certified(gains=[gain(8, -0.4)]).uses[SHOW].passed
    assert certified(gains=[gain(8, -0.2)]).worse_until == 0


def test_a_model_that_is_good_for_four_frames_is_not_certified_for_eight() -> None:
    found = certified(
        gains=[gain(h, g) for h, g in ((1, 3.0), (2, 2.0), (4, 1.0), (8, -4.0), (16, 3.0))]
    )
    assert (found.no_worse_until, found.worse_until) == (4, 0)
    assert not found.uses[SHOW].passed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"actions": {"zeroed": increase(0.0)}}, r"zeroed actions change the error by \+0%"),
        ({"offsets": {"-1": 0.1, "0": 0.2}}, "actions fit best when shifted by -1 frames"),
    ],
)
def test_actions_that_do_not_matter_stop_all_but_pictures(
    changes: dict[str, object], reason: str
) -> None:
    found = certified(**changes)
    assert passed(found) == {SHOW: True, MONITOR: False, RANK: False, PLAN: False}
    for use in (MONITOR, RANK, PLAN):
        assert re.match(reason, found.uses[use].reasons[0])


@pytest.mark.parametrize(
    ("optimism", "pessimism", "reason"),
    [
        (0.44, 0.1, "0.44 of 30 true failures are imagined as successes, at most 0.15 allowed"),
        (0.1, 0.5, "0.50 of 30 true successes are imagined as failures, at most 0.15 allowed"),
    ],
)
def test_wrong_outcomes_do_not_rank_policies(
    optimism: float, pessimism: float, reason: str
) -> None:
    outcomes = Outcomes(
        failures=30,
        successes=30,
        success_given_failure=optimism,
        failure_given_success=pessimism,
    )
    found = certified(outcomes=outcomes)
    assert passed(found) == {SHOW: True, MONITOR: True, RANK: False, PLAN: False}
    assert found.uses[RANK].reasons[0] == reason
    assert reason in found.sentence()


def test_what_was_not_measured_is_not_certified() -> None:
    found = certified(outcomes=None, off_expert=None, calibration=[], inverse_dynamics={})
    assert passed(found) == {SHOW: True, MONITOR: None, RANK: None, PLAN: None}
    assert "not measured: monitor, rank policies and plan" in found.sentence()


def test_few_failures_are_no_measurement() -> None:
    few = Outcomes(failures=5, successes=30, success_given_failure=0.0, failure_given_success=0.0)
    assert certified(outcomes=few).uses[RANK].passed is None


def test_the_worst_shift_decides_on_the_confidence() -> None:
    bad = CalibrationError(data="dark", episodes=9, ece=0.2)
    found = certified(calibration=[*GOOD.calibration, bad])
    assert found.uses[MONITOR].passed is False
    assert found.uses[MONITOR].reasons[0].startswith("calibration error 0.200 on dark")


@pytest.fixture
def folder(make_model: Callable[..., WorldModel], tmp_path: Path) -> Path:
    make_model().save(tmp_path / "model")
    return tmp_path / "model"


def test_it_is_read_back_as_written(folder: Path) -> None:
    found = certified(model=fingerprint(folder))
    found.save(folder)
    assert Certificate.load(folder) == found
    assert certificate_note(folder) == found.sentence()
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_a_certificate_of_other_weights_counts_as_none(folder: Path) -> None:
    certified().save(folder)
    assert Certificate.load(folder) is None
    assert "is of other weights" in certificate_note(folder)


def test_without_a_certificate_nothing_is_claimed(folder: Path) -> None:
    assert Certificate.load(folder) is None
    assert certificate_note(folder).startswith("The model has no certificate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": "many"}, "episodes"),
        ({"format": 99}, "is from another version; certify the model again"),
        ({"uses": {}}, "is from another version; certify the model again"),
        ({"gains": [{}]}, "gains"),
    ],
)
def test_a_damaged_certificate_is_refused(
    folder: Path, change: dict[str, object], message: str
) -> None:
    certified(model=fingerprint(folder)).save(folder)
    stored = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(stored | change))
    with pytest.raises(ValueError, match=message):
        Certificate.load(folder)
