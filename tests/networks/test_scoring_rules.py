import re
from collections.abc import Callable

import numpy as np
import pytest
import scoringrules
import torch
from scipy.spatial.distance import cosine
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from worldmodel.networks.scoring_rules import (
    PROBABILITY_FLOOR,
    brier,
    categorical_brier,
    categorical_logarithmic,
    categorical_spherical,
    logarithmic,
    ranked_probability,
    spherical,
    threshold_crps,
)

Rule = Callable[[Tensor, Tensor], Tensor]


def outcomes(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(500, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return p, (torch.rand(500, generator=generator, dtype=torch.float64) < p).double()


def categories(seed: int = 0, *, count: int = 5) -> tuple[Tensor, Tensor]:
    """200 distributions over `count` categories, and an observed category for each."""
    generator = torch.Generator().manual_seed(seed)
    masses = torch.rand((200, count), generator=generator, dtype=torch.float64) + 0.01
    return masses / masses.sum(-1, keepdim=True), torch.randint(count, (200,), generator=generator)


def simplex(count: int, steps: int) -> Tensor:
    """All distributions over `count` categories with masses that are multiples of 1 / `steps`."""
    parts = torch.cartesian_prod(*[torch.arange(steps + 1)] * count)
    return parts[parts.sum(-1) == steps].double() / steps


def check_strictly_proper(rule: Rule, truth: Tensor, stated: Tensor, margin: float) -> None:
    """Fail unless `truth` alone minimises the expected score over the grid `stated`.

    Every other forecast must lose at least `margin` times its squared distance from the truth.
    """
    scores = torch.stack(
        [rule(stated, torch.full(stated.shape[:-1], k)) for k in range(len(truth))], dim=-1
    )
    expected = (torch.where(truth > 0, scores, 0) * truth).sum(-1)
    distance = (stated - truth).square().sum(-1)
    best = int(distance.argmin())
    assert distance[best] < 1e-12, "the truth is not on the grid"
    assert int(expected.argmin()) == best, "another forecast scores best"
    lost = expected - expected[best]
    assert (lost >= margin * distance - 1e-9).all(), "another forecast scores as well"


def of_two(rule: Rule) -> Rule:
    """Binary rule as a rule of two categories; the second is the event."""
    return lambda masses, category: rule(masses[..., 1], category.double())


def crps(masses: Tensor, category: Tensor) -> Tensor:
    """Threshold CRPS with unequal weights; category k ends at level k, the last is unbounded."""
    levels = torch.arange(masses.shape[-1] - 1.0, dtype=torch.float64)
    weights = torch.linspace(0.5, 1.5, len(levels), dtype=torch.float64)
    return threshold_crps(masses.cumsum(-1)[..., :-1], levels, category.double(), weights)


def logarithmic_of_masses(masses: Tensor, category: Tensor) -> Tensor:
    return categorical_logarithmic(masses.clamp_min(1e-300).log(), category)


BINARY = {"brier": (brier, 0.5), "logarithmic": (logarithmic, 1.0), "spherical": (spherical, 0.14)}
"""Rule -> margin. Distances count both categories, so per (p - t)² the margins are 1, 2 and 0.28:
the Brier score loses (p - t)², the logarithmic score at least 2 (p - t)² (Pinsker), the spherical
score at least 0.7 (1 - cos |p - t|), because the angle of (p, 1 - p) changes by |p - t| or more."""
CATEGORICAL = {
    "brier": (categorical_brier, 1.0),  # the distance itself
    "logarithmic": (logarithmic_of_masses, 0.5),  # Pinsker; a squared 1-norm is no less
    "spherical": (categorical_spherical, 0.1),
    "rps": (ranked_probability, 0.25),  # a mass is the difference of two cumulative ones
    "crps": (crps, 0.125),  # every weight is at least 0.5
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("truth", [0.0, 0.01, 0.3, 0.5, 0.85, 1.0])
def test_binary_rules_are_strictly_proper(name: str, truth: float) -> None:
    rule, margin = BINARY[name]
    if name == "logarithmic" and truth in (0, 1):
        margin -= 1e-2  # probabilities are clamped at the floor
    p = torch.linspace(0, 1, 201, dtype=torch.float64)
    stated = torch.stack((1 - p, p), dim=-1)
    distribution = torch.tensor([1 - truth, truth], dtype=torch.float64)
    check_strictly_proper(of_two(rule), distribution, stated, margin)


TRUTHS = {
    3: [(1, 0, 0), (0, 1, 0), (0.5, 0, 0.5), (0.2, 0.3, 0.5), (0.05, 0.9, 0.05), (0.4, 0.3, 0.3)],
    4: [(0, 0, 0, 1), (0.25, 0.25, 0.25, 0.25), (0.5, 0.25, 0.25, 0), (0.125, 0.5, 0.125, 0.25)],
}


@pytest.mark.parametrize("name", CATEGORICAL)
@pytest.mark.parametrize("count", TRUTHS)
def test_categorical_rules_are_strictly_proper(name: str, count: int) -> None:
    """231 distributions over three categories, 969 over four; every truth is one of them."""
    rule, margin = CATEGORICAL[name]
    stated = simplex(count, {3: 20, 4: 16}[count])
    for truth in TRUTHS[count]:
        check_strictly_proper(rule, torch.tensor(truth, dtype=torch.float64), stated, margin)


def linear(masses: Tensor, category: Tensor) -> Tensor:
    """1 - p_category, improper: the minimum is a point mass on the likeliest category."""
    return 1 - masses.gather(-1, category[..., None])[..., 0]


def absolute(probability: Tensor, outcome: Tensor) -> Tensor:
    """|p - y|, improper for the same reason."""
    return (probability - outcome).abs()


def blind(masses: Tensor, category: Tensor) -> Tensor:
    """Proper but not strictly: the bound between the first two categories has zero weight."""
    cdf, levels = masses.cumsum(-1)[..., :-1], torch.arange(2, dtype=torch.float64)
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return threshold_crps(cdf, levels, category.double(), weights)


@pytest.mark.parametrize(
    ("rule", "truth", "message"),
    [
        (of_two(absolute), (0.7, 0.3), "another forecast scores best"),
        (of_two(absolute), (0.5, 0.5), "another forecast scores"),
        (linear, (0.2, 0.3, 0.5), "another forecast scores best"),
        (blind, (0.2, 0.3, 0.5), "another forecast scores"),
    ],
)
def test_the_propriety_check_rejects_improper_rules(
    rule: Rule, truth: tuple[float, ...], message: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_strictly_proper(
            rule, torch.tensor(truth, dtype=torch.float64), simplex(len(truth), 20), 1e-3
        )


def test_brier_and_logarithmic_score_agree_with_scikit_learn() -> None:
    p, y = outcomes()
    assert brier(p, y).mean().item() == pytest.approx(brier_score_loss(y, p))
    assert logarithmic(p, y).mean().item() == pytest.approx(log_loss(y, p))


def test_brier_and_logarithmic_score_agree_with_scoringrules() -> None:
    p, y = outcomes(1)
    np.testing.assert_allclose(brier(p, y), scoringrules.brier_score(y.numpy(), p.numpy()))
    np.testing.assert_allclose(logarithmic(p, y), scoringrules.log_score(y.numpy(), p.numpy()))


def test_spherical_scores_are_cosine_distances_from_the_outcome() -> None:
    p, y = outcomes(2)
    both, outcome = torch.stack((1 - p, p), -1), torch.stack((1 - y, y), -1)
    expected = [cosine(a, b) for a, b in zip(both, outcome, strict=True)]
    np.testing.assert_allclose(spherical(p, y), expected, atol=1e-12)
    masses, category = categories()
    expected = [cosine(m, np.eye(5)[k]) for m, k in zip(masses, category, strict=True)]
    np.testing.assert_allclose(categorical_spherical(masses, category), expected, atol=1e-12)


def test_categorical_scores_agree_with_scoringrules_and_scikit_learn() -> None:
    masses, category = categories()
    ranked = scoringrules.rps_score(category.numpy() + 1, masses.numpy())
    np.testing.assert_allclose(ranked_probability(masses, category), ranked)
    outcome = np.eye(5)[category.numpy()]
    each = scoringrules.brier_score(outcome, masses.numpy()).sum(-1)
    np.testing.assert_allclose(categorical_brier(masses, category), each, atol=1e-12)
    total = categorical_logarithmic(masses.log(), category).mean().item()
    assert total == pytest.approx(log_loss(category, masses, labels=range(5)))


def test_two_categories_are_an_event_and_its_opposite() -> None:
    p, y = outcomes(3)
    masses, category = torch.stack((1 - p, p), -1), y.long()
    torch.testing.assert_close(categorical_brier(masses, category), 2 * brier(p, y))
    torch.testing.assert_close(categorical_spherical(masses, category), spherical(p, y))
    torch.testing.assert_close(ranked_probability(masses, category), brier(p, y))
    torch.testing.assert_close(logarithmic_of_masses(masses, category), logarithmic(p, y))


def test_only_ranked_probability_depends_on_the_order_of_categories() -> None:
    masses = torch.tensor([[0.1, 0.8, 0.1, 0.0], [0.1, 0.0, 0.1, 0.8]])
    first = torch.zeros(2, dtype=torch.long)
    near, far = ranked_probability(masses, first)
    assert far > near + 1
    for rule in (categorical_brier, categorical_spherical):
        near, far = rule(masses, first)
        assert near == pytest.approx(far)


def test_logarithmic_score_of_a_wrong_certainty_is_large_but_finite() -> None:
    score = logarithmic(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(
        score, torch.full((2,), -np.log(PROBABILITY_FLOOR)).float(), rtol=1e-2, atol=0
    )


def trapezoid_weights(x: Tensor) -> Tensor:
    """Weights with which a sum over the grid `x` is the trapezoid rule."""
    gaps, end = x.diff(), x.new_zeros(1)
    return (torch.cat((gaps, end)) + torch.cat((end, gaps))) / 2


def test_threshold_crps_on_a_fine_grid_is_the_crps_of_a_normal() -> None:
    """The trapezoid rule on 4001 points over 20 deviations; the step is 0.005."""
    x = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    mean, deviation, value = 0.4, 1.3, torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    cdf = torch.from_numpy(norm.cdf(x.numpy(), mean, deviation)).expand(3, -1)
    expected = scoringrules.crps_normal(value.numpy(), mean, deviation)
    score = threshold_crps(cdf, x, value, trapezoid_weights(x))
    np.testing.assert_allclose(score, expected, atol=3e-3)


def test_threshold_crps_by_hand() -> None:
    """Levels 1, 2, 4; F = 0.5, 0.75, 1; value 1.5: (0.5)² · ½ + (0.25)² · 1.5 + 0 by trapezoids."""
    cdf, levels = torch.tensor([[0.5, 0.75, 1.0]]), torch.tensor([1.0, 2.0, 4.0])
    score = threshold_crps(cdf, levels, torch.tensor([1.5]), trapezoid_weights(levels))
    assert score.item() == pytest.approx(0.21875)
    weights = torch.tensor([1.0, 10.0, 100.0])
    score = threshold_crps(cdf, levels, torch.tensor([2.0]), weights)
    assert score.item() == pytest.approx(0.25 + 10 * 0.0625)


def test_threshold_crps_is_strictly_proper_for_distributions() -> None:
    """The truth is a half-normal; every other scale and 200 random distributions score worse."""
    levels = torch.linspace(0.1, 3.0, 12, dtype=torch.float64)
    truth = torch.from_numpy(2 * norm.cdf(levels.numpy()) - 1)
    # Expectation over values: which levels have been reached depends on the interval alone.
    masses = torch.cat((truth[:1], truth.diff(), 1 - truth[-1:]))
    values = torch.cat((levels, levels[-1:] + 1))
    weights = torch.full_like(levels, 1 / len(levels))

    def expected(cdf: Tensor) -> float:
        rows = cdf.expand(len(values), -1)
        return float((masses * threshold_crps(rows, levels, values, weights)).sum())

    best = expected(truth)
    generator = torch.Generator().manual_seed(0)
    others = [
        torch.rand(12, generator=generator, dtype=torch.float64).sort().values for _ in range(200)
    ]
    others += [torch.from_numpy(2 * norm.cdf(levels.numpy() / s) - 1) for s in (0.5, 0.9, 1.1, 2.0)]
    for cdf in others:
        distance = (cdf - truth).square().mean().item()
        assert expected(cdf) - best == pytest.approx(distance)
        assert distance > 1e-4
