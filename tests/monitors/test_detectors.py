"""Detectors against scikit-learn; positions and whole frames alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from worldmodel.monitors.detection import auroc
from worldmodel.monitors.detectors import (
    Mahalanobis,
    NearestNeighbours,
    PcaResidual,
    RelativeMahalanobis,
)
from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.gaussian import RIDGE

DIM = 8
MIXING = np.random.default_rng(99).normal(size=(3, DIM)) * 3
GROUPS = np.random.default_rng(98).normal(size=(4, DIM)) * 6


def familiar(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Four groups that share three broad directions, and the group of each row."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(4, size=n)
    rows = GROUPS[groups] + rng.normal(size=(n, 3)) @ MIXING + 0.3 * rng.normal(size=(n, DIM))
    return rows, groups


def strange(seed: int, n: int = 400) -> np.ndarray:
    """Off the narrow directions by several of their deviations."""
    return familiar(seed, n)[0] + 3 * np.random.default_rng(seed + 1).normal(size=(n, DIM))


FITTED: dict[str, Callable[[], Any]] = {
    "mahalanobis": lambda: Mahalanobis().fit(familiar(0)[0]),
    "relative": lambda: RelativeMahalanobis().fit(*familiar(0)),
    "neighbours": lambda: NearestNeighbours(k=5).fit(familiar(0)[0]),
    "pca": lambda: PcaResidual().fit(familiar(0)[0]),
}
every = pytest.mark.parametrize("make", FITTED.values(), ids=FITTED)


def squared_distances(fit: np.ndarray, centres: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """To each centre, under scikit-learn's shrunk covariance of standardised `fit`."""
    scaler = StandardScaler().fit(fit)
    shrunk = LedoitWolf(assume_centered=True).fit(scaler.transform(fit)).covariance_
    precision = np.linalg.inv(shrunk + RIDGE * np.eye(DIM))
    apart = (fresh[:, None] - centres) / scaler.scale_
    return np.einsum("nkd,de,nke->nk", apart, precision, apart)


def test_mahalanobis_is_scikit_learns() -> None:
    rows, fresh = familiar(0)[0], strange(1)
    expected = squared_distances(rows, rows.mean(axis=0)[None], fresh)[:, 0]
    scores = FITTED["mahalanobis"]().score(fresh)
    np.testing.assert_allclose(scores, np.sqrt(expected / DIM), rtol=1e-9)


def test_relative_mahalanobis_is_the_nearest_group_less_all() -> None:
    (rows, groups), fresh = familiar(0), strange(1)
    means = np.stack([rows[groups == k].mean(axis=0) for k in range(4)])
    own = squared_distances(rows - means[groups], means, fresh).min(axis=1)
    common = squared_distances(rows, rows.mean(axis=0)[None], fresh)[:, 0]
    scores = FITTED["relative"]().score(fresh)
    np.testing.assert_allclose(scores, (own - common) / DIM, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("k", [1, 5, 400])
def test_neighbours_are_scikit_learns(k: int) -> None:
    rows, fresh = familiar(0)[0], strange(1, 1500)  # more than one chunk
    oracle = NearestNeighbors(n_neighbors=k).fit(normalize(rows))
    expected = oracle.kneighbors(normalize(fresh))[0][:, -1]
    scores = NearestNeighbours(k=k).fit(rows).score(fresh)
    np.testing.assert_allclose(scores, expected, atol=1e-7)


@pytest.mark.parametrize("explained", [0.5, 0.9, 0.99])
def test_pca_residual_is_scikit_learns(explained: float) -> None:
    rows, fresh = familiar(0)[0], strange(1)
    scaler = StandardScaler().fit(rows)
    pca = PCA(n_components=explained, svd_solver="full").fit(scaler.transform(rows))
    standard = scaler.transform(fresh)
    left = standard - pca.inverse_transform(pca.transform(standard))
    detector = PcaResidual(explained=explained).fit(rows)
    assert len(detector.components_) == pca.n_components_
    np.testing.assert_allclose(detector.score(fresh), np.sqrt((left**2).mean(axis=1)), rtol=1e-8)


@every
def test_finds_what_is_strange(make: Callable[[], Any]) -> None:
    """400 against 400 rows: the standard error of an AUROC of 0.8 is 0.015."""
    detector = make()
    assert auroc(detector.score(familiar(2)[0]), detector.score(strange(1))) > 0.8
    same = auroc(detector.score(familiar(3)[0]), detector.score(familiar(2)[0]))
    assert same == pytest.approx(0.5, abs=0.08)


@every
def test_a_position_scores_as_a_row(make: Callable[[], Any]) -> None:
    detector, rows = make(), strange(4, 30)
    np.testing.assert_allclose(
        detector.score(rows.reshape(5, 3, 2, DIM)).ravel(), detector.score(rows), rtol=1e-12
    )


def test_positions_share_one_fit() -> None:
    rows, groups = familiar(0)
    spatial, places = rows.reshape(100, 2, 2, DIM), groups.reshape(100, 2, 2)
    fresh = strange(1, 20)
    pairs = [
        (Mahalanobis().fit(rows), Mahalanobis().fit(spatial)),
        (RelativeMahalanobis().fit(rows, groups), RelativeMahalanobis().fit(spatial, places)),
        (NearestNeighbours().fit(rows), NearestNeighbours().fit(spatial)),
        (PcaResidual().fit(rows), PcaResidual().fit(spatial)),
    ]
    for one, other in pairs:
        np.testing.assert_array_equal(one.score(fresh), other.score(fresh))


@every
def test_arrays_are_all_that_is_learned(make: Callable[[], Any]) -> None:
    detector, fresh = make(), strange(1, 20)
    again = type(detector).from_arrays(detector.arrays())
    np.testing.assert_array_equal(again.score(fresh), detector.score(fresh))
    with pytest.raises(NotFittedError):
        type(detector)().score(fresh)
    with pytest.raises(NotFittedError):
        type(detector)().arrays()


@every
def test_broken_features_are_refused(make: Callable[[], Any]) -> None:
    detector = make()
    with pytest.raises(ValueError, match="`features` must have 8 numbers per row, got 7"):
        detector.score(strange(1)[:, :7])
    with pytest.raises(ValueError, match="NaN or infinite"):
        detector.score(np.full((2, DIM), np.nan))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mahalanobis().fit(np.ones((1, 3))), "at least 2 rows, got 1"),
        (lambda: RelativeMahalanobis().fit(np.eye(3), np.zeros(3, int)), "at least 2 groups"),
        (lambda: NearestNeighbours(k=0), r"`k` must lie in \[1, `bank_size`\]"),
        (lambda: NearestNeighbours(k=4).fit(np.eye(3)), "at least `k`=4 rows, got 3"),
        (lambda: PcaResidual(explained=1.0), r"`explained` must lie in \(0, 1\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_large_bank_is_drawn_from_evenly() -> None:
    rows = familiar(0, 2000)[0]
    detector = NearestNeighbours(k=2, bank_size=500).fit(rows)
    assert detector.bank_.shape == (500, DIM)
    assert auroc(detector.score(familiar(2)[0]), detector.score(strange(1))) > 0.8
