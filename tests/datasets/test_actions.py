"""Action specs and the conversions between them."""

from dataclasses import replace

import numpy as np
import pytest

from worldmodel.datasets.actions import (
    CANONICAL,
    ActionSpec,
    DeltaPose,
    canonical_gripper,
    checked_rows,
    commanded_actions,
    convert,
    source_gripper,
)
from worldmodel.datasets.readers import annotation_json, mp4_npz, rlds

DELTA_SPECS = [CANONICAL, mp4_npz.SPEC, rlds.SPEC, replace(CANONICAL, gripper="closed_is_one")]
names = pytest.mark.parametrize("spec", DELTA_SPECS, ids=lambda spec: f"{spec.name}-{spec.gripper}")


def random_actions(num: int = 40) -> np.ndarray:
    generator = np.random.default_rng(0)
    motion = generator.uniform(-0.5, 0.5, (num, 6))
    return np.concatenate([motion, generator.uniform(0, 1, (num, 1))], axis=1).astype(np.float32)


def test_a_spec_survives_json() -> None:
    assert ActionSpec.from_dict(mp4_npz.SPEC.as_dict()) == mp4_npz.SPEC


def test_a_spec_refuses_a_scale_of_another_width() -> None:
    with pytest.raises(ValueError, match="`scale` needs 8 entries, got 7"):
        replace(CANONICAL, dim=8)


@pytest.mark.parametrize(
    ("gripper", "open_value", "closed_value"),
    [("open_is_one", 1.0, 0.0), ("closed_is_one", 0.0, 1.0), ("open_is_minus_one", -1.0, 1.0)],
)
def test_every_gripper_convention_opens_to_one(
    gripper: str, open_value: float, closed_value: float
) -> None:
    stored = np.array([open_value, closed_value])
    np.testing.assert_array_equal(canonical_gripper(stored, gripper), [1.0, 0.0])
    np.testing.assert_array_equal(source_gripper(np.array([1.0, 0.0]), gripper), stored)


def test_an_unknown_gripper_convention_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`gripper` must be one of open_is_one.*got 'open_is_two'"
    ):
        canonical_gripper(np.zeros(1), "open_is_two")


@names
def test_canonical_to_source_and_back(spec: ActionSpec) -> None:
    conversion = DeltaPose(spec)
    actions = random_actions()
    np.testing.assert_allclose(conversion(conversion.inverse(actions)), actions, atol=1e-6)


@names
def test_source_to_canonical_and_back(spec: ActionSpec) -> None:
    conversion = DeltaPose(spec)
    stored = np.zeros((40, spec.dim), np.float32)
    stored[:, :7] = random_actions()
    np.testing.assert_allclose(conversion.inverse(conversion(stored)), stored, atol=2e-6)


def test_worldgym_units_are_undone() -> None:
    stored = np.array([[35.0, -3.5, 0, 0, 0, 0.56, 1, 0, 0, 0], [0, 0, 0, 0.56, 0, 0, -1, 0, 0, 0]])
    expected = [[1, -0.1, 0, 0, 0, 0.1, 0], [0, 0, 0, 0.1, 0, 0, 1]]
    np.testing.assert_allclose(DeltaPose(mp4_npz.SPEC)(stored), expected, atol=1e-7)


def test_euler_changes_are_composed_not_copied() -> None:
    quarter_turns = np.array([[0, 0, 0, np.pi / 2, 0, np.pi / 2, 1]])  # x, then fixed z
    third = 2 * np.pi / 3 / np.sqrt(3)  # together: a third of a turn about (1, 1, 1)
    converted = DeltaPose(rlds.SPEC)(quarter_turns)[0, 3:6]
    np.testing.assert_allclose(converted, [third, third, third], atol=1e-6)


def test_a_moving_base_is_refused() -> None:
    stored = np.zeros((3, 10))
    stored[1, 8] = 0.1
    with pytest.raises(ValueError, match="mobile base"):
        DeltaPose(mp4_npz.SPEC)(stored)


def test_convert_leaves_rows_alone_if_only_the_name_differs() -> None:
    actions = random_actions()
    converted = convert(actions, CANONICAL, replace(CANONICAL, name="another robot"))
    np.testing.assert_array_equal(converted, actions)


def test_convert_between_two_sources_equals_the_way_through_canonical() -> None:
    stored = random_actions()
    converted = convert(stored, rlds.SPEC, mp4_npz.SPEC)
    np.testing.assert_allclose(converted[:, :3], stored[:, :3] * 35, rtol=1e-6)
    np.testing.assert_allclose(converted[:, 3:6], stored[:, 3:6] * 5.6, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(converted[:, 6], 1 - 2 * stored[:, 6], atol=1e-6)
    np.testing.assert_array_equal(converted[:, 7:], 0)


@pytest.mark.parametrize(
    "target",
    [
        annotation_json.SPEC,
        replace(CANONICAL, rate_hz=15.0),
        replace(CANONICAL, frame="end_effector"),
        replace(CANONICAL, space="joint_velocity", rotation="none"),
    ],
    ids=["absolute", "rate", "frame", "joints"],
)
def test_convert_refuses_what_would_lose_meaning_and_prints_both(target: ActionSpec) -> None:
    with pytest.raises(ValueError, match="No lossless conversion") as caught:
        convert(random_actions(), CANONICAL, target)
    assert str(CANONICAL) in str(caught.value)
    assert str(target) in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [[1.0, 2.0], [3.0]],
            "`actions` must be rows of 2 numbers, got ragged or non-numeric rows.",
        ),
        ([["a", "b"]], "`actions` must be rows of 2 numbers, got ragged or non-numeric rows."),
        (
            [[1.0, 2.0, 3.0]],
            r"`actions` must be rows of 2 numbers, got an array of shape \(1, 3\).",
        ),
        ([[1.0, 2.0], [0.0, np.nan]], "`actions` holds NaN or infinity, first in row 1 of 2."),
        ([[np.inf, 2.0]], "`actions` holds NaN or infinity, first in row 0 of 1."),
    ],
)
def test_rows_that_are_no_rows_are_refused(rows: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_rows(rows, dim=2, what="actions")


def test_the_start_up_row_and_the_last_row_are_not_valid() -> None:
    stored = np.full((4, 7), 0.01, np.float32)
    stored[0, :6] = 9e-7
    actions, valid = commanded_actions(stored, DeltaPose(rlds.SPEC))
    assert valid.tolist() == [False, True, True, False]
    assert not actions[[0, 3]].any()
    assert actions[1:3].all()


def test_a_moving_first_row_is_valid() -> None:
    stored = np.full((3, 7), 0.01, np.float32)
    _, valid = commanded_actions(stored, DeltaPose(rlds.SPEC))
    assert valid.tolist() == [True, True, False]
