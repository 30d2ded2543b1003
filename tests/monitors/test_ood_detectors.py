"""OOD detectors against scikit-learn and pytorch-ood; arrays and tensors, positions and frames."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from worldmodel.monitors.channels.gaussian import RIDGE, fit_whitening
from worldmodel.monitors.channels.ood_detectors import (
    Mahalanobis,
    NearestNeighbours,
    PcaResidual,
    PositionGaussian,
    PytorchOod,
    RelativeMahalanobis,
    batched_whitening,
    group_index,
)
from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.metrics.detection import auroc

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
def test_detects_unfamiliar_features(make: Callable[[], Any]) -> None:
    """400 against 400 rows: the standard error of an AUROC of 0.8 is 0.015."""
    detector = make()
    assert auroc(detector.score(familiar(2)[0]), detector.score(strange(1))) > 0.8
    same = auroc(detector.score(familiar(3)[0]), detector.score(familiar(2)[0]))
    assert same == pytest.approx(0.5, abs=0.08)


@every
def test_positions_score_like_rows(make: Callable[[], Any]) -> None:
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
def test_arrays_restore_the_detector(make: Callable[[], Any]) -> None:
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
        (lambda: PositionGaussian().fit(np.ones((1, 2, 2, 3))), "at least 2 frames, got 1"),
        (lambda: PytorchOod(len), "`detector` must have `fit_features`"),
    ],
)
def test_invalid_fits_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_large_bank_is_sampled_uniformly() -> None:
    rows = familiar(0, 2000)[0]
    detector = NearestNeighbours(k=2, bank_size=500).fit(rows)
    assert detector.bank_.shape == (500, DIM)
    assert auroc(detector.score(familiar(2)[0]), detector.score(strange(1))) > 0.8


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_and_arrays_score_equally(make: Callable[[], Any], dtype: torch.dtype) -> None:
    detector = make()
    features = torch.from_numpy(strange(4, 30)).reshape(5, 3, 2, DIM).to(dtype).requires_grad_()
    scores = detector.score(features)
    assert isinstance(scores, torch.Tensor)
    assert scores.dtype == torch.float64
    assert not scores.requires_grad
    assert scores.shape == (5, 3, 2)
    expected = detector.score(features.detach().double().numpy())
    assert isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(scores.numpy(), expected)


def test_fits_on_tensors_as_on_arrays() -> None:
    rows, groups = familiar(0)
    tensors, labels, fresh = torch.from_numpy(rows), torch.from_numpy(groups), strange(1, 20)
    pairs = [
        (Mahalanobis().fit(rows), Mahalanobis().fit(tensors)),
        (RelativeMahalanobis().fit(rows, groups), RelativeMahalanobis().fit(tensors, labels)),
        (NearestNeighbours(bank_size=50).fit(rows), NearestNeighbours(bank_size=50).fit(tensors)),
        (PcaResidual().fit(rows), PcaResidual().fit(tensors)),
        (PositionGaussian().fit(rows), PositionGaussian().fit(tensors)),
    ]
    for one, other in pairs:
        np.testing.assert_array_equal(one.score(fresh), other.score(fresh))


@pytest.mark.gpu
@every
def test_scores_stay_on_the_device_of_the_features(make: Callable[[], Any]) -> None:
    detector, fresh = make(), strange(1, 20)
    expected = detector.score(fresh)
    scores = detector.score(torch.from_numpy(fresh).cuda())
    assert scores.device.type == "cuda"
    np.testing.assert_allclose(scores.cpu().numpy(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(detector.score(fresh), expected, rtol=1e-12)


@every
def test_scores_do_not_depend_on_memory_layout(make: Callable[[], Any]) -> None:
    detector, fresh = make(), strange(1, 20)
    expected = detector.score(fresh)
    frozen = fresh.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(detector.score(frozen), expected)
    np.testing.assert_array_equal(detector.score(fresh[::-1]), expected[::-1])
    np.testing.assert_array_equal(detector.score(fresh.astype(">f8")), expected)
    np.testing.assert_array_equal(fresh, strange(1, 20))


@pytest.mark.parametrize("n", [3, 6, 400])
def test_batched_whitening_equals_the_numpy_version(n: int) -> None:
    rows = familiar(0, n)[0]
    rows[:, 2] = 5.0
    for ours, theirs in zip(
        batched_whitening(torch.from_numpy(rows)), fit_whitening(rows), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_constant_feature_keeps_its_unit(value: float) -> None:
    """The rounded mean of 400 times 0.1 is not 0.1: its deviation is no scale."""
    rows, fresh = familiar(0)[0], familiar(1, 20)[0]
    rows[:, 3] = fresh[:, 3] = value
    for detector in (Mahalanobis().fit(rows), PcaResidual().fit(rows)):
        assert detector.score(fresh).max() < 5


PLACE = (2, 3)


def maps(seed: int, n: int = 60) -> np.ndarray:
    """Maps whose positions differ in mean and in the direction they spread."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(97)
    means, mixing = 4 * fixed.normal(size=(*PLACE, DIM)), fixed.normal(size=(*PLACE, DIM, DIM))
    return means + np.einsum("nhwd,hwde->nhwe", rng.normal(size=(n, *PLACE, DIM)), mixing)


