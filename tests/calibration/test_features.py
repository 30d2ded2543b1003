"""Features for the appearance channel, from the tokenizer."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from worldmodel.calibration.features import PROJECTED, FrameFeatures, project
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Level


def film(seed: int, *, time: int = 5, views: int = 1) -> torch.Tensor:
    random = np.random.default_rng(seed)
    grey = random.integers(80, 110, (time, views, 16, 16, 3), dtype=np.uint8)
    grey[:, :, 4:9, 6:11] = (200, 60, 30)
    return torch.from_numpy(grey)


@pytest.mark.parametrize(("views", "patch"), [(1, 1), (2, 1), (1, 2)])
def test_every_latent_position_of_every_view_has_features(
    views: int, patch: int, make_model: Callable[..., WorldModel]
) -> None:
    features = FrameFeatures(make_model(views=views, patch=patch))
    pooled, positions = features.of_episode(film(0, views=views))
    assert positions.shape[:4] == (5, views, 4, 4)
    assert pooled.shape == (5, 2 * views * positions.shape[-1])
    assert np.isfinite(pooled).all()
    assert positions.std() > 0


def test_a_frame_is_looked_at_alone(make_model: Callable[..., WorldModel]) -> None:
    features, frames = FrameFeatures(make_model()), film(1)
    pooled, positions = features.of_episode(frames, chunk=2)
    for t, frame in enumerate(frames.numpy()):
        alone = features(frame)
        np.testing.assert_allclose(alone[0], pooled[t], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(alone[1], positions[t], rtol=1e-3, atol=1e-5)


def test_its_name_tells_tokenizers_apart(make_model: Callable[..., WorldModel]) -> None:
    model = make_model()
    before = FrameFeatures(model).name
    with torch.no_grad():
        model.dynamics.final_modulation.bias.add_(1)  # type: ignore[union-attr, operator]
    assert FrameFeatures(model).name == before
    with torch.no_grad():
        next(model.tokenizer.parameters()).add_(1)
    assert FrameFeatures(model).name != before


def test_many_features_become_few_the_same_way_every_time() -> None:
    rows = torch.randn((50, 100), generator=torch.Generator().manual_seed(0))
    few = project(rows)
    assert few.shape == (50, PROJECTED)
    assert torch.equal(project(rows), few)
    far, near = torch.cdist(few, few), torch.cdist(rows, rows)
    ratio = (far / near)[near > 0]
    assert 0.8 < ratio.mean() < 1.2
    assert torch.equal(project(rows[:, :PROJECTED]), rows[:, :PROJECTED])


def test_a_monitor_finds_what_is_strange_to_them(make_model: Callable[..., WorldModel]) -> None:
    features = FrameFeatures(make_model())
    signals = []
    for seed in range(24):
        pooled, positions = features.of_episode(film(seed))
        signals.append(EpisodeSignals(pooled=pooled, positions=positions))
    monitor = RuntimeMonitor(MonitorConfig.for_episodes(12), features=features)
    monitor.fit(signals[::2], frame_shape=(1, 16, 16, 3), reference=signals[1::2])
    strange = film(99).numpy()
    strange[:, :, :, :8] = (10, 240, 250)
    for frame in strange[1:]:  # twice the same frame would be a frozen camera
        verdict = monitor.update(frame, None)
    assert verdict.level > Level.TRUST
    assert not any(cause.startswith(("monitor", "sensor")) for cause in verdict.causes)
