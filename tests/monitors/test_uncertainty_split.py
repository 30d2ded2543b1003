"""Uncertainty decomposition: von Mises-Fisher entropies against mpmath and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from worldmodel.monitors.metrics.uncertainty_split import (
    MAX_KAPPA,
    concentration,
    decompose,
    direction_entropy,
    entropy,
    log_normalizer,
    mean_resultant,
)

KAPPAS = (0.0, 1e-8, 0.3, 7.0, 450.0, 1e4, 1e6)


def exact(kappa: float, dim: int) -> tuple[float, float, float]:
    """Log normaliser, mean resultant and entropy in 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        k, v = mpmath.mpf(kappa), mpmath.mpf(dim) / 2 - 1
        bessel = mpmath.besseli(v, k)
        log = v * mpmath.log(k) - mpmath.mpf(dim) / 2 * mpmath.log(2 * mpmath.pi)
        log -= mpmath.log(bessel)
        resultant = mpmath.besseli(v + 1, k) / bessel
        return float(log), float(resultant), float(-log - k * resultant)


@pytest.mark.parametrize("dim", [2, 3, 7, 83, 512])
@pytest.mark.parametrize("kappa", KAPPAS[1:])
def test_values_agree_with_mpmath_to_sixty_digits(kappa: float, dim: int) -> None:
    log, resultant, expected = exact(kappa, dim)
    assert log_normalizer(kappa, dim) == pytest.approx(log, rel=1e-12, abs=1e-9)
    assert mean_resultant(kappa, dim) == pytest.approx(resultant, rel=1e-12)
    assert entropy(kappa, dim) == pytest.approx(expected, rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("dim", [3, 10, 60])
def test_entropy_agrees_with_scipy(dim: int) -> None:
    for kappa in (0.5, 20.0, 100.0):
        expected = stats.vonmises_fisher(np.eye(dim)[0], kappa).entropy()
        assert entropy(kappa, dim) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("dim", [2, 3, 512])
def test_entropy_at_zero_and_largest_concentration(dim: int) -> None:
    surface = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    assert entropy(0.0, dim) == pytest.approx(surface, abs=1e-9)
    gaussian = (dim - 1) / 2 * math.log(2 * math.pi * math.e / 1e6)
    assert entropy(1e6, dim) == pytest.approx(gaussian, abs=0.05 * dim**2 / 512)
    values = entropy(np.array([*KAPPAS, MAX_KAPPA]), dim)
    assert (np.diff(values) <= 0).all()
    assert (np.diff(values)[1:] < 0).all()


@pytest.mark.parametrize("dim", [2, 3, 50, 512])
def test_concentration_inverts_the_mean_resultant(dim: int) -> None:
    kappas = np.array([*KAPPAS, 1e7])
    found = concentration(mean_resultant(kappas, dim), dim)
    np.testing.assert_allclose(found, kappas, rtol=1e-6)
    assert concentration(1.0, dim) == MAX_KAPPA


@pytest.mark.parametrize(("dim", "kappa"), [(3, 5.0), (20, 60.0)])
def test_concentration_maximises_the_likelihood(dim: int, kappa: float) -> None:
    truth = stats.vonmises_fisher(np.eye(dim)[0], kappa)
    sample = truth.rvs(200, random_state=np.random.default_rng(0))
    _, expected = stats.vonmises_fisher.fit(sample)
    length = np.linalg.norm(sample.mean(0))
    assert concentration(length, dim) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dim", [3, 100])
def test_the_estimate_does_not_depend_on_the_number_of_samples(dim: int) -> None:
    # Means of 2000 estimates from 4 samples and of 125 from 64: standard errors below 0.015 per
    # dimension. Taken from the length of the mean, 4 samples would be off by 0.14 per dimension.
    kappa, rng = 20.0 * dim, np.random.default_rng(0)
    sample = stats.vonmises_fisher(np.eye(dim)[0], kappa).rvs(8000, random_state=rng)
    for size in (4, 64):
        entropies = direction_entropy(sample.reshape(-1, size, dim), np.ones(size))
        assert entropies.mean() == pytest.approx(entropy(kappa, dim), abs=0.08 * (dim - 1))
    plain = concentration(np.linalg.norm(sample.reshape(-1, 4, dim).mean(1), axis=-1), dim)
    assert entropy(plain, dim).mean() < entropy(kappa, dim) - 0.1 * (dim - 1)


def cloud(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """Directions around one axis."""
    return np.eye(shape[-1])[0] + spread * rng.normal(size=shape)


def test_each_part_follows_its_own_spread() -> None:
    rng = np.random.default_rng(0)
    drawn = {
        (z, v): decompose(cloud(rng, (12, 56), z), cloud(rng, (12, 4, 512), v), rng=rng)
        for z in (0.01, 0.02)
        for v in (0.001, 0.002)
    }
    base, wide, unsure = drawn[0.01, 0.001], drawn[0.02, 0.001], drawn[0.01, 0.002]
    assert wide.aleatoric - base.aleatoric == pytest.approx(55 * math.log(2), rel=0.1)
    assert unsure.epistemic - base.epistemic == pytest.approx(511 * math.log(2), rel=0.02)
    for other in (wide.epistemic - base.epistemic, unsure.aleatoric - base.aleatoric):
        assert abs(other) < 10
    for one in drawn.values():
        assert one.total == one.aleatoric + one.epistemic
        for name in ("aleatoric", "epistemic", "total"):
            low, high = getattr(one, f"{name}_interval")
            assert low < getattr(one, name) < high
        assert (one.num_sequences, one.num_seeds) == (12, 4)


def test_intervals_have_nominal_coverage() -> None:
    # 80 studies of 16 sequences; bootstrap intervals from so few fall a little short of 95%.
    rng, dim, kappa = np.random.default_rng(1), 84, 4000.0
    truth, held = entropy(kappa, dim), 0
    drawn = stats.vonmises_fisher(np.eye(dim)[0], kappa).rvs(80 * 16, random_state=rng)
    for intents in drawn.reshape(80, 16, dim):
        low, high = decompose(
            intents, intents[:, None].repeat(2, 1), rng=rng, num_resamples=200
        ).aleatoric_interval
        held += low <= truth <= high
    assert held >= 64


def test_identical_embeddings_give_the_smallest_entropy_and_opposite_ones_the_largest() -> None:
    same = np.ones((5, 8))
    assert direction_entropy(same, np.ones(5)) == entropy(MAX_KAPPA, 8)
    opposite = np.concatenate((same, -same))
    assert direction_entropy(opposite, np.ones(10)) == entropy(0.0, 8)


def test_entropy_is_invariant_to_scale_and_order() -> None:
    rng = np.random.default_rng(2)
    sample, counts = cloud(rng, (6, 40), 0.2), np.ones(6)
    expected = direction_entropy(sample, counts)
    assert direction_entropy(1e-6 * sample, counts) == pytest.approx(expected, abs=1e-9)
    assert direction_entropy(sample[::-1], counts) == pytest.approx(expected, abs=1e-9)
    doubled = direction_entropy(sample, np.array([2.0, 2, 1, 1, 1, 1]))
    listed = np.concatenate((sample, sample[:2]))
    unit = listed / np.linalg.norm(listed, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(8) for j in range(8) if i % 6 != j % 6]
    assert doubled == pytest.approx(entropy(concentration(math.sqrt(np.mean(pairs)), 40), 40))


def test_impossible_input_is_refused() -> None:
    rng = np.random.default_rng(0)
    good, seeds = cloud(rng, (4, 6), 0.1), cloud(rng, (4, 3, 6), 0.1)
    zero, nan = good.copy(), seeds.copy()
    zero[1], nan[2, 1, 0] = 0, np.nan
    with pytest.raises(ValueError, match="must not be zero vectors"):
        decompose(zero, seeds, rng=rng)
    with pytest.raises(ValueError, match="must be finite, got NaN"):
        decompose(good, nan, rng=rng)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        decompose(good[:, :1], seeds, rng=rng)
    with pytest.raises(ValueError, match="one row per intent, got 4 and 3"):
        decompose(good[:3], seeds, rng=rng)
    for short in (seeds[:1], seeds[:, :1]):
        with pytest.raises(ValueError, match="at least 2 sequences of 2 seeds each"):
            decompose(good[: len(short)], short, rng=rng)
