"""Parametric recalibration for small data: Platt, beta and temperature scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import numpy as np
from jaxtyping import Float, Float64, Shaped

from worldmodel.monitors.arrays import require_probabilities
from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.reliability.measures import ReliabilityBins

EDGE = 1e-6
"""Confidence is clipped this far from 0 and 1, where the log-odds are infinite."""
STEEPEST = 50.0
"""Largest slope; separable outcomes would need an infinite one."""
CERTAIN = 30.0
"""Log-odds for a constant outcome."""

Curve = TypeVar("Curve", bound="BetaRecalibration")


class BetaRecalibration:
    """Beta calibration (Kull, Silva Filho and Flach 2017): logit q = a ln p - b ln(1-p) + c.

    Maximum likelihood with a, b >= 0, so that q never falls with p. For a constant outcome, q is
    that outcome.
    """

    basis: ClassVar[tuple[tuple[float, ...], ...]] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    """Matrix from the fitted parameters to (a, b, c), one row each."""

    def fit(
        self: Curve,
        confidence: Float[np.ndarray, " n"],
        correct: Shaped[np.ndarray, " n"],
        weight: Shaped[np.ndarray, " n"] | None = None,
    ) -> Curve:
        """Fit to confidence and outcomes: booleans, or shares of `weight` forecasts."""
        stated, outcome, mass = weighed(confidence, correct, weight)
        base_rate = (mass * outcome).sum() / mass.sum()
        if base_rate in (0.0, 1.0):
            self.coefficients_ = np.array([0.0, 0.0, CERTAIN if base_rate else -CERTAIN])
            return self
        basis = np.array(self.basis, dtype=np.float64)
        self.coefficients_ = basis @ _most_likely(_terms(stated) @ basis, outcome, mass, basis)
        return self

    def fit_bins(self: Curve, bins: ReliabilityBins) -> Curve:
        """Fit to streaming sums, pooled over leading axes; use 100 bins or more."""
        return self.fit(*bin_means(bins))

    def predict(self, confidence: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
        """Recalibrated confidence."""
        from scipy.special import expit

        require_fitted(self, "coefficients_")
        return expit(_terms(require_probabilities(confidence)) @ self.coefficients_)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "coefficients_")
        return {"coefficients_": self.coefficients_}

    @classmethod
    def from_arrays(cls: type[Curve], arrays: Mapping[str, np.ndarray]) -> Curve:
        """Inverse of `arrays`."""
        curve = cls()
        curve.coefficients_ = arrays["coefficients_"]
        return curve


class PlattRecalibration(BetaRecalibration):
    """Platt scaling of the log-odds (Platt 1999): logit q = a logit p + c, a >= 0."""

    basis = ((1, 0), (1, 0), (0, 1))


class TemperatureRecalibration(BetaRecalibration):
    """Temperature scaling (Guo et al. 2017): logit q = a logit p, a = 1 / temperature >= 0."""

    basis = ((1,), (1,), (0,))


def weighed(
    confidence: Float[np.ndarray, " n"],
    correct: Shaped[np.ndarray, " n"],
    weight: Shaped[np.ndarray, " n"] | None,
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """Confidence, outcome and weight of forecasts with positive weight; the default weight is 1.

    Raises:
        ValueError: a weight is negative, none is positive, or a value is not a probability.
    """
    mass = np.ones(len(confidence)) if weight is None else weight.astype(np.float64)
    if not len(confidence) or mass.min() < 0 or not mass.sum() > 0:
        raise ValueError("`weight` must not be negative, and at least one must be positive.")
    counts = mass > 0
    return (
        require_probabilities(confidence)[counts],
        require_probabilities(correct.astype(np.float64))[counts],
        mass[counts],
    )


def bin_means(
    bins: ReliabilityBins,
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Mean confidence, observed frequency and count of each non-empty bin, pooled.

    Raises:
        ValueError: `bins` holds no forecast.
    """
    bins = bins.pooled()
    full = bins.count > 0
    if not full.any():
        raise ValueError("`bins` holds no forecast; nothing can be fitted.")
    count = bins.count[full]
    return bins.confidence[full] / count, bins.correct[full] / count, count


def _terms(confidence: Float64[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any 3"]:
    """Regressors of a, b and c."""
    inside = confidence.clip(EDGE, 1 - EDGE)
    return np.stack([np.log(inside), -np.log1p(-inside), np.ones_like(inside)], axis=-1)


def _most_likely(
    terms: Float64[np.ndarray, "n k"],
    outcome: Float64[np.ndarray, " n"],
    mass: Float64[np.ndarray, " n"],
    basis: Float64[np.ndarray, "3 k"],
) -> Float64[np.ndarray, " k"]:
    """Logistic regression with non-negative slopes; convex, so any start converges."""
    from scipy.optimize import minimize
    from scipy.special import expit

    share = mass / mass.sum()

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logit = terms @ parameters
        value = share @ (np.logaddexp(0.0, logit) - outcome * logit)
        return float(value), (share * (expit(logit) - outcome)) @ terms

    start = np.maximum(basis[0], basis[1])  # slopes 1, shift 0: the identity
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, STEEPEST) if slope else (None, None) for slope in start.tolist()],
        options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9},
    )
    return np.asarray(found.x)
