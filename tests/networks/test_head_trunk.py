import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA
from torch import Generator, Tensor

from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig
from worldmodel.networks.confidence_heads import (
    RULES,
    ConfidenceConfig,
    Familiarity,
    Head,
    build_head,
)

HORIZON = torch.tensor([1.0, 7.0])
EPSILON = torch.tensor([0.1, 0.5, 1.0])
EVERY = [ConfidenceConfig(head=head, rule="brier", hidden=16) for head in RULES]
TRUNK = [
    f"trunk.{name}.{kind}"
    for name in ("norm", "token", "frame", "horizon", "mix.1")
    for kind in ("weight", "bias")
]


def draw(seed: int, *shape: int, dim: int = 8) -> Tensor:
    """Gaussian features with a different mean and standard deviation per axis."""
    normal = torch.randn((*shape, dim), generator=Generator().manual_seed(seed))
    return normal * torch.linspace(0.2, 3, dim) + torch.linspace(-1, 5, dim)


def familiar_head(config: ConfidenceConfig) -> Head:
    torch.manual_seed(0)
    head = build_head(8, 3, replace(config, familiarity=True))
    head.fit_familiarity(draw(0, 100, 5))
    return head.eval()


def standardised(distances: np.ndarray, training: np.ndarray) -> np.ndarray:
    logs, seen = np.log(distances), np.log(training)
    return (logs - seen.mean()) / seen.std()


def test_distance_equals_scipy_mahalanobis() -> None:
    """With 8 axes, all directions are kept and the distance from their span is zero."""
    training, new = draw(0, 400), draw(1, 20) * 1.5
    mean, inverse = training.mean(0), np.linalg.inv(np.cov(training.T.numpy()))
    seen, ahead = (
        np.array([mahalanobis(row, mean, inverse) for row in rows]) for rows in (training, new)
    )
    found = Familiarity(8).fit(training)(new)
    np.testing.assert_allclose(found[:, 0], standardised(ahead, seen), atol=1e-3)
    assert found[:, 1].abs().max() < 0.1


def test_distances_equal_those_of_scikit_learn_pca() -> None:
    """40 axes, so 8 directions are outside the span; against scikit-learn, n = 600.

    The constant inside the logarithm changes the second number by up to 0.015.
    """
    training, new = draw(0, 600, dim=40), draw(1, 20, dim=40) * 1.2
    principal = PCA(32, whiten=True, svd_solver="full").fit(training.double())

    def distances(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        inside = principal.transform(rows.double())
        outside = rows.numpy() - principal.inverse_transform(inside)
        return np.linalg.norm(inside, axis=1), np.linalg.norm(outside, axis=1)

    familiarity = Familiarity(40).fit(training)
    found, expected = familiarity(new), zip(distances(new), distances(training), strict=True)
    for column, (ahead, seen) in enumerate(expected):
        np.testing.assert_allclose(found[:, column], standardised(ahead, seen), atol=3e-2)
    again = familiarity(training)
    torch.testing.assert_close(again.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(again.std(0), torch.ones(2), atol=1e-2, rtol=0)


def test_familiarity_grows_with_distance_and_is_clamped() -> None:
    training = draw(0, 600, dim=40)
    familiarity = Familiarity(40).fit(training)
    centre, away = training.mean(0), draw(1, 1, dim=40) - training.mean(0)
    found = torch.stack([familiarity(centre + factor * away)[0] for factor in (1, 2, 4, 8, 1e9)])
    assert (found.diff(dim=0)[:2] > 0).all()
    assert torch.equal(found[-1], torch.full((2,), 10.0))


def test_a_fit_forgets_the_one_before() -> None:
    twice = Familiarity(8).fit(draw(0, 50)).fit(draw(1, 60, 2))
    once = Familiarity(8).fit(draw(1, 60, 2))
    for name, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], value)


