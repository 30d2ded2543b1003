"""Detectors of unfamiliar features that stand alone: fitted on familiar ones, higher is stranger.

Every detector takes features with any leading axes: [n, d] for whole frames, [n, h, w, d] for every
latent position of a spatial map. Positions share one fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Float64, Int

from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.gaussian import fit_whitening

CHUNK = 1024
"""Rows compared with the whole bank at once."""

LearnedType = TypeVar("LearnedType", bound="Learned")


class Detector(Protocol):
    """What can say how unfamiliar features are."""

    def score(self, features: Float[np.ndarray, "*n d"]) -> Float64[np.ndarray, "*n"]:
        """One score per row; higher is less familiar."""
        ...


class Learned:
    """A detector's learned arrays, out and in."""

    LEARNED: ClassVar[tuple[str, ...]] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, self.LEARNED[0])
        return {name: getattr(self, name) for name in self.LEARNED}

    @classmethod
    def from_arrays(cls: type[LearnedType], arrays: Mapping[str, np.ndarray]) -> LearnedType:
        """The inverse of `arrays`; arguments of the constructor that `fit` alone needs are lost."""
        detector = cls()
        for name in cls.LEARNED:
            setattr(detector, name, arrays[name])
        return detector


class Mahalanobis(Learned):
    """Distance to the familiar mean under their shrunk covariance, divided by the root of d."""

    LEARNED = ("mean_", "whitener_")

    def fit(self, features: Float[np.ndarray, "*n d"]) -> Mahalanobis:
        """Learn from familiar features."""
        self.mean_, self.whitener_ = fit_whitening(rows_of(features))
        return self

    def score(self, features: Float[np.ndarray, "*n d"]) -> Float64[np.ndarray, "*n"]:
        """1 is the deviation of one typical feature."""
        require_fitted(self, "mean_")
        whitened = (checked_rows(features, len(self.mean_)) - self.mean_) @ self.whitener_.T
        return np.sqrt((whitened**2).mean(axis=-1))


class RelativeMahalanobis(Learned):
    """Squared distance to the nearest group less that to all together, divided by d.

    Ren et al. 2021 (arXiv:2106.09022): groups have their own means and share a covariance. What all
    groups vary in alike cancels, and no longer hides what sets the unfamiliar apart.
    """

    LEARNED = ("mean_", "whitener_", "group_means_", "group_whitener_")

    def fit(
        self, features: Float[np.ndarray, "*n d"], groups: Int[np.ndarray, "*n"]
    ) -> RelativeMahalanobis:
        """Learn from familiar features and what each belongs to: a task, a camera, a position."""
        rows = rows_of(features)
        labels, index = np.unique(groups.ravel(), return_inverse=True)
        if len(labels) < 2:
            raise ValueError("`groups` must name at least 2 groups, got 1; use Mahalanobis.")
        self.mean_, self.whitener_ = fit_whitening(rows)
        self.group_means_ = np.stack([rows[index == k].mean(axis=0) for k in range(len(labels))])
        _, self.group_whitener_ = fit_whitening(rows - self.group_means_[index])
        return self

    def score(self, features: Float[np.ndarray, "*n d"]) -> Float64[np.ndarray, "*n"]:
        """Negative where one group explains the features better than all together."""
        require_fitted(self, "mean_")
        rows = checked_rows(features, len(self.mean_))
        common = (((rows - self.mean_) @ self.whitener_.T) ** 2).mean(axis=-1)
        own = [
            (((rows - mean) @ self.group_whitener_.T) ** 2).mean(axis=-1)
            for mean in self.group_means_
        ]
        return np.minimum.reduce(own) - common