def test_position_gaussian_is_scikit_learns_at_every_position() -> None:
    fit, fresh = maps(0), maps(1, 20)
    scores = PositionGaussian().fit(fit).score(fresh)
    assert scores.shape == (20, *PLACE)
    for y, x in np.ndindex(PLACE):
        rows = fit[:, y, x]
        squared = squared_distances(rows, rows.mean(axis=0)[None], fresh[:, y, x])[:, 0]
        np.testing.assert_allclose(scores[:, y, x], np.sqrt(squared / DIM), rtol=1e-9)


def test_position_gaussian_detects_content_at_the_wrong_position() -> None:
    """Positions swapped: each vector was seen, only not there. One shared fit cannot tell."""
    fit, fresh = maps(0, 400), maps(1, 400)
    swapped = fresh[:, ::-1, ::-1]
    own, shared = PositionGaussian().fit(fit), Mahalanobis().fit(fit)
    assert auroc(own.score(fresh).ravel(), own.score(swapped).ravel()) > 0.99
    assert auroc(shared.score(fresh).ravel(), shared.score(swapped).ravel()) == 0.5


def test_position_gaussian_round_trips_through_arrays() -> None:
    detector, fresh = PositionGaussian().fit(maps(0)), maps(1, 5)
    again = PositionGaussian.from_arrays(detector.arrays())
    np.testing.assert_array_equal(again.score(fresh), detector.score(fresh))
    np.testing.assert_array_equal(again.score(torch.from_numpy(fresh)), detector.score(fresh))
    with pytest.raises(NotFittedError):
        PositionGaussian().score(fresh)
    with pytest.raises(ValueError, match=r"maps of \(2, 3\) positions, got \(3, 2\)"):
        detector.score(np.moveaxis(fresh, 1, 2))


