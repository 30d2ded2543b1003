"""Figures of the confidence in pictures."""

import numpy as np
import pytest

from worldmodel.rollouts.pixel_table import pixel_rows

RNG = np.random.default_rng(0)


def test_figures_by_hand() -> None:
    """Two episodes of two patches; errors 3 and 10 against δ = 4."""
    confidence = [np.array([[0.95], [0.5]]), np.array([[0.9], [0.1]])]
    error = [np.array([3.0, 10.0]), np.array([10.0, 3.0])]
    (row,) = pixel_rows(confidence, error, (4.0,))
    assert (row.delta, row.num_episodes, row.base_rate) == (4.0, 2, 0.5)
    assert (row.sure, row.right) == (0.5, 0.5)
    brier = (0.05**2 + 0.5**2 + 0.9**2 + 0.9**2) / 4
    assert row.skill == pytest.approx(1 - brier / 0.25)
    assert row.right_interval == (0.0, 1.0)


def test_a_calibrated_forecaster_has_no_error_and_keeps_its_word() -> None:
    confidence = [RNG.random((4000, 2)) for _ in range(20)]
    error = [np.where(RNG.random(4000) < c[:, 0], 1.0, 50.0) for c in confidence]
    row = pixel_rows([c[:, :1] for c in confidence], error, (8.0,))[0]
    assert row.ece < 0.01
    assert row.right == pytest.approx(0.95, abs=0.01)
    assert row.right_interval is not None
    low, high = row.right_interval
    assert low < row.right < high


def test_without_sure_patches_there_is_no_share_of_right_ones() -> None:
    row = pixel_rows([np.full((3, 1), 0.2)], [np.ones(3)], (4.0,))[0]
    assert (row.sure, row.right, row.right_interval, row.skill) == (0.0, None, None, None)


def test_one_array_per_episode() -> None:
    with pytest.raises(ValueError, match="one array per episode, got 1 and 2"):
        pixel_rows([np.ones((1, 1))], [np.ones(1)] * 2, (4.0,))
