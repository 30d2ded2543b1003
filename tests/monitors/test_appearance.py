"""Appearance channel against scikit-learn and SciPy, and changes it must detect."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from worldmodel.monitors.channels.appearance import AppearanceChannel, region_score
from worldmodel.monitors.channels.gaussian import RIDGE, fit_whitening, ledoit_wolf
from worldmodel.monitors.channels.subsampling import distance_sample
from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.metrics.detection import auroc


def frames(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated pooled features in mixed units, and positions [4, 4, 3]."""
    mixing = np.random.default_rng(99).normal(size=(6, 6))
    pooled = rng.normal(size=(n, 6)) @ mixing * [1, 10, 100, 1, 1, 0.01]
    return pooled.astype(np.float32), rng.normal(size=(n, 4, 4, 3)).astype(np.float32)


def fitted(n: int = 300) -> AppearanceChannel:
    return AppearanceChannel().fit(*frames(np.random.default_rng(0), n))


@pytest.mark.parametrize(("n", "d"), [(5, 20), (50, 20), (1000, 4)])
def test_shrunk_covariance_is_scikit_learns(n: int, d: int) -> None:
    samples = np.random.default_rng(n).normal(size=(n, d)) @ np.diag(np.arange(1.0, d + 1))
    np.testing.assert_allclose(
        ledoit_wolf(samples), LedoitWolf().fit(samples).covariance_, rtol=1e-9
    )


def test_whitening_removes_the_covariance_in_any_units() -> None:
    pooled, _ = frames(np.random.default_rng(1), 5000)
    mean, whitener = fit_whitening(pooled)
    whitened = (pooled - mean) @ whitener.T
    # The ridge shortens the narrowest direction by a fifth; 5000 samples add 0.03.
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(6), atol=0.25)
    rescaled = fit_whitening(pooled * 1000.0)[1]
    np.testing.assert_allclose(rescaled * 1000.0, whitener, rtol=1e-4, atol=1e-9)


def test_score_is_the_mahalanobis_distance() -> None:
    pooled, positions = frames(np.random.default_rng(0), 300)
    channel = AppearanceChannel().fit(pooled, positions)
    fresh, _ = frames(np.random.default_rng(2), 20)
    mean, scale = pooled.mean(axis=0, dtype=float), pooled.std(axis=0, dtype=float)
    covariance = LedoitWolf().fit((pooled - mean) / scale).covariance_ + RIDGE * np.eye(6)
    expected = cdist(
        (fresh - mean) / scale, np.zeros((1, 6)), "mahalanobis", VI=np.linalg.inv(covariance)
    )
    np.testing.assert_allclose(channel.score(fresh), expected[:, 0] / np.sqrt(6), rtol=1e-4)


def test_effects_of_nuisances_add_their_second_moments_to_the_covariance() -> None:
    pooled, positions = frames(np.random.default_rng(0), 300)
    rng = np.random.default_rng(1)
    effects = [rng.normal(2, 1, (50, 6)) * pooled.std(axis=0), rng.normal(0, 1, (80, 6))]
    channel = AppearanceChannel().fit(pooled, positions, effects)
    mean, scale = pooled.mean(axis=0, dtype=float), pooled.std(axis=0, dtype=float)
    covariance = LedoitWolf().fit((pooled - mean) / scale).covariance_ + RIDGE * np.eye(6)
    for effect in effects:
        covariance += np.mean([np.outer(row, row) for row in effect / scale], axis=0)
    fresh, _ = frames(np.random.default_rng(2), 20)
    rows = (fresh - mean) / scale
    expected = cdist(rows, np.zeros((1, 6)), "mahalanobis", VI=np.linalg.inv(covariance))
    np.testing.assert_allclose(channel.score(fresh), expected[:, 0] / np.sqrt(6), rtol=1e-4)


def test_familiar_frames_score_about_one() -> None:
    assert fitted().score(frames(np.random.default_rng(3), 300)[0]).mean() == pytest.approx(
        1, abs=0.1
    )


def test_position_score_is_the_distance_to_the_nearest_reference_position() -> None:
    _, positions = frames(np.random.default_rng(0), 300)
    _, fresh = frames(np.random.default_rng(4), 3)
    mean, whitener = fit_whitening(positions.reshape(-1, 3))
    distances = cdist(
        (fresh.reshape(-1, 3) - mean) @ whitener.T, (positions.reshape(-1, 3) - mean) @ whitener.T
    )
    expected = distances.min(axis=1).reshape(3, 4, 4) / np.sqrt(3)
    np.testing.assert_allclose(fitted().position_scores(fresh), expected, atol=1e-6)


