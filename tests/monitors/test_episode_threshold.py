"""Episode threshold: its guarantee, by simulation."""

import numpy as np
import pytest
from jaxtyping import Float
from scipy.signal import lfilter

from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.guarantees.episode_threshold import (
    EpisodeThreshold,
    episodes_needed,
    smallest_alpha,
)


def maxima(
    rng: np.random.Generator, shape: tuple[int, ...], phi: float, shift: float = 0.0
) -> Float[np.ndarray, "*shape"]:
    """Largest score of episodes of 5 to 60 frames: AR(1) plus an offset of the episode."""
    steps = lfilter([np.sqrt(1 - phi**2)], [1.0, -phi], rng.normal(size=(*shape, 60)))
    lengths = rng.integers(5, 61, size=(*shape, 1))
    scores = steps + rng.normal(size=(*shape, 1)) + shift
    return np.where(np.arange(60) < lengths, scores, -np.inf).max(axis=-1)


@pytest.mark.parametrize("phi", [0.0, 0.9, 0.98])
@pytest.mark.parametrize(("alpha", "num_calibration"), [(0.05, 19), (0.2, 7), (0.1, 50)])
def test_false_alarms_stay_below_alpha(phi: float, alpha: float, num_calibration: int) -> None:
    """4000 calibration sets, one new episode each, seed 0.

    Scores are continuous, so the exact rate is floor((n + 1) alpha) / (n + 1), and the draws are
    independent: 4 standard errors on both sides fail by chance once in 16,000 runs.
    """
    sets = maxima(np.random.default_rng(0), (4000, num_calibration + 1), phi)
    alarms = [EpisodeThreshold(alpha).fit(row[:-1]).exceeded(row[-1]) for row in sets]
    exact = np.floor((num_calibration + 1) * alpha + 1e-9) / (num_calibration + 1)
    assert exact <= alpha
    assert np.mean(alarms) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000))


def test_per_frame_threshold_would_break_the_guarantee() -> None:
    """What the supremum is for: the 95% quantile of frames alarms in most episodes of 60 frames."""
    rng = np.random.default_rng(1)
    frames = rng.normal(size=(200, 60))
    per_frame = np.quantile(frames, 0.95)
    assert np.mean(rng.normal(size=(200, 60)).max(axis=1) > per_frame) > 0.9


def test_shift_is_detected() -> None:
    rng = np.random.default_rng(2)
    threshold = EpisodeThreshold(0.05).fit(maxima(rng, (99,), 0.9))
    assert np.mean([threshold.exceeded(m) for m in maxima(rng, (200,), 0.9, shift=4.0)]) > 0.5


def test_threshold_is_the_conformal_rank() -> None:
    scores = np.arange(1.0, 20.0)
    assert EpisodeThreshold(0.05).fit(scores[::-1]).value_ == 19.0
    assert EpisodeThreshold(0.10).fit(scores).value_ == 18.0
    assert EpisodeThreshold(0.5).fit(scores).value_ == 10.0


def test_score_at_the_threshold_is_no_alarm() -> None:
    threshold = EpisodeThreshold(0.5).fit(np.array([1.0]))
    assert not threshold.exceeded(1.0)
    assert threshold.exceeded(1.0 + 1e-9)


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001, 0.03, 1 / 3])
def test_fewest_episodes_suffice(alpha: float) -> None:
    n = episodes_needed(alpha)
    EpisodeThreshold(alpha).fit(np.arange(float(n)))
    assert smallest_alpha(n) <= alpha * (1 + 1e-12) < smallest_alpha(n - 1)
    with pytest.raises(ValueError, match=f"needs at least {n} calibration episodes"):
        EpisodeThreshold(alpha).fit(np.arange(float(n - 1)))


def test_too_few_episodes_are_refused_with_the_number_needed() -> None:
    message = (
        r"`alpha`=0\.05 needs at least 19 calibration episodes, got 18, "
        r"which support 0\.0526 at best\."
    )
    with pytest.raises(ValueError, match=message):
        EpisodeThreshold(0.05).fit(np.zeros(18))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5])
def test_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\)"):
        EpisodeThreshold(alpha)


def test_broken_maxima_and_missing_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="`maxima` must be finite"):
        EpisodeThreshold(0.5).fit(np.array([1.0, np.nan]))
    with pytest.raises(NotFittedError, match="EpisodeThreshold is not fitted"):
        EpisodeThreshold(0.5).exceeded(0.0)
