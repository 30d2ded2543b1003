"""Correlation over policies that are variants of each other and were run in the same scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from worldmodel.evaluation.statistics import (
    LEAST_POLICIES,
    ROUNDING,
    Correlation,
    Rates,
    pearson,
    permutation_p_value,
    spearman,
)

Outcomes = Sequence[Float[np.ndarray, " _"]]
"""Successes (1 or 0) of each policy's episodes; NaN: left out, for example by the gate."""
Resampled = Float[np.ndarray, "resample policy"]
RESAMPLES = 1000
"""Bootstrap resamples of an interval."""


@dataclass(frozen=True)
class Design:
    """What the episodes of a comparison have in common."""

    families: Sequence[str]
    """Family of each policy; policies of one family, such as several noise levels of one policy,
    are not independent."""
    shared_scenes: bool
    """Whether episode i of every policy starts in the same scene."""

    @property
    def num_families(self) -> int:
        """Number of distinct families."""
        return len(set(self.families))

    def chosen(self, kept: Sequence[int]) -> Design:
        """The same for some of the policies."""
        return Design([self.families[i] for i in kept], self.shared_scenes)


def correlations(
    predicted: Outcomes, true: Outcomes, design: Design, *, generator: np.random.Generator
) -> tuple[Correlation, Correlation]:
    """Pearson and Spearman correlation of predicted with true success rates.

    The interval resamples families and scenes at once (pigeonhole bootstrap: Owen 2007,
    doi:10.1214/07-AOAS122), and the p-value permutes the mean rates of families. Both are None for
    fewer than `LEAST_POLICIES` families.

    Args:
        predicted: Outcomes per policy; at least one each that is not left out.
        true: Outcomes of the same episodes.
        design: Families of the policies, and whether they share scenes.
        generator: Draws resamples and permutations.

    Raises:
        ValueError: Scenes are shared, but policies have different numbers of episodes.
    """
    x, y = rates(predicted), rates(true)
    members = np.array(design.families)
    means = [
        np.array([column[members == family].mean() for family in dict.fromkeys(design.families)])
        for column in (x, y)
    ]
    resamples = resampled_rates(predicted, true, design, generator=generator)
    results = []
    for correlate, ranked in ((pearson, False), (spearman, True)):
        result = correlate(x, y, generator=generator)
        interval = p_value = None
        if result.value is not None and design.num_families >= LEAST_POLICIES:
            interval = percentiles(weighted_correlations(*resamples, ranked=ranked))
            p_value = permutation_p_value(*means, generator=generator)
        results.append(replace(result, interval=interval, p_value=p_value))
    return results[0], results[1]


def rates(outcomes: Outcomes) -> Rates:
    """Success rate of each policy."""
    return np.array([success_rate(episodes) for episodes in outcomes])


def success_rate(outcomes: Float[np.ndarray, " episode"]) -> float:
    """Mean of the outcomes that are not left out; NaN without any.

    >>> success_rate(np.array([1.0, 0.0, np.nan]))
    0.5
    """
    kept = outcomes[~np.isnan(outcomes)]
    return float(kept.mean()) if len(kept) else float("nan")


def resampled_rates(
    predicted: Outcomes, true: Outcomes, design: Design, *, generator: np.random.Generator
) -> tuple[Resampled, Resampled, Resampled]:
    """Predicted and true rates in resamples of scenes, and weights from resamples of families.

    The weight of a policy is how often its family was drawn; 0 if it lost all its episodes.
    """
    lengths = [len(episodes) for episodes in true]
    if design.shared_scenes and len(set(lengths)) > 1:
        raise ValueError(
            f"Policies that share scenes need as many episodes each, got {sorted(set(lengths))}."
        )
    families = list(dict.fromkeys(design.families))
    drawn = resample(len(families), generator)
    weight = drawn[:, [families.index(family) for family in design.families]]
    common = resample(lengths[0], generator)
    x, y = np.empty(weight.shape), np.empty(weight.shape)
    for policy, n in enumerate(lengths):
        scenes = common if design.shared_scenes else resample(n, generator)
        kept = ~np.isnan(predicted[policy])
        total = scenes @ kept
        for rate, outcomes in ((x, predicted[policy]), (y, true[policy])):
            rate[:, policy] = scenes[:, kept] @ outcomes[kept] / np.maximum(total, 1)
        weight[:, policy] *= total > 0
    return x, y, weight


def resample(n: int, generator: np.random.Generator) -> Float[np.ndarray, "resample n"]:
    """How often each of `n` units is drawn in each of `RESAMPLES` resamples."""
    return generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def weighted_correlations(
    x: Resampled, y: Resampled, weight: Resampled, *, ranked: bool
) -> Float[np.ndarray, " resample"]:
    """Correlation of each resample; of ranks (ties: mean rank) if `ranked`. NaN: undefined."""
    if ranked:
        x, y = mean_ranks(x, weight), mean_ranks(y, weight)
    total = weight.sum(axis=1, keepdims=True)
    x, y = (v - (weight * v).sum(axis=1, keepdims=True) / np.maximum(total, 1) for v in (x, y))
    xy, xx, yy = ((weight * product).sum(axis=1) for product in (x * y, x * x, y * y))
    spread = np.sqrt(xx * yy)
    return np.divide(xy, spread, out=np.full(len(x), np.nan), where=spread > ROUNDING)


def mean_ranks(values: Resampled, weight: Resampled) -> Resampled:
    """Rank of each policy in its resample, up to a constant."""
    difference = values[:, :, None] - values[:, None, :]
    below = np.where(np.abs(difference) < ROUNDING, 0.5, difference > 0)
    return np.einsum("rij,rj->ri", below, weight)


def percentiles(values: Float[np.ndarray, " resample"]) -> tuple[float, float] | None:
    """95% percentile interval; None if a tenth of the resamples or more has no correlation."""
    known = values[~np.isnan(values)]
    if len(known) <= 0.9 * len(values):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