class NearestMean:
    """What pytorch-ood's detectors of features look like; strict about what it is given."""

    def fit_features(self, z: torch.Tensor, y: torch.Tensor) -> "NearestMean":
        assert z.dtype == torch.float32
        assert z.ndim == 2
        assert y.shape == (len(z),)
        assert set(y.tolist()) == set(range(int(y.max()) + 1))
        self.means = torch.stack([z[y == k].mean(0) for k in range(int(y.max()) + 1)])
        return self

    def predict_features(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cdist(z, self.means).amin(1)


@pytest.mark.parametrize("groups", [None, np.array([7, -2, 7, 5])])
def test_adapted_detector_scores_every_position(groups: np.ndarray | None) -> None:
    rows = np.diag([1.0, 2.0, 3.0, 4.0])
    adapted = PytorchOod(NearestMean())
    with pytest.raises(NotFittedError):
        adapted.score(rows)
    adapted.fit(rows, groups)
    centres = rows.mean(axis=0)[None] if groups is None else np.stack([
        rows[[0, 2]].mean(axis=0), rows[1], rows[3]
    ])  # fmt: skip
    fresh = np.random.default_rng(0).normal(size=(2, 3, 4))
    expected = np.linalg.norm(fresh[:, :, None] - centres, axis=-1).min(axis=-1)
    np.testing.assert_allclose(adapted.score(fresh), expected, rtol=1e-5)
    tensor = adapted.score(torch.from_numpy(fresh))
    np.testing.assert_array_equal(tensor.numpy(), adapted.score(fresh))
    with pytest.raises(ValueError, match="must have 4 numbers per row, got 3"):
        adapted.score(fresh[..., :3])
    with pytest.raises(ValueError, match="NaN or infinite"):
        adapted.score(np.full((1, 4), np.nan))


def test_adapted_detector_must_score_every_row() -> None:
    class Broken(NearestMean):
        def predict_features(self, z: torch.Tensor) -> torch.Tensor:
            return z.mean()

    adapted = PytorchOod(Broken()).fit(np.eye(3))
    with pytest.raises(ValueError, match=r"one score per row, got \(\) for 3 rows"):
        adapted.score(np.eye(3))


def test_every_row_needs_a_group() -> None:
    with pytest.raises(ValueError, match="the group of every row, got 2 for 3 rows"):
        group_index(np.arange(2), torch.eye(3).double())


@pytest.fixture
def pytorch_ood(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """pytorch-ood's detectors, past its `__init__`: that asks for torchvision, they do not."""
    spec = importlib.util.find_spec("pytorch_ood")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("pytorch-ood is not installed")
    package = ModuleType("pytorch_ood")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "pytorch_ood", package)
    return importlib.import_module("pytorch_ood.detector")


@pytest.mark.parametrize("k", [1, 10])
def test_neighbours_are_pytorch_oods(pytorch_ood: ModuleType, k: int) -> None:
    rows, fresh = familiar(0)[0], strange(1, 50).reshape(5, 10, DIM)
    theirs = PytorchOod(pytorch_ood.KNN(None, k=k)).fit(rows)
    ours = NearestNeighbours(k=k).fit(rows)
    np.testing.assert_allclose(theirs.score(fresh), ours.score(fresh), atol=1e-5)


def test_distances_are_pytorch_oods(
    pytorch_ood: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs sum over the n rows and add no ridge; shrinkage moves 20,000 rows by 2% at most."""
    monkeypatch.setattr("worldmodel.monitors.channels.ood_detectors.RIDGE", 0.0)
    rng, n = np.random.default_rng(0), 20_000
    groups = rng.integers(4, size=n)
    rows = np.random.default_rng(1).normal(size=(4, DIM))[groups] + rng.normal(size=(n, DIM))
    fresh = 2 * rng.normal(size=(200, DIM))
    theirs = PytorchOod(pytorch_ood.Mahalanobis(None)).fit(rows).score(fresh)
    squared = Mahalanobis().fit(rows).score(fresh) ** 2
    np.testing.assert_allclose(squared, 2 * theirs * n / DIM, rtol=0.01)
    theirs = PytorchOod(pytorch_ood.RMD(None)).fit(rows, groups + 3).score(fresh) * n / DIM
    ours = RelativeMahalanobis().fit(rows, groups).score(fresh)
    np.testing.assert_allclose(squared + ours, squared + theirs, rtol=0.03)  # to the nearest group
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99


@pytest.mark.parametrize("name", ["KNN", "Mahalanobis", "RMD", "GMM"])
def test_the_adapter_changes_no_score_of_pytorch_ood(pytorch_ood: ModuleType, name: str) -> None:
    rows, groups = familiar(0)
    z, y = torch.from_numpy(rows).float(), torch.from_numpy(groups)
    fresh = strange(1, 20)
    kind = getattr(pytorch_ood, name)
    direct = kind(None).fit_features(z, y).predict_features(torch.from_numpy(fresh).float())
    adapted = PytorchOod(kind(None)).fit(rows, groups).score(fresh)
    np.testing.assert_array_equal(adapted, direct.double().numpy())
