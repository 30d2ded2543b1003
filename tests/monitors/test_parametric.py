"""Platt, beta and temperature scaling against netcal and scikit-learn, and edge cases."""

import numpy as np
import pytest
from netcal.scaling import BetaCalibration, LogisticCalibration, TemperatureScaling
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.reliability.measures import bin_forecasts
from worldmodel.monitors.reliability.parametric import (
    BetaRecalibration,
    PlattRecalibration,
    TemperatureRecalibration,
)

KINDS = (BetaRecalibration, PlattRecalibration, TemperatureRecalibration)


def distorted(
    seed: int, *, a: float, b: float, c: float, n: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts whose true probability is a beta curve of what they state."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1.2, 0.8, n)
    return p, rng.random(n) < expit(a * np.log(p) - b * np.log1p(-p) + c)


@pytest.mark.filterwarnings("ignore:independent is deprecated:DeprecationWarning")  # in pyro
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BetaRecalibration, BetaCalibration),
        (PlattRecalibration, LogisticCalibration),
        (TemperatureRecalibration, TemperatureScaling),
    ],
)
def test_curve_is_netcals(ours: type[BetaRecalibration], theirs: type) -> None:
    """To 5e-5: netcal's optimiser stops that early; on the same data ours has the better loss."""
    p, y = distorted(0, a=1.5, b=0.6, c=0.3)
    reference = theirs(method="mle")
    reference.fit(p, y.astype(int))
    np.testing.assert_allclose(ours().fit(p, y).predict(p), reference.transform(p), atol=5e-5)


def test_weighted_curve_is_scikit_learns_logistic_regression() -> None:
    p, y = distorted(1, a=0.7, b=1.4, c=-0.2)
    weight = np.random.default_rng(2).random(len(p))
    terms = np.stack([np.log(p), -np.log1p(-p)], axis=1)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    reference.fit(terms, y, sample_weight=weight)
    fitted = BetaRecalibration().fit(p, y, weight).coefficients_
    np.testing.assert_allclose(fitted, [*reference.coef_[0], *reference.intercept_], atol=1e-5)


def test_negative_slope_is_set_to_zero_and_the_rest_refitted() -> None:
    """As Kull et al. do; without the rule the curve would fall near 0 and rise after."""
    p, y = distorted(3, a=-0.3, b=1.0, c=-1.0)
    terms = np.stack([np.log(p), -np.log1p(-p)], axis=1)
    free = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(terms, y)
    assert free.coef_[0, 0] < 0
    again = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(terms[:, 1:], y)
    curve = BetaRecalibration().fit(p, y)
    expected = [0.0, again.coef_[0, 0], again.intercept_[0]]
    np.testing.assert_allclose(curve.coefficients_, expected, atol=1e-5)
    assert (np.diff(curve.predict(np.linspace(0, 1, 200))) >= 0).all()


@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        (BetaRecalibration, (0.6, 1.7, 0.5)),
        (PlattRecalibration, (0.5, 0.5, -0.8)),
        (TemperatureRecalibration, (1.0 / 2.5, 1.0 / 2.5, 0.0)),
    ],
)
def test_known_distortion_is_recovered(
    kind: type[BetaRecalibration], truth: tuple[float, float, float]
) -> None:
    """40,000 forecasts, seed 4: standard errors below 0.03; 0.1 is more than three of them."""
    p, y = distorted(4, a=truth[0], b=truth[1], c=truth[2], n=40_000)
    np.testing.assert_allclose(kind().fit(p, y).coefficients_, truth, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_certain_forecasts_are_safe(kind: type[BetaRecalibration]) -> None:
    """A stated 0 or 1 that failed must not make the loss, or what is stated next, infinite."""
    p = np.array([0.0, 0.0, 0.2, 0.8, 1.0, 1.0])
    y = np.array([False, True, False, True, True, False])
    curve = kind().fit(p, y)
    predicted = curve.predict(np.linspace(0, 1, 101))
    assert np.isfinite(curve.coefficients_).all()
    assert (np.diff(predicted) >= 0).all()
    assert 0 <= predicted[0] <= predicted[-1] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_separable_outcomes_give_a_steep_but_finite_curve(kind: type[BetaRecalibration]) -> None:
    p = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    curve = kind().fit(p, p > 0.5)
    assert np.isfinite(curve.coefficients_).all()
    np.testing.assert_allclose(curve.predict(p), p > 0.5, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outcome", [False, True])
def test_constant_outcome_gives_that_outcome(kind: type[BetaRecalibration], outcome: bool) -> None:
    curve = kind().fit(np.array([0.2, 0.6, 0.9]), np.full(3, outcome))
    np.testing.assert_allclose(curve.predict(np.linspace(0, 1, 7)), float(outcome), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_binned_sums_give_the_curve_of_the_forecasts(kind: type[BetaRecalibration]) -> None:
    p, y = distorted(5, a=1.3, b=0.8, c=0.1)
    p = (np.floor(p * 99.9) + 0.5) / 100  # one value per bin: binning loses nothing
    binned = kind().fit_bins(bin_forecasts(p, y, num_bins=100))
    np.testing.assert_allclose(binned.coefficients_, kind().fit(p, y).coefficients_, atol=1e-6)


def test_curves_have_the_shape_their_names_say() -> None:
    p, y = distorted(6, a=2.0, b=0.5, c=-0.4)
    platt = PlattRecalibration().fit(p, y)
    slopes = np.diff(logit(platt.predict(np.array([0.2, 0.5, 0.8]))))
    assert slopes[0] == pytest.approx(slopes[1])  # straight in log-odds
    warm = TemperatureRecalibration().fit(p, y)
    assert warm.predict(np.array([0.5]))[0] == pytest.approx(0.5)  # a temperature moves no half


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_restore_the_curve(kind: type[BetaRecalibration]) -> None:
    fitted = kind().fit(*distorted(7, a=1.1, b=0.9, c=0.2))
    grid = np.linspace(0, 1, 24).reshape(2, 3, 4)
    restored = kind.from_arrays(fitted.arrays())
    np.testing.assert_array_equal(restored.predict(grid), fitted.predict(grid))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(NotFittedError, match="PlattRecalibration is not fitted"):
        PlattRecalibration().predict(np.array([0.5]))
    with pytest.raises(ValueError, match="`weight` must not be negative"):
        BetaRecalibration().fit(np.array([0.5]), np.array([True]), np.array([-1.0]))
    with pytest.raises(ValueError, match="`bins` holds no forecast"):
        BetaRecalibration().fit_bins(bin_forecasts(np.zeros(0), np.zeros(0, bool)))