def test_novelty_is_localised() -> None:
    _, fresh = frames(np.random.default_rng(5), 10)
    fresh[:, 1, 2] += 8.0
    scores = fitted().position_scores(fresh)
    assert (scores.reshape(10, -1).argmax(axis=1) == 1 * 4 + 2).all()


def test_joint_shift_within_marginal_ranges_is_detected() -> None:
    """Features that always agree: only a distance that knows the correlation sees them differ."""
    rng = np.random.default_rng(6)
    both = rng.normal(size=(400, 1)) + rng.normal(0, 0.05, (400, 2))
    odd = np.column_stack([both[:100, 0], -both[:100, 1]])
    channel = AppearanceChannel().fit(both[100:].astype(np.float32), np.zeros((300, 1, 1, 1)))
    assert auroc(channel.score(both[:100]), channel.score(odd)) > 0.9


def test_constant_feature_is_safe_and_still_detects_a_change() -> None:
    pooled, positions = frames(np.random.default_rng(7), 50)
    pooled[:, 0] = 5.0
    channel = AppearanceChannel().fit(pooled, positions)
    changed = pooled.copy()
    changed[:, 0] = 9.0
    assert np.isfinite(channel.score(pooled)).all()
    assert channel.score(changed).min() > channel.score(pooled).max()


def test_batch_equals_frame_by_frame() -> None:
    channel, (pooled, positions) = fitted(), frames(np.random.default_rng(8), 7)
    np.testing.assert_allclose(
        channel.score(pooled), [channel.score(pooled[i : i + 1])[0] for i in range(7)]
    )
    each = [channel.position_scores(positions[i : i + 1])[0] for i in range(7)]
    np.testing.assert_allclose(channel.position_scores(positions), each)


def test_coreset_keeps_rare_points() -> None:
    """20,000 points of one blob and 5 far away: 80 drawn evenly hold one of them in 2% of draws."""
    rng = np.random.default_rng(9)
    points = np.concatenate([rng.normal(size=(20_000, 3)), np.full((5, 3), 30.0)])
    sample = distance_sample(points, 80, rng=rng)
    assert len(sample) <= 80
    assert (sample[:, 0] == 30.0).any()


def test_coreset_handles_duplicates() -> None:
    points = np.repeat(np.eye(3), 50, axis=0)
    sample = distance_sample(points, 16, rng=np.random.default_rng(0))
    assert {tuple(p) for p in sample} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_region_is_the_worst_eighth() -> None:
    scores = np.zeros((1, 4, 4))
    scores[0, 0, :2] = [1.0, 4.0]
    scores[0, 3, 3] = 0.5
    assert region_score(scores) == pytest.approx(2.5)


def test_region_lies_within_one_view() -> None:
    scores = np.zeros((1, 2, 4, 4))
    scores[0, :, 0, 0] = 3.0, 4.0
    scores[0, 0, 1, 1] = 3.0
    assert region_score(scores) == pytest.approx(3.0)


def test_arrays_restore_the_channel() -> None:
    channel, (pooled, positions) = fitted(), frames(np.random.default_rng(10), 5)
    restored = AppearanceChannel.from_arrays(channel.arrays())
    np.testing.assert_array_equal(restored.score(pooled), channel.score(pooled))
    np.testing.assert_array_equal(
        restored.position_scores(positions), channel.position_scores(positions)
    )


def test_wrong_features_are_refused() -> None:
    channel, (pooled, positions) = fitted(), frames(np.random.default_rng(11), 2)
    with pytest.raises(
        ValueError, match=r"`pooled` must have the shape \(6,\) per frame, got \(5,\)"
    ):
        channel.score(pooled[:, :5])
    with pytest.raises(ValueError, match=r"`positions` must have the shape \(4, 4, 3\) per frame"):
        channel.position_scores(positions[:, :3])
    pooled[0, 0] = np.nan
    with pytest.raises(ValueError, match="holds NaN or infinite features"):
        channel.score(pooled)
    with pytest.raises(ValueError, match="one row per reference frame and at least 2 frames"):
        AppearanceChannel().fit(pooled[:1], positions[:1])
    with pytest.raises(NotFittedError, match="AppearanceChannel is not fitted"):
        AppearanceChannel().score(pooled)