class NearestNeighbours(Learned):
    """Distance to the k-th nearest familiar features, all scaled to length 1.

    Sun et al. 2022 (arXiv:2204.06507). Nothing is assumed of how familiar features are spread.
    """

    LEARNED = ("bank_", "k_")

    def __init__(self, *, k: int = 10, bank_size: int = 5000, seed: int = 0) -> None:
        if not 1 <= k <= bank_size:
            raise ValueError(f"`k` must lie in [1, `bank_size`], got {k} and {bank_size}.")
        self.k, self.bank_size, self.seed = k, bank_size, seed

    def fit(self, features: Float[np.ndarray, "*n d"]) -> NearestNeighbours:
        """Keep familiar features, or an even draw of `bank_size` of them."""
        rows = rows_of(features)
        if len(rows) < self.k:
            raise ValueError(f"`features` needs at least `k`={self.k} rows, got {len(rows)}.")
        if len(rows) > self.bank_size:
            rng = np.random.default_rng(self.seed)
            rows = rows[rng.choice(len(rows), self.bank_size, replace=False)]
        self.bank_, self.k_ = unit_length(rows), np.array(self.k)
        return self

    def score(self, features: Float[np.ndarray, "*n d"]) -> Float64[np.ndarray, "*n"]:
        """Between 0 and 2."""
        require_fitted(self, "bank_")
        rows = unit_length(checked_rows(features, self.bank_.shape[1]))
        flat, nth = rows.reshape(-1, rows.shape[-1]), len(self.bank_) - int(self.k_)
        cosines = [
            np.partition(flat[start : start + CHUNK] @ self.bank_.T, nth, axis=1)[:, nth]
            for start in range(0, len(flat), CHUNK)
        ]
        distance = np.sqrt((2 - 2 * np.concatenate(cosines)).clip(0))
        return distance.reshape(rows.shape[:-1])


class PcaResidual(Learned):
    """What is left of standardised features beyond the familiar principal components.

    The root mean square over the d features.
    """

    LEARNED = ("mean_", "scale_", "components_")

    def __init__(self, *, explained: float = 0.95) -> None:
        if not 0 < explained < 1:
            raise ValueError(f"`explained` must lie in (0, 1), got {explained}.")
        self.explained = explained

    def fit(self, features: Float[np.ndarray, "*n d"]) -> PcaResidual:
        """Keep the fewest components that explain at least the share `explained` of variance."""
        rows = rows_of(features)
        deviation = rows.std(axis=0)
        self.mean_, self.scale_ = rows.mean(axis=0), np.where(deviation > 0, deviation, 1.0)
        standard = (rows - self.mean_) / self.scale_
        variance, axes = np.linalg.eigh(standard.T @ standard)
        share = np.cumsum(variance[::-1]) / max(variance.sum(), np.finfo(float).tiny)
        count = int(np.searchsorted(share, self.explained)) + 1
        self.components_ = np.ascontiguousarray(axes.T[::-1][:count])
        return self

    def score(self, features: Float[np.ndarray, "*n d"]) -> Float64[np.ndarray, "*n"]:
        """In standard deviations of a familiar feature."""
        require_fitted(self, "mean_")
        rows = (checked_rows(features, len(self.mean_)) - self.mean_) / self.scale_
        residual = rows - rows @ self.components_.T @ self.components_
        return np.sqrt((residual**2).mean(axis=-1))


def rows_of(features: Float[np.ndarray, "*n d"]) -> Float64[np.ndarray, "rows d"]:
    """All features as rows, checked for a fit."""
    rows = checked_rows(features, features.shape[-1]).reshape(-1, features.shape[-1])
    if len(rows) < 2:
        raise ValueError(f"`features` needs at least 2 rows, got {len(rows)}.")
    return rows


def checked_rows(
    features: Float[np.ndarray, "*n d"], num_features: int
) -> Float64[np.ndarray, "*n d"]:
    """The same numbers in float64; refused if another detector's, or not finite."""
    if features.shape[-1] != num_features:
        raise ValueError(
            f"`features` must have {num_features} numbers per row, got {features.shape[-1]}."
        )
    if not np.isfinite(features).all():
        raise ValueError("`features` holds NaN or infinite numbers.")
    return features.astype(np.float64)


def unit_length(rows: Float64[np.ndarray, "*n d"]) -> Float64[np.ndarray, "*n d"]:
    """Rows scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)
