"""Surprise channel: ratio 1 for correct predictions, higher otherwise, standardised per horizon."""

import numpy as np
import pytest
from scipy.stats import halfnorm

from worldmodel.monitors.channels.surprise import LARGEST_RATIO, SurpriseChannel, error_ratio

EPSILONS = np.linspace(0.1, 3.0, 30)


def claimed(scale: np.ndarray) -> np.ndarray:
    """P(error <= epsilon) of half-normal errors."""
    return halfnorm.cdf(EPSILONS / scale[..., None])


def test_ratio_averages_one_for_correct_predictions() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.2, 0.6, 200_000)
    ratio = error_ratio(scale * halfnorm.rvs(size=len(scale), random_state=rng), claimed(scale),
                        EPSILONS)  # fmt: skip
    assert ratio.mean() == pytest.approx(1, abs=0.04)  # the floor takes a few percent
    assert error_ratio(np.array([0.8]), claimed(np.array([0.2])), EPSILONS)[0] > 4


def test_ratio_does_not_saturate_beyond_the_largest_epsilon() -> None:
    narrow = np.array([[0.5, 0.9, 1.0]])
    levels = np.array([0.1, 0.2, 0.3])
    low, high = (error_ratio(np.array([error]), narrow, levels)[0] for error in (1.0, 5.0))
    assert high == pytest.approx(5 * low)


def test_expected_error_of_zero_gives_a_finite_ratio() -> None:
    certain = np.ones((3, len(EPSILONS)))
    ratio = error_ratio(np.array([0.0, 1e9, np.inf]), certain, EPSILONS)
    assert ratio.tolist() == [0, LARGEST_RATIO, LARGEST_RATIO]


def nominal(rng: np.random.Generator, horizon: np.ndarray) -> np.ndarray:
    """Ratios that grow with the horizon, [n, view, channel, h, w]."""
    spread = 1 + 0.1 * horizon[:, None, None, None, None]
    return spread * rng.uniform(0.5, 1.5, (len(horizon), 1, 2, 4, 4))


@pytest.fixture(scope="module")
def channel() -> SurpriseChannel:
    rng = np.random.default_rng(1)
    horizon = rng.integers(1, 9, 800)
    return SurpriseChannel().fit(nominal(rng, horizon), horizon)


def test_scores_are_standard_at_every_horizon(channel: SurpriseChannel) -> None:
    rng = np.random.default_rng(2)
    for h in (1, 4, 8):
        horizon = np.full(400, h)
        score = channel.score(nominal(rng, horizon), horizon)
        assert abs(score.mean()) < 0.25
        assert 0.7 < score.std() < 1.4


def test_small_region_of_errors_is_detected(channel: SurpriseChannel) -> None:
    rng = np.random.default_rng(3)
    horizon = np.full(50, 4)
    ratio = nominal(rng, horizon)
    ratio[..., :1, :2] += 3
    assert (channel.score(ratio, horizon) > 4).all()


def test_saved_and_loaded_scores_are_equal(channel: SurpriseChannel) -> None:
    rng = np.random.default_rng(4)
    horizon = rng.integers(1, 12, 40)
    ratio = nominal(rng, horizon)
    again = SurpriseChannel.from_arrays(channel.arrays())
    assert np.array_equal(again.score(ratio, horizon), channel.score(ratio, horizon))


def test_broken_ratios_are_refused(channel: SurpriseChannel) -> None:
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="`ratio` must hold finite numbers of 0 or more"):
            channel.score(np.full((1, 1, 2, 4, 4), bad), np.array([1]))
    with pytest.raises(ValueError, match="one `horizon` of 1 or more per map"):
        SurpriseChannel().fit(np.ones((2, 4, 4)), np.array([0, 1]))
