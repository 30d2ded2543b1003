"""Event forecasts of regions, frames and rollouts: each is calibrated for its own event."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.stats import expon, norm

from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.reliability.event_table import SubpatchMeans, evaluate_events
from worldmodel.monitors.reliability.events import (
    EventConfidence,
    expected_error,
    random_boxes,
    region_mean,
    rollout_max,
    whole_frame,
)

EPSILONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
HORIZON = np.array([0, 1, 2, 3, 4, 1, 2, 3, 4])


@dataclass(frozen=True)
class Episode:
    confidence: np.ndarray
    error: np.ndarray
    horizon: np.ndarray
    view_valid: np.ndarray | None = None


def episode(rng: np.random.Generator, *, views: int = 1) -> Episode:
    """Subpatches stated rightly, each on its own; frames of an episode err more or less together.

    Errors are half-normal; their scale grows with the horizon, differs between positions, and has a
    hidden factor per episode (log-sd 0.3) that the forecaster does not see.
    """
    shape = (len(HORIZON), views, 2, 4, 4)
    scale = (
        0.1 * np.sqrt(1 + HORIZON[:, None, None, None, None]) * np.exp(rng.normal(0, 0.4, shape))
    )
    hidden = np.exp(rng.normal(0, 0.3))
    error = np.abs(rng.normal(0, 1, shape)) * scale * hidden
    nodes = np.exp(0.3 * norm.ppf((np.arange(40) + 0.5) / 40))
    bounds = np.array(EPSILONS) / (scale[..., None, None] * nodes[:, None])
    confidence = (2 * norm.cdf(bounds) - 1).mean(axis=-2)
    return Episode(confidence.astype(np.float32), error, HORIZON)


def episodes(seed: int, count: int, *, views: int = 1) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [episode(rng, views=views) for _ in range(count)]


@pytest.fixture(scope="module")
def fitted() -> EventConfidence:
    return EventConfidence(EPSILONS).fit(episodes(0, 100), rng=np.random.default_rng(0))


def test_expected_error_is_the_mean_of_the_forecast_distribution() -> None:
    """Exponential errors in fine levels: E[min(error, 5)] has a closed form."""
    levels = np.linspace(0.01, 5, 500).tolist()
    scale = np.array([[0.2], [1.0]])
    expected = (scale * expon.cdf(5 / scale)).ravel()
    stated = expected_error(expon.cdf(np.array(levels) / scale), levels)
    np.testing.assert_allclose(stated, expected, atol=1e-3)


def test_a_region_is_the_mean_of_its_own_positions() -> None:
    values = np.random.default_rng(1).random((3, 2, 4, 5, 6))
    mask = np.zeros((1, 2, 5, 6), dtype=bool)
    mask[0, 1, 2:4, 1:5] = True
    expected = values[:, 1, :, 2:4, 1:5].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(region_mean(values, mask), expected)
    whole = region_mean(values, whole_frame(values.shape))
    np.testing.assert_allclose(whole, values.mean(axis=(1, 2, 3, 4)))
    assert np.isnan(region_mean(values, np.zeros((1, 2, 5, 6), dtype=bool))).all()


def test_random_boxes_have_their_shape_and_reach_everywhere() -> None:
    frame = whole_frame((400, 2, 3, 5, 4))
    boxes = random_boxes(np.random.default_rng(2), [(2, 3)], frame)
    np.testing.assert_array_equal(boxes.sum(axis=(1, 2, 3)), 6)
    rows, columns = boxes.any(axis=(1, 3)).sum(axis=1), boxes.any(axis=(1, 2)).sum(axis=1)
    assert set(rows) == {2}
    assert set(columns) == {3}
    assert boxes.any(axis=0).all()


def test_event_confidence_is_calibrated_and_the_subpatch_mean_is_not(
    fitted: EventConfidence,
) -> None:
    """100 episodes to learn from and 60 others, where chance alone leaves about 0.02."""
    fresh = {str(i): e for i, e in enumerate(episodes(1, 60))}
    rows = evaluate_events(fitted, fresh, rng=np.random.default_rng(2), steps=(4,))
    assert set(rows) == {
        "region 2x2", "region 4x4", "region 4x2", "frame", "rollout of 4",
    }  # fmt: skip
    means = evaluate_events(
        SubpatchMeans(EPSILONS), fresh, rng=np.random.default_rng(2), steps=(4,)
    )
    for event, row in rows.items():
        assert row.num_episodes == 60
        assert row.ece < 0.04, event
        assert row.ece_interval[0] <= row.ece <= row.ece_interval[1] + 0.01
        assert row.brier_skill > means[event].brier_skill
        assert means[event].ece > row.ece + 0.03, event
    assert rows["frame"].num_forecasts == 60 * 8 * len(EPSILONS)
    assert rows["rollout of 4"].num_forecasts == 60 * 2 * len(EPSILONS)


def test_larger_regions_have_sharper_forecasts(fitted: EventConfidence) -> None:
    """At twice the expected error, a mean of many is within; one half-normal often is not."""
    one = episode(np.random.default_rng(3))
    even = replace(
        one, confidence=np.broadcast_to(one.confidence[1, 0, 0, 0, 0], one.confidence.shape)
    )
    small, large = np.zeros((2, 1, 1, 4, 4), dtype=bool)
    small[..., 1, 1] = True
    large[...] = True
    bound = float(expected_error(even.confidence, EPSILONS)[1].mean()) * 2
    level = int(np.searchsorted(EPSILONS, bound))
    chances = [fitted.region(even.confidence, HORIZON, mask)[1, level] for mask in (small, large)]
    assert chances[0] < chances[1]


def test_confidence_is_a_distribution_over_epsilon(fitted: EventConfidence) -> None:
    for forecast in episodes(4, 3):
        for stated in (
            fitted.frame(forecast.confidence, HORIZON),
            fitted.rollout(forecast.confidence, HORIZON),
            fitted.region(forecast.confidence, HORIZON, np.ones((1, 1, 4, 4), dtype=bool)),
        ):
            assert (np.diff(stated, axis=1) >= 0).all()
            np.testing.assert_array_equal(stated[0], 1.0)  # a real frame is no forecast
            assert (stated[1:] > 0).all()  # 100 episodes rule nothing out
            assert (stated[1:] < 1).all()


def test_a_rollout_counts_from_its_own_start() -> None:
    errors = np.array([0.0, 0.4, 0.1, 0.5, 0.2, 0.1, 0.3, 0.2, 0.6])
    expected = [0.0, 0.4, 0.4, 0.5, 0.5, 0.1, 0.3, 0.3, 0.6]
    np.testing.assert_allclose(rollout_max(errors, HORIZON), expected)
    stated = np.random.default_rng(5).random((9, 1, 2, 4, 4, 3)).astype(np.float32)
    means = SubpatchMeans((0.1, 0.2, 0.3)).rollout(stated, HORIZON)
    np.testing.assert_allclose(means[4], stated[1:5].mean(axis=(0, 1, 2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(means[6], stated[5:7].mean(axis=(0, 1, 2, 3, 4)), rtol=1e-5)


def test_missing_cameras_are_ignored() -> None:
    """Whatever stands in its maps: neither where events are learned nor where they are stated."""
    there = np.tile([True, False], (len(HORIZON), 1))

    def spoiled(forecast: Episode, value: float) -> Episode:
        confidence, error = forecast.confidence.copy(), forecast.error.copy()
        confidence[:, 1], error[:, 1] = value, 9 * value
        return replace(forecast, confidence=confidence, error=error, view_valid=there)

    some = episodes(6, 25, views=2)
    results = []
    for value in (0.0, 1.0):
        events = EventConfidence(EPSILONS).fit(
            [spoiled(e, value) for e in some], rng=np.random.default_rng(0)
        )
        test = spoiled(some[0], value)
        results.append((events.arrays(), events.frame(test.confidence, HORIZON, there)))
    rows = evaluate_events(events, {"a": test}, rng=np.random.default_rng(1), steps=())
    assert rows["frame"].num_forecasts == 8 * len(EPSILONS)
    assert 0 < rows["region 2x2"].num_forecasts < 8 * len(EPSILONS)  # some boxes fell into it
    for name, array in results[0][0].items():
        np.testing.assert_array_equal(array, results[1][0][name])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_arrays_restore_everything(fitted: EventConfidence) -> None:
    restored = EventConfidence.from_arrays(fitted.arrays())
    forecast = episode(np.random.default_rng(7))
    mask = np.zeros((1, 1, 4, 4), dtype=bool)
    mask[..., :2, :3] = True
    for event in ("frame", "rollout"):
        expected = getattr(fitted, event)(forecast.confidence, HORIZON)
        np.testing.assert_array_equal(
            getattr(restored, event)(forecast.confidence, HORIZON), expected
        )
    np.testing.assert_array_equal(
        restored.region(forecast.confidence, HORIZON, mask),
        fitted.region(forecast.confidence, HORIZON, mask),
    )


def test_uninformative_forecast_gives_the_base_rates() -> None:
    """Confidence that never varies carries nothing: what is left is how often the event came."""
    flat = [replace(e, confidence=np.full_like(e.confidence, 0.5)) for e in episodes(8, 40)]
    events = EventConfidence(EPSILONS).fit(flat, rng=np.random.default_rng(0))
    errors = np.stack([region_mean(e.error, whole_frame(e.error.shape)) for e in flat])
    came_true = (errors[:, [2, 6], None] <= np.array(EPSILONS)).mean(axis=(0, 1))
    np.testing.assert_allclose(events.frame(flat[0].confidence, HORIZON)[2], came_true, atol=0.03)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="`forecasts` must hold at least 20 episodes, got 19"):
        EventConfidence(EPSILONS).fit(episodes(9, 19), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="`epsilons` must be positive and increasing"):
        EventConfidence((0.0, 0.5))
    with pytest.raises(NotFittedError, match="EventConfidence is not fitted"):
        EventConfidence(EPSILONS).frame(episode(np.random.default_rng(0)).confidence, HORIZON)
