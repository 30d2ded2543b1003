"""Appearance channel: does this frame look like the frames the model was trained on?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64

from worldmodel.monitors.channels.gaussian import fit_whitening
from worldmodel.monitors.channels.subsampling import distance_sample
from worldmodel.monitors.errors import require_fitted

CANDIDATES = 50_000
"""Reference positions looked at, drawn evenly; twice as many brought nothing on the tabletop."""
BANK_SIZE = 5000
"""Reference positions kept; on the tabletop they find as much as 40,000 drawn evenly."""
REGION_SHARE = 1 / 8
"""Share of a view's positions that make its least familiar region."""
CHUNK = 4096
"""Positions compared with the reference at once."""
LEARNED = ("mean_", "whitener_", "place_", "position_mean_", "position_whitener_", "bank_")


class AppearanceChannel:
    """Distance of a frame to reference frames, as a whole and position by position.

    The whole: the Mahalanobis distance of its pooled features, with the covariance shrunk as Ledoit
    and Wolf (2004) do it. Light, background and camera show here. A position: the distance of its
    features to the nearest reference position, wherever in the frame that lay. Objects and tools
    never seen show here. Features are whitened and distances divided by the square root of their
    number, so that 1 is the deviation of one typical feature; higher is more surprising.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def fit(
        self, pooled: Float[np.ndarray, "n d"], positions: Float[np.ndarray, " n *place c"]
    ) -> AppearanceChannel:
        """Learn from reference frames: features of the whole and of every latent position."""
        if len(pooled) < 2 or len(pooled) != len(positions):
            raise ValueError(
                "`pooled` and `positions` need one row per reference frame and at least 2 frames, "
                f"got {len(pooled)} and {len(positions)} rows."
            )
        _check_finite(pooled, positions)
        self.mean_, self.whitener_ = fit_whitening(pooled)
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
        """How unfamiliar each frame is as a whole."""
        require_fitted(self, "mean_")
        _check_shape("pooled", pooled.shape[1:], self.mean_.shape)
        _check_finite(pooled)
        whitened = (pooled - self.mean_) @ self.whitener_.T
        return np.sqrt((whitened**2).mean(axis=1))

    def position_scores(
        self, positions: Float[np.ndarray, " n *place c"]
    ) -> Float64[np.ndarray, " n *place"]:
        """How unfamiliar each latent position of each frame is."""
        require_fitted(self, "bank_")
        num_features = len(self.position_mean_)
        _check_shape("positions", positions.shape[1:], (*self.place_.tolist(), num_features))
        _check_finite(positions)
        whitened = (positions - self.position_mean_) @ self.position_whitener_.T
        rows = whitened.reshape(-1, num_features)
        parts = [self._nearest(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        return np.sqrt(np.concatenate(parts) / num_features).reshape(positions.shape[:-1])

    def _nearest(self, rows: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, " n"]:
        """Squared distance to the nearest reference position.

        All of them are compared, in single precision: at this many features trees are slower. The
        distance to the one that is found is then computed in double precision.
        """
        import torch  # NumPy's threads would wait in the way of those that made the features

        ones = np.ones((len(rows), 1), dtype=np.float32)
        ours = torch.from_numpy(np.hstack([rows.astype(np.float32), ones]))
        nearest = (ours @ torch.from_numpy(self._columns)).numpy().argmin(axis=1)
        return ((rows - self.bank_[nearest]) ** 2).sum(axis=1)

    def _prepare(self) -> None:
        """What the comparison needs of the bank, computed once: -2 b and |b|^2 of each b."""
        squares = (self.bank_.astype(np.float64) ** 2).sum(axis=1)
        self._columns = np.vstack([-2 * self.bank_.T, squares]).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "bank_")
        return {name: getattr(self, name) for name in LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> AppearanceChannel:
        """The inverse of `arrays`."""
        channel = cls()
        for name in LEARNED:
            setattr(channel, name, arrays[name])
        channel._prepare()
        return channel


def region_score(
    position_scores: Float64[np.ndarray, " n *place"],
) -> Float64[np.ndarray, " n"]:
    """Mean score of the least familiar eighth of a view's positions, of at least one.

    The view's whose mean is largest; places with three axes are [view, h, w], others one view.

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
