"""Localisation metrics: how well a surprise map agrees with a known anomaly mask.

Maps are higher where more surprising. Each metric scores one picture: it depends on where the map
is high within the picture, not on the overall level.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from worldmodel.monitors.metrics.detection import auroc

Map = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]

FPR_LIMIT = 0.3
"""False positive rate up to which overlap is integrated, as for MVTec AD."""
Interval = tuple[float, float]


def pixel_auroc(surprise: Map, mask: Mask) -> float:
    """AUROC of pixels inside the mask against pixels outside, ties counted half; chance is 0.5.

    >>> pixel_auroc(np.array([[0.0, 1.0], [1.0, 2.0]]), np.array([[False, False], [True, True]]))
    0.875
    """
    _check(surprise, mask)
    return auroc(surprise[~mask], surprise[mask])


def pixel_aupro(surprise: Map, mask: Mask, *, limit: float = FPR_LIMIT) -> float:
    """Area under the per-region overlap of Bergmann et al. 2020 (arXiv:1911.02357), in [0, 1].

    The overlap is the share of each connected mask region (8-connected) above a threshold, averaged
    over regions, so small regions count as much as large ones. It is integrated over the false
    positive rate from 0 to `limit` and divided by `limit`. Chance is `limit` / 2.

    >>> pixel_aupro(np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[False, False], [True, True]]))
    1.0
    """
    from scipy.ndimage import label

    _check(surprise, mask)
    if not 0 < limit <= 1:
        raise ValueError(f"`limit` must lie above 0 and be at most 1, got {limit}.")
    regions, num_regions = label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())
    share = np.where(
        mask, 1 / (num_regions * sizes[regions]), 0.0
    )  # contribution to the mean overlap
    order = np.argsort(-surprise, axis=None, kind="stable")
    last_of_level = np.diff(surprise.ravel()[order], append=-np.inf) != 0
    found = np.cumsum(share.ravel()[order])[last_of_level]
    false_alarms = np.cumsum(~mask.ravel()[order])[last_of_level] / np.count_nonzero(~mask)
    x, y = np.append(0.0, false_alarms), np.append(0.0, found)
    inside = x <= limit
    end = np.interp(limit, x, y)
    return float(np.trapezoid(np.append(y[inside], end), np.append(x[inside], limit)) / limit)


def pointing(surprise: Map, mask: Mask, *, tolerance: float = 0.0) -> float:
    """Pointing game (Zhang et al. 2016, arXiv:1608.00507): whether the map's maximum hits the mask.

    1 or 0; if several pixels share the maximum, the share of them that hits. Chance is the mask's
    share of the picture.

    Args:
        surprise: Surprise map.
        mask: True anomaly.
        tolerance: Distance to the mask, in pixels, that still counts as a hit; Zhang et al. allow
            15 in photographs some hundred pixels wide.

    >>> pointing(np.array([[3.0, 1.0], [3.0, 0.0]]), np.array([[True, False], [False, False]]))
    0.5
    """
    from scipy.ndimage import distance_transform_edt

    _check(surprise, mask)
    if tolerance < 0:
        raise ValueError(f"`tolerance` must be 0 pixels or more, got {tolerance}.")
    distance = distance_transform_edt(~mask)
    return float((distance[surprise == surprise.max()] <= tolerance).mean())


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """Localisation metrics, averaged over pictures."""

    num_pictures: int
    num_episodes: int
    auroc: float
    auroc_interval: Interval | None
    """95% bootstrap interval over episodes, None for a single one; likewise below."""
    aupro: float
    aupro_interval: Interval | None
    pointing: float
    pointing_interval: Interval | None
    mask_share: float
    """Mean share of a picture that its mask covers: chance level of `pointing`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def score_picture(surprise: Map, mask: Mask, *, tolerance: float = 0.0) -> dict[str, float]:
    """All metrics of one picture, by name."""
    return {
        "auroc": pixel_auroc(surprise, mask),
        "aupro": pixel_aupro(surprise, mask),
        "pointing": pointing(surprise, mask, tolerance=tolerance),
        "mask_share": float(mask.mean()),
    }


def summarize_localisation(
    scores: Sequence[Mapping[str, float]],
    episodes: Sequence[Hashable],
    *,
    rng: np.random.Generator,
    num_resamples: int = 1000,
) -> Localisation:
    """Means over pictures, with bootstrap intervals over episodes.

    Args:
        scores: One `score_picture` per picture.
        episodes: The episode of each picture; episodes are resampled, not pictures.
        rng: Generator of the bootstrap.
        num_resamples: Number of resamples.
    """
    if not scores or len(scores) != len(episodes):
        raise ValueError(
            "`scores` and `episodes` need one entry per picture and at least one picture, got "
            f"{len(scores)} and {len(episodes)}."
        )
    place = {name: row for row, name in enumerate(dict.fromkeys(episodes))}
    rows = np.array([place[name] for name in episodes])
    n = len(place)
    counts = np.bincount(rows)
    draws = rng.integers(n, size=(num_resamples, n))

    def interval(values: Float64[np.ndarray, " picture"]) -> Interval | None:
        if n == 1:
            return None
        means = np.bincount(rows, values)[draws].sum(axis=1) / counts[draws].sum(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)

    columns = {name: np.array([score[name] for score in scores]) for name in scores[0]}
    means = {name: float(values.mean()) for name, values in columns.items()}
    return Localisation(
        num_pictures=len(scores),
        num_episodes=n,
        auroc=means["auroc"],
        auroc_interval=interval(columns["auroc"]),
        aupro=means["aupro"],
        aupro_interval=interval(columns["aupro"]),
        pointing=means["pointing"],
        pointing_interval=interval(columns["pointing"]),
        mask_share=means["mask_share"],
    )


def _check(surprise: Map, mask: Mask) -> None:
    if surprise.shape != mask.shape:
        raise ValueError(
            f"`surprise` and `mask` must have one shape, got {surprise.shape} and {mask.shape}."
        )
    if not np.isfinite(surprise).all():
        raise ValueError("`surprise` must be finite; it holds NaN or infinite values.")
    if mask.all() or not mask.any():
        kind = "full" if mask.any() else "empty"
        raise ValueError(
            f"`mask` must have pixels inside and outside, but it is {kind}; skip the picture."
        )
