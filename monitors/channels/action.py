"""Action channel: distance of recent actions to those of the reference episodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64

from worldmodel.monitors.channels.subsampling import distance_sample
from worldmodel.monitors.errors import require_fitted

RECENT = 2
"""Window of actions scored together, ending at the current one."""
BANK_SIZE = 5000
"""Size of the coreset of reference actions."""
SMALLEST_SCALE = 0.01
"""Smallest standard deviation of an axis, as a share of the largest one: an axis that never moved
in the reference episodes may still show noise."""

SMALLEST_SLACK = 0.05
"""Smallest distance beyond the range of an axis that counts, as a share of the range."""


def recent_actions(
    actions: Float[np.ndarray, "time a"],
) -> Float[np.ndarray, "time recent a"]:
    """Windows of each action and the ones before it, oldest first; the first action is repeated.

    >>> recent_actions(np.array([[1.0], [2.0]])).tolist()
    [[[1.0], [1.0]], [[1.0], [2.0]]]
    """
    padded = np.concatenate([np.repeat(actions[:1], RECENT - 1, axis=0), actions])
    return np.stack([padded[i : i + len(actions)] for i in range(RECENT)], axis=1)


class ActionChannel:
    """Distance of recent actions to the nearest ones of the reference episodes.

    Each axis is divided by its standard deviation in the reference set, so that metres, radians and
    gripper openings are comparable.
    """

    LEARNED = ("scale_", "low_", "high_", "slack_", "bank_")

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, actions: Float[np.ndarray, "n recent a"]) -> ActionChannel:
        """Fit to actions of reference episodes; rows with NaN are ignored."""
        from scipy.spatial import KDTree

        known = actions[np.isfinite(actions).all(axis=(1, 2))].astype(np.float64)
        if len(known) < 2:
            raise ValueError(f"`actions` needs at least 2 rows without NaN, got {len(known)}.")
        last = known[:, -1]
        deviation = last.std(axis=0)
        self.scale_ = deviation.clip(max(SMALLEST_SCALE * deviation.max(), 1e-6))
        self.low_, self.high_ = last.min(axis=0), last.max(axis=0)
        half = len(last) // 2
        halves = [beyond(last[:half], last[half:]), beyond(last[half:], last[:half])]
        least = (SMALLEST_SLACK * (self.high_ - self.low_)).clip(1e-6)
        self.slack_ = np.maximum.reduce([least, *halves])
        rows = (known / self.scale_).reshape(len(known), -1)
        rng = np.random.default_rng(self.seed)
        self.bank_ = distance_sample(rows, BANK_SIZE, rng=rng)
        self._tree = KDTree(self.bank_)
        return self

    def score(self, actions: Float[np.ndarray, "n recent a"]) -> Float64[np.ndarray, " n"]:
        """Distance in standard deviations of a typical axis; NaN for unknown actions."""
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

    def range_score(self, actions: Float[np.ndarray, "n recent a"]) -> Float64[np.ndarray, " n"]:
        """Largest distance beyond the range of the reference episodes, over the axes.

        In units of what is usual: how far one half of the reference actions exceeds the range of
        the other, at least a twentieth of the range. NaN for unknown actions.
        """
        return self._excess(actions[:, -1]).max(axis=-1)

    def _excess(self, actions: Float[np.ndarray, "n a"]) -> Float64[np.ndarray, "n a"]:
        require_fitted(self, "bank_")
        outside = np.maximum(self.low_ - actions, actions - self.high_)
        return outside.astype(np.float64).clip(0) / self.slack_

    def out_of_range(self, action: Float[np.ndarray, " a"]) -> list[int]:
        """Axes on which an action lies outside the range of the reference episodes."""
        return np.flatnonzero(self._excess(action[None])[0] > 1).tolist()

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "bank_")
        return {name: getattr(self, name) for name in self.LEARNED}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ActionChannel:
        """Inverse of `arrays`."""
        from scipy.spatial import KDTree

        channel = cls()
        for name in cls.LEARNED:
            setattr(channel, name, arrays[name])
        channel._tree = KDTree(channel.bank_)
        return channel


def beyond(
    known: Float64[np.ndarray, "n a"], new: Float64[np.ndarray, "m a"]
) -> Float64[np.ndarray, " a"]:
    """How far actions leave the range of the known ones, per axis.

    >>> beyond(np.array([[0.0], [1.0]]), np.array([[0.5], [1.25]])).tolist()
    [0.25]
    """
    low, high = known.min(axis=0), known.max(axis=0)
    return np.maximum(low - new.min(axis=0), new.max(axis=0) - high).clip(0)
