"""Confidence channel: standardised per horizon, by low share and worst region."""

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from worldmodel.monitors.channels.confidence import (
    ConfidenceChannel,
    low_confidence_share,
    worst_region,
)
from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.metrics.detection import auroc


def nominal(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps [2, 6, 6] whose mean confidence falls from 0.9 at horizon 1 to 0.6 at horizon 16."""
    horizon = rng.integers(1, 17, n)
    level = 0.92 - 0.02 * horizon + rng.normal(0, 0.02, n)
    noise = rng.normal(0, 0.05, (n, 2, 6, 6))
    return (level[:, None, None, None] + noise).clip(0, 1), horizon


def test_signals_of_a_hand_written_map() -> None:
    confidence = np.full((1, 4, 4), 0.9)
    confidence[0, 1:3, 1:3] = [[0.1, 0.2], [0.3, 0.4]]
    assert low_confidence_share(confidence, 0.35) == pytest.approx(3 / 16)
    assert worst_region(confidence, 2) == pytest.approx(0.25)
    assert worst_region(confidence, 9) == pytest.approx(confidence.mean())


def test_worst_region_is_the_lowest_box_mean() -> None:
    confidence = np.random.default_rng(0).random((3, 2, 7, 9))
    boxes = [uniform_filter(c.mean(axis=0), 3)[1:-1, 1:-1].min() for c in confidence]
    np.testing.assert_allclose(worst_region(confidence, 3), boxes, atol=1e-12)


def test_a_region_does_not_span_two_views() -> None:
    views = np.ones((1, 2, 1, 2, 2))
    views[0, 0, 0, :, 1] = views[0, 1, 0, :, 0] = 0.0
    assert worst_region(views, 2) == pytest.approx(0.5)


def test_low_confidence_scores_low_at_horizons_where_it_is_usual() -> None:
    rng = np.random.default_rng(1)
    channel = ConfidenceChannel(threshold=0.7).fit(*nominal(rng, 2000))
    maps, horizon = nominal(rng, 1000)
    scores = channel.score(maps, horizon)
    early, late = scores[horizon <= 4], scores[horizon >= 13]
    assert abs(early.mean() - late.mean()) < 0.5
    assert channel.score(maps[horizon == 16], np.full((horizon == 16).sum(), 1)).min() > 3


def test_uniform_and_local_loss_of_confidence_are_detected() -> None:
    rng = np.random.default_rng(2)
    channel = ConfidenceChannel().fit(*nominal(rng, 2000))
    maps, horizon = nominal(rng, 300)
    usual = channel.score(maps, horizon)
    local = maps.copy()
    local[:, :, 2:5, 2:5] -= 0.3
    assert auroc(usual, channel.score((maps - 0.15).clip(0, 1), horizon)) > 0.97
    assert auroc(usual, channel.score(local.clip(0, 1), horizon)) > 0.97
    assert auroc(usual, channel.score((maps + 0.05).clip(0, 1), horizon)) < 0.3


def test_scale_is_interpolated_between_horizons_and_constant_beyond() -> None:
    confidence = np.stack([np.full((4, 4), level) for level in (0.9, 0.5)])
    channel = ConfidenceChannel(threshold=0.2).fit(confidence, np.array([1, 5]))
    probe = np.full((1, 4, 4), 0.6)
    # Usual at horizon 3 is 0.7; the smallest spread is 0.01.
    assert channel.score(probe, np.array([3])) == pytest.approx(10.0)
    assert channel.score(probe, np.array([9])) == channel.score(probe, np.array([5]))


def test_arrays_restore_the_channel() -> None:
    rng = np.random.default_rng(3)
    channel = ConfidenceChannel(threshold=0.6, region=2).fit(*nominal(rng, 200))
    restored = ConfidenceChannel.from_arrays(channel.arrays(), threshold=0.6, region=2)
    maps, horizon = nominal(rng, 50)
    np.testing.assert_array_equal(restored.score(maps, horizon), channel.score(maps, horizon))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`threshold` must lie in \(0, 1\)"):
        ConfidenceChannel(threshold=1.0)
    with pytest.raises(ValueError, match="one `horizon` of 1 or more per map"):
        ConfidenceChannel().fit(np.ones((2, 3, 3)), np.array([0, 1]))
    with pytest.raises(NotFittedError, match="ConfidenceChannel is not fitted"):
        ConfidenceChannel().score(np.ones((1, 3, 3)), np.array([1]))
    channel = ConfidenceChannel().fit(np.ones((2, 3, 3)), np.array([1, 1]))
    with pytest.raises(ValueError, match="`confidence` must hold probabilities"):
        channel.score(np.full((1, 3, 3), np.nan), np.array([1]))
    with pytest.raises(ValueError, match=r"`confidence` must be \[h, w\], \[channel, h, w\] or"):
        channel.score(np.ones((1, 3)), np.array([1]))
