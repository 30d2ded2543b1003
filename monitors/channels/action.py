"""Action channel: is this action, after the ones before it, one the model has seen?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64

from worldmodel.monitors.channels.subsampling import distance_sample
from worldmodel.monitors.errors import require_fitted

RECENT = 2
"""Actions looked at together: this one and the ones right before it."""
BANK_SIZE = 5000
"""Reference actions kept."""
SMALLEST_SCALE = 0.01
"""Share of the widest axis below which no axis counts as narrower: an axis that stood still in all
reference episodes still may tremble."""


def recent_actions(
    actions: Float[np.ndarray, "time a"],
) -> Float[np.ndarray, "time recent a"]:
    """Each action with those before it, oldest first; at the start the first one is repeated.

    >>> recent_actions(np.array([[1.0], [2.0]])).tolist()
    [[[1.0], [1.0]], [[1.0], [2.0]]]
    """
    padded = np.concatenate([np.repeat(actions[:1], RECENT - 1, axis=0), actions])
    return np.stack([padded[i : i + len(actions)] for i in range(RECENT)], axis=1)


class ActionChannel:
    """Distance of recent actions to the nearest ones of the reference episodes.

    Every axis is divided by its standard deviation there, so that metres, radians and openings
    count alike.
    """

    LEARNED = ("scale_", "low_", "high_", "bank_")

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, actions: Float[np.ndarray, "n recent a"]) -> ActionChannel:
        """Learn from the actions of reference episodes; rows with NaN are left out."""
        from scipy.spatial import KDTree

        known = actions[np.isfinite(actions).all(axis=(1, 2))].astype(np.float64)
        if len(known) < 2:
            raise ValueError(f"`actions` needs at least 2 known actions, got {len(known)}.")
        last = known[:, -1]
        deviation = last.std(axis=0)
        self.scale_ = deviation.clip(max(SMALLEST_SCALE * deviation.max(), 1e-6))
        self.low_, self.high_ = last.min(axis=0), last.max(axis=0)
        rows = (known / self.scale_).reshape(len(known), -1)
        rng = np.random.default_rng(self.seed)
        self.bank_ = distance_sample(rows, BANK_SIZE, rng=rng)
        self._tree = KDTree(self.bank_)
        return self

    def score(self, actions: Float[np.ndarray, "n recent a"]) -> Float64[np.ndarray, " n"]:
        """In standard deviations of a typical axis; NaN where an action is unknown."""
        require_fitted(self, "bank_")
        if actions.shape[1:] != (RECENT, len(self.scale_)):
            raise ValueError(
                f"`actions` must have the shape {(RECENT, len(self.scale_))} per frame, "
                f"got {actions.shape[1:]}."
            )
        score = np.full(len(actions), np.nan)
        known = np.isfinite(actions).all(axis=(1, 2))
        if known.any():
            rows = (actions[known].astype(np.float64) / self.scale_).reshape(known.sum(), -1)
            score[known] = self._tree.query(rows)[0] / np.sqrt(rows.shape[1])
        return score

    def out_of_range(self, action: Float[np.ndarray, " a"]) -> list[int]:
        """Axes on which an action lies outside everything the reference episodes hold."""
        require_fitted(self, "bank_")
        slack = 1e-6 + 0.05 * (self.high_ - self.low_)
        outside = (action < self.low_ - slack) | (action > self.high_ + slack)
        return np.flatnonzero(outside).tolist()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, "bank_")
        return {name: getattr(self, name) for name in self.LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ActionChannel:
        """The inverse of `arrays`."""
        from scipy.spatial import KDTree

        channel = cls()
        for name in cls.LEARNED:
            setattr(channel, name, arrays[name])
        channel._tree = KDTree(channel.bank_)
        return channel
