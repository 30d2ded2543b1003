"""Appearance channel: distance of a frame's features to those of reference frames."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64

from worldmodel.monitors.channels.gaussian import fit_whitening
from worldmodel.monitors.channels.subsampling import distance_sample
from worldmodel.monitors.errors import require_fitted

CANDIDATES = 50_000
"""Reference positions drawn uniformly as candidates; twice as many gain nothing on the tabletop."""
BANK_SIZE = 5000
"""Size of the coreset; on the tabletop it detects as much as 40,000 uniformly drawn positions."""
REGION_SHARE = 1 / 8
"""Share of a view's positions that form its least familiar region."""
CHUNK = 4096
"""Positions compared with the coreset per batch."""
LEARNED = ("mean_", "whitener_", "place_", "position_mean_", "position_whitener_", "bank_")


class AppearanceChannel:
    """Distance of a frame to reference frames, as a whole and per latent position.

    Frame score: Mahalanobis distance of the pooled features, with Ledoit-Wolf shrinkage (2004) of
    the covariance, widened by the effects of nuisances; it detects changes of light, background and
    camera. Position score: distance to
    the nearest reference position anywhere in the frame; it detects unseen objects and tools.
    Features are whitened and distances divided by the square root of their number, so 1 is the
    deviation of one typical feature.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def fit(
        self,
        pooled: Float[np.ndarray, "n d"],
        positions: Float[np.ndarray, " n *place c"],
        effects: Sequence[Float[np.ndarray, "_ d"]] = (),
    ) -> AppearanceChannel:
        """Fit to reference frames.

        Args:
            pooled: Pooled features.
            positions: Features of each position.
            effects: What each declared nuisance adds to the pooled features of some frames.
        """
        if len(pooled) < 2 or len(pooled) != len(positions):
            raise ValueError(
                "`pooled` and `positions` need one row per reference frame and at least 2 frames, "
                f"got {len(pooled)} and {len(positions)} rows."
            )
        _check_finite(pooled, positions, *effects)
        self.mean_, self.whitener_ = fit_whitening(pooled, effects)
        rng = np.random.default_rng(self.seed)
        rows = positions.reshape(-1, positions.shape[-1])
        if len(rows) > CANDIDATES:
            rows = rows[rng.choice(len(rows), CANDIDATES, replace=False)]
        self.position_mean_, self.position_whitener_ = fit_whitening(rows)
        whitened = (rows - self.position_mean_) @ self.position_whitener_.T
        self.bank_ = distance_sample(whitened, BANK_SIZE, rng=rng).astype(np.float32)
        self.place_ = np.array(positions.shape[1:-1])
        self._prepare()
        return self

    def score(self, pooled: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Frame scores."""
        require_fitted(self, "mean_")
        _check_shape("pooled", pooled.shape[1:], self.mean_.shape)
        _check_finite(pooled)
        whitened = (pooled - self.mean_) @ self.whitener_.T
        return np.sqrt((whitened**2).mean(axis=1))

    def position_scores(
        self, positions: Float[np.ndarray, " n *place c"]
    ) -> Float64[np.ndarray, " n *place"]:
        """Scores of each latent position of each frame."""
        require_fitted(self, "bank_")
        num_features = len(self.position_mean_)
        _check_shape("positions", positions.shape[1:], (*self.place_.tolist(), num_features))
        _check_finite(positions)
        whitened = (positions - self.position_mean_) @ self.position_whitener_.T
        rows = whitened.reshape(-1, num_features)
        parts = [self._nearest(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        return np.sqrt(np.concatenate(parts) / num_features).reshape(positions.shape[:-1])

    def _nearest(self, rows: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, " n"]:
        """Squared distance to the nearest position of the coreset.

        Brute force in single precision, since trees are slower at this many features; the distance
        to the nearest one is recomputed in double precision.
        """
        ours = np.hstack([rows.astype(np.float32), np.ones((len(rows), 1), dtype=np.float32)])
        torch = sys.modules.get("torch")
        if torch is None:
            nearest = (ours @ self._columns).argmin(axis=1)
        else:  # PyTorch made the features, and NumPy's thread pool would compete with its own
            product = torch.from_numpy(ours) @ torch.from_numpy(self._columns)
            nearest = product.numpy().argmin(axis=1)
        return ((rows - self.bank_[nearest]) ** 2).sum(axis=1)

    def _prepare(self) -> None:
        """Precompute -2 b and |b|^2 of each coreset row b."""
        squares = (self.bank_.astype(np.float64) ** 2).sum(axis=1)
        self._columns = np.vstack([-2 * self.bank_.T, squares]).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "bank_")
        return {name: getattr(self, name) for name in LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> AppearanceChannel:
        """Inverse of `arrays`."""
        channel = cls()
        for name in LEARNED:
            setattr(channel, name, arrays[name])
        channel._prepare()
        return channel


def region_score(
    position_scores: Float64[np.ndarray, " n *place"],
) -> Float64[np.ndarray, " n"]:
    """Mean score of the least familiar eighth (at least one) of a view's positions.

    The largest over views; position maps with three axes are [view, h, w], others have one view.

    >>> region_score(np.array([[1.0, 3.0], [0.0, 0.5]]))
    array([3. , 0.5])
    """
    count = len(position_scores)
    views = position_scores.shape[1] if position_scores.ndim == 4 else 1
    flat = position_scores.reshape(count, views, -1)
    num_worst = max(1, round(REGION_SHARE * flat.shape[2]))
    return np.sort(flat, axis=2)[..., -num_worst:].mean(axis=2).max(axis=1)


def _check_finite(*features: np.ndarray) -> None:
    if not all(np.isfinite(values).all() for values in features):
        raise ValueError("`pooled` or `positions` holds NaN or infinite features.")


def _check_shape(name: str, shape: tuple[int, ...], fitted: tuple[int, ...]) -> None:
    if shape != fitted:
        raise ValueError(f"`{name}` must have the shape {fitted} per frame, got {shape}.")
