"""Each action fault against what it should do to one action."""

import numpy as np
import pytest

from worldmodel.envs.faults import FAULTS, HOLD, make_fault

ACTION = np.array([0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 1.0])


def faulty(name: str, severity: int = 3) -> np.ndarray:
    return make_fault(name, severity, np.random.default_rng(0))(ACTION.copy())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scale", [0.025, 0.05, 0.075, 0.25, 0.5, 0.75, 1]),
        ("flip_y", [0.01, -0.02, 0.03, 0.1, 0.2, 0.3, 1]),
        ("swap_xy", [0.02, 0.01, 0.03, 0.1, 0.2, 0.3, 1]),
        ("wrong_frame", [-0.02, 0.01, 0.03, 0.1, 0.2, 0.3, 1]),
        ("invert_gripper", [0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 0]),
        ("frozen", HOLD),
    ],
)
def test_strongest_fault(name: str, expected: list[float]) -> None:
    assert faulty(name) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"delay", "invert_gripper", "uniform"}))
def test_faults_grow_with_severity(name: str) -> None:
    def mean_change(severity: int) -> float:
        fault = make_fault(name, severity, np.random.default_rng(1))
        return float(np.mean([np.abs(fault(ACTION.copy()) - ACTION).sum() for _ in range(300)]))

    assert mean_change(1) < mean_change(2) < mean_change(3)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_delay_repeats_earlier_actions(severity: int) -> None:
    fault = make_fault("delay", severity, np.random.default_rng(0))
    outputs = [fault(np.full(7, float(step))) for step in range(6)]
    expected = [HOLD] * severity + [np.full(7, float(step)) for step in range(6 - severity)]
    assert np.array(outputs) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("severity", "share"), [(1, 0.15), (2, 0.4), (3, 1.0)])
def test_inverted_gripper_strikes_with_its_probability(severity: int, share: float) -> None:
    fault = make_fault("invert_gripper", severity, np.random.default_rng(2))
    inverted = [fault(ACTION.copy())[6] == 0 for _ in range(1000)]
    assert np.mean(inverted) == pytest.approx(share, abs=0.065)  # over 4 standard errors


def test_unknown_faults_say_what_exists() -> None:
    with pytest.raises(ValueError, match=r"Unknown action fault 'scael'; known: .*'scale'\?"):
        make_fault("scael", 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"`severity` must be 1, 2 or 3, got 0\."):
        make_fault("scale", 0, np.random.default_rng(0))
