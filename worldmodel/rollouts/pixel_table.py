"""Figures of the confidence in pictures: is what it calls right, right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from worldmodel.monitors.reliability.measures import bin_forecasts, expected_calibration_error

SURE = 0.9
"""Confidence from which a patch counts as stated to be right."""
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class PixelRow:
    """Reliability of the confidence in pictures at one error δ."""

    delta: float
    """Mean absolute error of a patch, in grey levels, up to which it is right."""
    num_episodes: int
    base_rate: float
    """Share of right patches."""
    ece: float
    """Expected calibration error, pooled."""
    skill: float | None
    """Brier skill against the base rate; None where nearly all patches are alike."""
    sure: float
    """Share of patches with a confidence of at least `SURE`."""
    right: float | None
    """Share of right ones among them; None without any."""
    right_interval: tuple[float, float] | None
    """95% bootstrap interval over episodes; None for fewer than 2."""


def pixel_rows(
    confidence: Sequence[Float[np.ndarray, "patch delta"]],
    error: Sequence[Float[np.ndarray, " patch"]],
    deltas: Sequence[float],
) -> list[PixelRow]:
    """Figures per δ, from the confidence and the error of the patches of each episode.

    Raises:
        ValueError: No episode, or their numbers differ.
    """
    if not confidence or len(confidence) != len(error):
        raise ValueError(
            "`confidence` and `error` need one array per episode, got "
            f"{len(confidence)} and {len(error)}."
        )
    return [
        _row(delta, [c[:, i] for c in confidence], [e <= delta for e in error])
        for i, delta in enumerate(deltas)
    ]


def _row(
    delta: float,
    confidence: Sequence[Float[np.ndarray, " patch"]],
    right: Sequence[Bool[np.ndarray, " patch"]],
) -> PixelRow:
    stated, true = np.concatenate(confidence).astype(np.float64), np.concatenate(right)
    base, brier = float(true.mean()), float(np.square(stated - true).mean())
    reference = base * (1 - base)
    sure = stated >= SURE
    counts = np.array(
        [
            ((c >= SURE).sum(), (r & (c >= SURE)).sum())
            for c, r in zip(confidence, right, strict=True)
        ],
        dtype=np.float64,
    )
    return PixelRow(
        delta=delta,
        num_episodes=len(confidence),
        base_rate=base,
        ece=float(expected_calibration_error(bin_forecasts(stated, true))),
        skill=1 - brier / reference if reference > 1e-3 else None,
        sure=float(sure.mean()),
        right=float(true[sure].mean()) if sure.any() else None,
        right_interval=_interval(counts),
    )


def _interval(counts: Float[np.ndarray, "episode 2"]) -> tuple[float, float] | None:
    """Bootstrap interval of a ratio of sums over episodes; column 0 is the denominator."""
    if len(counts) < 2 or not counts[:, 0].any():
        return None
    rng = np.random.default_rng(0)
    drawn = counts[rng.integers(len(counts), size=(RESAMPLES, len(counts)))].sum(1)
    ratio = drawn[:, 1] / np.maximum(drawn[:, 0], 1)
    low, high = np.quantile(ratio[drawn[:, 0] > 0], [0.025, 0.975])
    return float(low), float(high)
