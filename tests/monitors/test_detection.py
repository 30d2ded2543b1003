"""Detection metrics against scikit-learn and SciPy, and hand-written cases."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from worldmodel.monitors.metrics.detection import (
    alarm_delay,
    auroc,
    auroc_interval,
    average_precision,
    false_positive_rate,
    summarize_detection,
)
from worldmodel.monitors.metrics.watched import WatchedEpisode
from worldmodel.monitors.verdict import Level


@pytest.mark.parametrize("decimals", [8, 1, 0])  # ever more ties
def test_auroc_and_fpr95_agree_with_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    nominal, shifted = rng.normal(size=37).round(decimals), rng.normal(1, 1, 53).round(decimals)
    labels, scores = np.repeat([0, 1], [37, 53]), np.concatenate([nominal, shifted])
    assert auroc(nominal, shifted) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert false_positive_rate(nominal, shifted) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_average_precision_agrees_with_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    nominal, shifted = rng.normal(size=37).round(decimals), rng.normal(1, 1, 23).round(decimals)
    labels, scores = np.repeat([0, 1], [37, 23]), np.concatenate([nominal, shifted])
    expected = average_precision_score(labels, scores)
    assert average_precision(nominal, shifted) == pytest.approx(expected, abs=1e-12)


def test_auroc_interval_covers_the_truth() -> None:
    """1000 draws of 20 and 20 normal scores, seed 0; nominal coverage 95%, standard error 0.7%.

    Newcombe reports 94 to 96% for this method; the band is wider than 3 standard errors around it.
    """
    rng = np.random.default_rng(0)
    truth = norm.cdf(1.5 / np.sqrt(2))
    covered = 0
    for _ in range(1000):
        area = auroc(rng.normal(size=20), rng.normal(1.5, 1, 20))
        low, high = auroc_interval(area, 20, 20)
        covered += low <= truth <= high
    assert 0.92 <= covered / 1000 <= 0.99


def test_interval_at_perfect_separation_is_not_a_point() -> None:
    low, high = auroc_interval(1.0, 20, 20)
    assert high == 1.0
    assert 0.75 < low < 0.95
    assert auroc_interval(1.0, 200, 200)[0] > low
    assert auroc_interval(0.0, 20, 20) == pytest.approx((0.0, 1 - low))


def watched(alarm_score: list[float], levels: list[int]) -> WatchedEpisode:
    return WatchedEpisode({}, np.array(alarm_score, float), np.array(levels))


def test_summary_of_a_hand_written_case() -> None:
    nominal = [watched([0, 1, 0, 9], [0, 0, 0, 3]), watched([0, 3, 0], [0, 1, 0])]
    shifted = [watched([0, 2, 4], [0, 0, 2]), watched([9, 0, 0], [1, 0, 0])]
    summary = summarize_detection(nominal, shifted, onset=1)
    # Cut to 3 frames, from frame 1 on: nominal 1 and 3, shifted 4 and 0.
    assert summary.auroc == pytest.approx(0.5)
    assert summary.false_alarm_rate == 0.5
    assert summary.detected_rate == 0.5  # the alarm before the onset does not count
    assert summary.median_delay == 1.0
    assert summary.as_dict()["num_shifted"] == 2


def test_delay_counts_from_the_onset_and_heeds_the_level() -> None:
    levels = np.array([1, 0, 1, 2])
    assert alarm_delay(levels) == 0
    assert alarm_delay(levels, onset=1) == 1
    assert alarm_delay(levels, onset=1, level=Level.DEGRADE) == 2
    assert alarm_delay(levels, level=Level.STOP) is None


def test_empty_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="`nominal` and `shifted` must not be empty, got 0, 1"):
        auroc(np.zeros(0), np.zeros(1))
    with pytest.raises(ValueError, match="`onset` must be below the shortest length 1, got 1"):
        summarize_detection([watched([0.0], [0])], [watched([0.0], [0])], onset=1)