@pytest.mark.parametrize(
    "training",
    [
        torch.ones(10, 8),
        torch.zeros(1, 8),
        draw(0, 3),
        draw(0, 1),
        torch.cat((draw(0, 50)[:, :4], torch.ones(50, 4)), dim=1),
        1e12 * draw(0, 50),
        1e-12 * draw(0, 50),
    ],
    ids=["constant", "zero", "few", "one", "half constant", "huge", "tiny"],
)
def test_familiarity_is_finite_for_degenerate_training_features(training: Tensor) -> None:
    familiarity = Familiarity(8).fit(training)
    new = torch.stack((training[0], torch.zeros(8), torch.full((8,), 1e30), -draw(2, 1)[0]))
    for found in (familiarity(new), familiarity(training)):
        assert found.isfinite().all()
        assert found.abs().max() <= 10


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c.head)
@torch.no_grad()
def test_only_a_head_with_familiarity_sees_how_large_features_are(config: ConfidenceConfig) -> None:
    """The trunk has a layer norm, so it is invariant to the scale of the features."""
    torch.manual_seed(0)
    plain, features = build_head(8, 3, config), draw(1, 2, 5)
    stated = [plain.confidence(x, HORIZON, EPSILON) for x in (features, 3 * features)]
    torch.testing.assert_close(*stated, atol=1e-3, rtol=0)
    head = familiar_head(config)
    stated = [head.confidence(x, HORIZON, EPSILON) for x in (features, 3 * features)]
    assert (stated[0] - stated[1]).abs().amax(-1).min() > 1e-3
    assert ((stated[1] >= 0) & (stated[1] <= 1)).all()


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c.head)
def test_training_with_familiarity_reaches_every_weight_and_no_buffer(
    config: ConfidenceConfig,
) -> None:
    head = familiar_head(config)
    features, error = draw(1, 2, 5).requires_grad_(), torch.rand(2, 5, 3)
    before = {name: value.clone() for name, value in head.named_buffers()}
    head.loss(features, HORIZON, error, generator=Generator().manual_seed(0)).backward()
    assert features.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c.head)
def test_without_familiarity_a_head_is_its_trunk_and_output(config: ConfidenceConfig) -> None:
    own = ["levels"] if config.head == "distribution" else []
    names = list(build_head(8, 3, config).state_dict())
    assert names == [*own, *TRUNK, "out.weight", "out.bias"]


def test_familiarity_must_be_on_and_fitted() -> None:
    message = "`familiarity` must be true in the head's config, got False."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build_head(8, 3, EVERY[0]).fit_familiarity(draw(0, 3, 5))
    head = build_head(8, 3, replace(EVERY[0], familiarity=True))
    message = (
        "A head with `familiarity` must be fitted to training features: call `fit_familiarity` "
        "first."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        head.confidence(draw(0, 2, 5), HORIZON, EPSILON)


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c.head)
@torch.no_grad()
def test_a_stored_head_gives_the_same_confidence(
    make_model: Callable[..., WorldModel], tmp_path: Path, config: ConfidenceConfig
) -> None:
    small = make_model()
    confidence = replace(config, familiarity=True, scales=(0.1, 0.5, 1.0))
    model = WorldModel(replace(small.config, confidence=confidence), small.tokenizer).eval()
    assert model.confidence is not None
    model.confidence.fit_familiarity(draw(0, 30, 16, dim=16))
    model.save(tmp_path / "model")
    loaded = WorldModel.load(tmp_path / "model")
    assert loaded.confidence is not None
    assert loaded.config == model.config
    features = draw(1, 2, 16, dim=16)
    assert torch.equal(
        loaded.confidence.confidence(features, HORIZON, EPSILON),
        model.confidence.confidence(features, HORIZON, EPSILON),
    )


def test_a_config_stored_before_there_were_scales_still_loads(
    make_model: Callable[..., WorldModel],
) -> None:
    config = make_model().config
    stored = json.loads(json.dumps(config.as_dict()))
    for name in ("scales", "familiarity"):
        del stored["confidence"][name]
    assert ModelConfig.from_dict(stored) == config
