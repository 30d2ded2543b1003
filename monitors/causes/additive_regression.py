"""Additive softmax regression: a nonlinear curve per descriptor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int64

KNOTS = (0.25, 0.5, 0.75)
"""Quantiles of each descriptor at which its curve may bend."""
TAIL = 0.01
"""Quantile of the examples, at both ends, to which descriptors are clipped."""
PENALTY = 0.035
"""L2 penalty on the weights, relative to the mean loss."""
LEARNED = ["range_", "spread_", "knots_", "centre_", "scale_", "weights_"]

Examples = Float64[np.ndarray, "n d"]


class AdditiveRegression:
    """Class probabilities from descriptors clipped to the range of the examples."""

    def fit(
        self, examples: Examples, classes: Int64[np.ndarray, " n"], *, number: int
    ) -> AdditiveRegression:
        """Fit to examples of `number` classes; non-empty classes have equal weight."""
        self.range_ = np.quantile(examples, [TAIL, 1 - TAIL], axis=0)
        self.spread_ = examples.std(axis=0) + 1e-6
        self.knots_ = np.quantile(examples, KNOTS, axis=0)
        size = self.spread_.size * (1 + len(KNOTS))
        self.centre_, self.scale_ = np.zeros(size), np.ones(size)
        curves = self._curves(examples)
        self.centre_, self.scale_ = curves.mean(axis=0), curves.std(axis=0) + 1e-6
        self.weights_ = softmax_regression(self._curves(examples), np.eye(number)[classes])
        return self

    def posterior(self, example: Float64[np.ndarray, " d"]) -> Float64[np.ndarray, " k"]:
        """Probability of each class."""
        log_odds = self._curves(example[None])[0] @ self.weights_[:-1] + self.weights_[-1]
        odds = np.exp(log_odds - log_odds.max())
        return odds / odds.sum()

    def outside(self, example: Float64[np.ndarray, " d"]) -> float:
        """Root mean square distance outside the examples' range, in standard deviations."""
        beyond = (example - example.clip(*self.range_)) / self.spread_
        return float(np.sqrt((beyond**2).mean()))

    def _curves(self, examples: Examples) -> Float64[np.ndarray, "n f"]:
        """Clipped descriptors and their smooth steps at the knots, standardised."""
        within = examples.clip(*self.range_)
        steps = [np.tanh(2 * (within - knot) / self.spread_) for knot in self.knots_]
        return (np.concatenate([within, *steps], axis=1) - self.centre_) / self.scale_

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        return {name: getattr(self, name) for name in LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> AdditiveRegression:
        """Inverse of `arrays`."""
        regression = cls()
        for name in LEARNED:
            setattr(regression, name, arrays[name])
        return regression


def softmax_regression(
    features: Float64[np.ndarray, "n f"], truth: Float64[np.ndarray, "n k"]
) -> Float64[np.ndarray, "weights k"]:
    """Weights of each class; the last row is the intercept, which is not penalised.

    Minimises the mean over classes of the mean negative log-likelihood, plus `PENALTY` / 2 times
    the sum of squared weights.

    Args:
        features: Rows of examples.
        truth: One-hot rows; a class may have no example.
    """
    from scipy.optimize import minimize

    features = np.column_stack([features, np.ones(len(features))])
    count = truth.sum(axis=0)
    number, share = truth.shape[1], truth @ (1 / count.clip(1)) / (count > 0).sum()
    shrunk = PENALTY * (np.arange(features.shape[1]) < features.shape[1] - 1)[:, None]

    def loss(flat: Float64[np.ndarray, " p"]) -> tuple[float, Float64[np.ndarray, " p"]]:
        weights = flat.reshape(-1, number)
        log_odds = features @ weights
        log_odds -= log_odds.max(axis=1, keepdims=True)
        log_likelihood = log_odds - np.log(np.exp(log_odds).sum(axis=1, keepdims=True))
        misfit = (shrunk * weights**2).sum() / 2 - (share @ (log_likelihood * truth)).sum()
        excess = share[:, None] * (np.exp(log_likelihood) - truth)
        return float(misfit), (features.T @ excess + shrunk * weights).ravel()

    start = np.zeros(features.shape[1] * number)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return best.x.reshape(-1, number)
