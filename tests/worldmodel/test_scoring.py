from collections.abc import Callable

import numpy as np
import pytest
import scoringrules
import torch
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from worldmodel.scoring import PROBABILITY_FLOOR, brier, logarithmic, threshold_crps

Rule = Callable[[Tensor, Tensor], Tensor]
GRID = torch.linspace(0, 1, 201, dtype=torch.float64)


def outcomes(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(500, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return p, (torch.rand(500, generator=generator, dtype=torch.float64) < p).double()


@pytest.mark.parametrize("rule", [brier, logarithmic])
@pytest.mark.parametrize("truth", [0.0, 0.005, 0.3, 0.5, 0.85, 1.0])
def test_expected_score_is_least_at_the_true_probability_and_only_there(
    rule: Rule, truth: float
) -> None:
    yes, no = torch.ones_like(GRID), torch.zeros_like(GRID)
    expected = truth * rule(GRID, yes) + (1 - truth) * rule(GRID, no)
    assert GRID[expected.argmin()].item() == pytest.approx(truth)
    # Both rules lose at least (p - truth)², the Brier score's own margin.
    margin = expected - expected.min()
    assert (margin >= 0.99 * (GRID - truth).square() - 1e-5).all()


def test_brier_and_logarithmic_score_agree_with_scikit_learn() -> None:
    p, y = outcomes()
    assert brier(p, y).mean().item() == pytest.approx(brier_score_loss(y, p))
    assert logarithmic(p, y).mean().item() == pytest.approx(log_loss(y, p))


def test_brier_and_logarithmic_score_agree_with_scoringrules() -> None:
    p, y = outcomes(1)
    np.testing.assert_allclose(brier(p, y), scoringrules.brier_score(y.numpy(), p.numpy()))
    np.testing.assert_allclose(logarithmic(p, y), scoringrules.log_score(y.numpy(), p.numpy()))


def test_logarithmic_score_of_a_wrong_certainty_is_large_but_finite() -> None:
    score = logarithmic(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(
        score, torch.full((2,), -np.log(PROBABILITY_FLOOR)).float(), rtol=1e-2, atol=0
    )


def test_threshold_crps_on_a_fine_grid_is_the_crps_of_a_normal() -> None:
    """The trapezoid rule on 4001 points over 20 deviations; the step is 0.005."""
    x = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    mean, deviation, value = 0.4, 1.3, torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    cdf = torch.from_numpy(norm.cdf(x.numpy(), mean, deviation)).expand(3, -1)
    expected = scoringrules.crps_normal(value.numpy(), mean, deviation)
    np.testing.assert_allclose(threshold_crps(cdf, x, value), expected, atol=3e-3)


def test_threshold_crps_by_hand() -> None:
    """Levels 1, 2, 4; F = 0.5, 0.75, 1; value 1.5: (0.5)² · ½ + (0.25)² · 1.5 + 0 by trapezoids."""
    cdf, levels = torch.tensor([[0.5, 0.75, 1.0]]), torch.tensor([1.0, 2.0, 4.0])
    assert threshold_crps(cdf, levels, torch.tensor([1.5])).item() == pytest.approx(0.21875)
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
