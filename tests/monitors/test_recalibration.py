"""Isotonic curves against scikit-learn, and curves per tolerance, horizon and camera."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.reliability.counts import Reliability
from worldmodel.monitors.reliability.measures import bin_forecasts, expected_calibration_error
from worldmodel.monitors.reliability.recalibration import (
    METHODS,
    CameraRecalibration,
    EpsilonRecalibration,
    HorizonRecalibration,
    IsotonicRecalibration,
)


def overconfident(seed: int, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.random(n).round(2)  # ties, as bins have
    return p, rng.random(n) < 0.5 * p + 0.1


@pytest.mark.parametrize("weighted", [False, True])
def test_curve_is_scikit_learns(weighted: bool) -> None:
    p, y = overconfident(seed=0, n=500)
    weight = np.random.default_rng(1).random(500) if weighted else None
    theirs = IsotonicRegression(out_of_bounds="clip").fit(p, y.astype(float), weight)
    ours = IsotonicRecalibration().fit(p, y, weight)
    grid = np.linspace(0, 1, 997)
    np.testing.assert_allclose(ours.predict(grid), theirs.predict(grid), atol=1e-9)


def test_binned_sums_give_the_curve_of_the_forecasts() -> None:
    p, y = overconfident(seed=2)
    p = (np.floor(p * 19.9) + 0.5) / 20  # one value per bin: binning loses nothing
    binned = IsotonicRecalibration().fit_bins(bin_forecasts(p, y, num_bins=20))
    grid = np.linspace(0, 1, 101)
    np.testing.assert_allclose(
        binned.predict(grid), IsotonicRecalibration().fit(p, y).predict(grid), atol=1e-9
    )


def test_recalibration_lowers_the_error_of_new_forecasts() -> None:
    """4000 forecasts each, seeds 3 and 4: 0.15 before; afterwards noise of about 0.01 is left."""
    curve = IsotonicRecalibration().fit(*overconfident(seed=3))
    p, y = overconfident(seed=4)
    assert expected_calibration_error(bin_forecasts(p, y)) > 0.13
    assert expected_calibration_error(bin_forecasts(curve.predict(p), y)) < 0.03


def test_prediction_keeps_the_shape_and_never_falls() -> None:
    curve = IsotonicRecalibration().fit(*overconfident(seed=5, n=50))
    grid = np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5)
    predicted = curve.predict(grid)
    assert predicted.shape == (3, 4, 5)
    assert (np.diff(predicted.ravel()) >= 0).all()


def test_a_larger_tolerance_is_never_less_likely() -> None:
    """Each curve alone would break the order: only the first tolerance is underconfident."""
    rng = np.random.default_rng(6)
    p = rng.random((2, 2000))
    p[1] = np.maximum(p[0], p[1])
    correct = rng.random((2, 2000)) < np.stack([0.9 + 0 * p[0], 0.5 * p[1]])
    bins = [
        bin_forecasts(row, came_true, num_bins=50)
        for row, came_true in zip(p, correct, strict=True)
    ]
    curves = [IsotonicRecalibration().fit_bins(b) for b in bins]
    assert (curves[0].predict(p[0]) > curves[1].predict(p[1])).any()
    recalibrated = EpsilonRecalibration((0.1, 0.2)).fit(bins).predict(p)
    assert (recalibrated[1] >= recalibrated[0]).all()
    np.testing.assert_array_equal(recalibrated[0], curves[0].predict(p[0]))


def test_arrays_restore_the_curves() -> None:
    bins = [bin_forecasts(*overconfident(seed), num_bins=30) for seed in (7, 8)]
    fitted = EpsilonRecalibration((0.1, 0.2)).fit(bins)
    restored = EpsilonRecalibration.from_arrays(fitted.arrays())
    grid = np.random.default_rng(9).random((2, 40))
    assert restored.epsilons == (0.1, 0.2)
    np.testing.assert_array_equal(restored.predict(grid), fitted.predict(grid))


def by_horizon(horizons: dict[int, int]) -> HorizonRecalibration:
    """Curves of one tolerance from overconfident forecasts: horizon -> seed."""
    bins = {h: [bin_forecasts(*overconfident(seed), num_bins=30)] for h, seed in horizons.items()}
    return HorizonRecalibration((0.5,)).fit(bins)


def test_each_horizon_has_the_curves_of_its_band() -> None:
    """Horizons 5 and 6 share a band: their forecasts count together, and 9 begins another."""
    fitted = by_horizon({1: 1, 5: 2, 6: 3, 9: 4})
    grid = np.random.default_rng(9).random((1, 40))
    p, y = (np.concatenate(pair) for pair in zip(overconfident(2), overconfident(3), strict=True))
    together = EpsilonRecalibration((0.5,)).fit([bin_forecasts(p, y, num_bins=30)])
    np.testing.assert_allclose(fitted.predict(grid, horizon=5), together.predict(grid))
    np.testing.assert_allclose(fitted.predict(grid, horizon=6), together.predict(grid))
    alone = EpsilonRecalibration((0.5,)).fit([bin_forecasts(*overconfident(4), num_bins=30)])
    for horizon in (7, 9, 500):  # the first band learned that is not shorter, else the last
        np.testing.assert_array_equal(fitted.predict(grid, horizon=horizon), alone.predict(grid))


def test_arrays_restore_the_curves_of_every_horizon() -> None:
    fitted = by_horizon({1: 1, 2: 2, 12: 3})
    restored = HorizonRecalibration.from_arrays(fitted.arrays())
    assert restored.epsilons == (0.5,)
    grid = np.random.default_rng(9).random((1, 40))
    for horizon in (1, 2, 12, 20):
        np.testing.assert_array_equal(
            restored.predict(grid, horizon=horizon), fitted.predict(grid, horizon=horizon)
        )
    with pytest.raises(ValueError, match="`arrays` must hold a curve"):
        HorizonRecalibration.from_arrays({})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_chosen_and_restored_by_name(method: str) -> None:
    bins = {1: [bin_forecasts(*overconfident(seed), num_bins=30) for seed in (7, 8)]}
    fitted = HorizonRecalibration((0.1, 0.2), method=method).fit(bins)
    restored = HorizonRecalibration.from_arrays(fitted.arrays())
    assert restored.method == method
    grid = np.random.default_rng(9).random((2, 40))
    expected = np.stack(
        [METHODS[method]().fit_bins(b).predict(g) for b, g in zip(bins[1], grid, strict=True)]
    )
    np.testing.assert_allclose(
        fitted.predict(grid, horizon=1), np.maximum.accumulate(expected, axis=0)
    )
    np.testing.assert_array_equal(
        restored.predict(grid, horizon=1), fitted.predict(grid, horizon=1)
    )


def counted(episodes: dict[str, int], *, horizons: tuple[int, ...] = (1,)) -> Reliability:
    """Camera -> so many episodes; "front" states too much, "wrist" too little."""
    rng = np.random.default_rng(10)
    reliability = Reliability(
        epsilons=(0.5,), horizons=horizons, cameras=("front", "wrist"), num_bins=100
    )
    for camera, count in episodes.items():
        for number in range(count):
            for horizon in horizons:
                if horizon == 1 or number < 3:  # few episodes are long
                    p = rng.random((1, 200))
                    y = rng.random((1, 200)) < (0.6 * p if camera == "front" else 0.4 + 0.6 * p)
                    reliability.update(p, y, episode=f"e{number}", horizon=horizon, camera=camera)
    return reliability


def test_a_camera_with_enough_episodes_has_its_own_curves_and_another_shares_them() -> None:
    grid = np.array([[0.3, 0.6, 0.9]])
    fitted = CameraRecalibration((0.5,), min_episodes=20)
    fitted.fit(counted({"front": 30, "wrist": 19}))
    own = fitted.predict(grid, horizon=1, camera="front")
    np.testing.assert_allclose(own, 0.6 * grid, atol=0.08)  # 6000 forecasts
    shared = fitted.predict(grid, horizon=1, camera="wrist")
    assert (shared > own + 0.1).all()  # of both cameras together
    np.testing.assert_array_equal(shared, fitted.predict(grid, horizon=1, camera="another"))
    np.testing.assert_array_equal(
        shared,
        CameraRecalibration.from_arrays(fitted.arrays()).predict(grid, horizon=1, camera="wrist"),
    )
    enough = CameraRecalibration((0.5,), min_episodes=19)
    enough.fit(counted({"front": 30, "wrist": 19}))
    apart = enough.predict(grid, horizon=1, camera="wrist")
    np.testing.assert_allclose(apart, 0.4 + 0.6 * grid, atol=0.08)  # 3800 forecasts
    again = CameraRecalibration.from_arrays(enough.arrays())
    np.testing.assert_array_equal(again.predict(grid, horizon=1, camera="wrist"), apart)


def test_a_band_that_few_episodes_reached_shares_its_neighbours_curves() -> None:
    fitted = CameraRecalibration((0.5,), method="platt", min_episodes=5)
    fitted.fit(counted({"front": 10}, horizons=(1, 8)))  # 3 of 10 reach horizon 8
    grid = np.array([[0.3, 0.6, 0.9]])
    near, far = (fitted.predict(grid, horizon=h, camera="front") for h in (1, 8))
    np.testing.assert_array_equal(near, far)
    assert fitted.pooled_.bands_ == (1, 8)
    with pytest.raises(ValueError, match="`bins` must have episodes"):
        HorizonRecalibration((0.5,), min_episodes=2).fit(
            {1: [bin_forecasts(*overconfident(1), num_bins=30)]}
        )


def test_second_fit_replaces_the_first() -> None:
    curve = IsotonicRecalibration().fit(np.array([0.1, 0.9]), np.array([True, False]))
    curve.fit(np.array([0.2, 0.8]), np.array([False, True]))
    np.testing.assert_allclose(curve.predict(np.array([0.0, 0.5, 1.0])), [0.0, 0.5, 1.0])


def test_use_before_fit_is_refused() -> None:
    with pytest.raises(NotFittedError, match="IsotonicRecalibration is not fitted"):
        IsotonicRecalibration().predict(np.array([0.5]))
    with pytest.raises(NotFittedError, match="EpsilonRecalibration is not fitted"):
        EpsilonRecalibration((0.1,)).predict(np.array([[0.5]]))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="`weight` must not be negative"):
        IsotonicRecalibration().fit(np.array([0.5]), np.array([True]), np.array([-1.0]))
    with pytest.raises(ValueError, match="`bins` holds no forecast"):
        IsotonicRecalibration().fit_bins(bin_forecasts(np.zeros(0), np.zeros(0, bool)))
    with pytest.raises(ValueError, match="`epsilons` must not be empty and must increase"):
        EpsilonRecalibration((0.2, 0.1))
    with pytest.raises(ValueError, match=r"got 'plat'\. Did you mean 'platt'"):
        EpsilonRecalibration((0.1,), method="plat")
