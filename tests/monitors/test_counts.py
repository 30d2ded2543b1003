"""Streaming reliability counts equal binning all forecasts at once."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from netcal.metrics import ECE, MCE
from sklearn.metrics import brier_score_loss
from torchmetrics.classification import BinaryCalibrationError

from worldmodel.monitors.reliability.counts import Reliability, summarize
from worldmodel.monitors.reliability.measures import bin_forecasts, expected_calibration_error

EPSILONS = (0.1, 0.3, 1.0)


def stream(
    **options: object,
) -> tuple[Reliability, list[tuple[str, int, str, np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(0)
    reliability = Reliability(
        epsilons=EPSILONS, horizons=(1, 4), cameras=("wrist", "front"), num_bins=10, **options
    )
    calls = []
    for episode in ("a", "b", "c"):
        for horizon in (1, 4):
            for camera in ("wrist", "front"):
                p = rng.random((3, 5, 4)).astype(np.float32)
                y = rng.random((3, 5, 4)) < p**2
                reliability.update(p, y, episode=episode, horizon=horizon, camera=camera)
                calls.append((episode, horizon, camera, p, y))
    return reliability, calls


@pytest.mark.parametrize(
    ("epsilon", "horizon", "camera"),
    [(None, None, None), (0.3, None, None), (None, 4, None), (1.0, 1, "wrist")],
)
def test_stream_equals_batch(
    epsilon: float | None, horizon: int | None, camera: str | None
) -> None:
    reliability, calls = stream()
    rows = slice(None) if epsilon is None else EPSILONS.index(epsilon)
    chosen = [c for c in calls if horizon in (None, c[1]) and camera in (None, c[2])]
    p = np.concatenate([c[3][rows].ravel() for c in chosen])
    y = np.concatenate([c[4][rows].ravel() for c in chosen])
    bins = reliability.bins(epsilon=epsilon, horizon=horizon, camera=camera)
    np.testing.assert_allclose(bins.sums, bin_forecasts(p, y, num_bins=10).sums, atol=1e-9)

    by_episode = reliability.episode_bins(epsilon=epsilon, horizon=horizon, camera=camera)
    np.testing.assert_allclose(by_episode.pooled().sums, bins.sums, atol=1e-9)
    of_b = [c for c in chosen if c[0] == "b"]
    expected = bin_forecasts(
        np.concatenate([c[3][rows].ravel() for c in of_b]),
        np.concatenate([c[4][rows].ravel() for c in of_b]),
        num_bins=10,
    )
    np.testing.assert_allclose(by_episode.sums[1], expected.sums, atol=1e-9)


def test_memory_is_independent_of_forecasts_and_without_episodes_constant() -> None:
    reliability = Reliability(epsilons=(0.1,), num_bins=5, keep_episodes=False)
    size = reliability.total.nbytes
    for i in range(50):
        reliability.update(np.full((1, 1000), 0.5), np.ones((1, 1000), bool), episode=str(i))
    assert reliability.total.nbytes == size == 32 * 5
    assert reliability.episodes == {}
    assert reliability.bins().count.sum() == 50_000
    with pytest.raises(ValueError, match="No episode was kept"):
        reliability.episode_bins()


def test_summary_holds_every_measure_and_is_json() -> None:
    reliability, _ = stream()
    summary = summarize(reliability.episode_bins(horizon=4), rng=np.random.default_rng(0))
    assert summary.num_episodes == 3
    assert summary.num_forecasts == 3 * 2 * 60
    assert summary.ece == expected_calibration_error(reliability.bins(horizon=4))
    assert summary.ece_interval[0] <= summary.ece <= summary.ece_interval[1]
    assert summary.per_video_ece >= summary.ece
    assert json.loads(json.dumps(summary.as_dict()))["mce"] == summary.mce


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 2}, r"`horizon` must be one of \[1, 4\], got 2\."),
        ({"camera": "side"}, r"`camera` must be one of \['wrist', 'front'\], got 'side'\."),
    ],
)
def test_unknown_cell_is_refused(change: dict[str, object], message: str) -> None:
    reliability, _ = stream()
    with pytest.raises(ValueError, match=message):
        reliability.update(
            np.zeros((3, 1)), np.zeros((3, 1), bool), episode="a", **{"camera": "wrist", **change}
        )


def test_wrong_number_of_tolerances_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`confidence` needs 2 rows \(epsilons\), got 1\."):
        Reliability(epsilons=(0.1, 0.2)).update(
            np.zeros((1, 4)), np.zeros((1, 4), bool), episode="a"
        )


def test_memory_does_not_grow_with_the_forecasts() -> None:
    """Blocks alive after 5 and after 45 updates of 80 kB each, without and with episodes."""
    rng = np.random.default_rng(0)
    confidence, correct = rng.random((2, 5000)), rng.random((2, 5000)) < 0.5
    for options, names in (({"keep_episodes": False}, range(45)), ({}, [0] * 45)):
        reliability = Reliability(epsilons=(0.1, 0.3), **options)
        tracemalloc.start()
        for i, name in enumerate(names):
            reliability.update(confidence, correct, episode=str(name))
            if i == 4:
                early, _ = tracemalloc.get_traced_memory()
        late, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert late - early < 20_000  # a quarter of what one update brings
        assert reliability.bins().count.sum() == 45 * 10_000


def test_measures_of_a_stream_agree_with_netcal_torchmetrics_and_scikit_learn() -> None:
    """Many updates in single precision, to 1e-6."""
    rng = np.random.default_rng(4)
    reliability = Reliability(epsilons=(0.1,), num_bins=15)
    stated, outcomes = [], []
    for i in range(30):
        p = rng.beta(2.0, 1.0, (1, 200)).astype(np.float32)
        y = rng.random(p.shape) < 0.1 + 0.7 * p
        reliability.update(p, y, episode=str(i % 6))
        stated.append(p[0])
        outcomes.append(y[0])
    p, y = np.concatenate(stated), np.concatenate(outcomes)
    summary = summarize(reliability.episode_bins(), rng=rng, num_resamples=10)

    assert summary.ece == pytest.approx(ECE(15).measure(p, y), abs=1e-6)
    heavy = [i for i in range(15) if np.mean((p >= i / 15) & (p < (i + 1) / 15)) >= 1e-3]
    assert len(heavy) == 15  # so that MCE of heavy bins is that of all
    assert summary.mce == pytest.approx(MCE(15).measure(p, y), abs=1e-6)
    for norm, ours in (("l1", summary.ece), ("max", summary.mce)):
        theirs = BinaryCalibrationError(n_bins=15, norm=norm)
        for part, outcome in zip(stated, outcomes, strict=True):
            theirs.update(torch.from_numpy(part), torch.from_numpy(outcome))
        assert ours == pytest.approx(theirs.compute().item(), abs=1e-6)
    assert summary.brier == pytest.approx(brier_score_loss(y, p), abs=1e-6)
    skill = 1 - brier_score_loss(y, p) / brier_score_loss(y, np.full(len(y), y.mean()))
    assert summary.brier_skill == pytest.approx(skill, abs=1e-6)
    episodes = [
        ECE(15).measure(np.concatenate(stated[i::6]), np.concatenate(outcomes[i::6]))
        for i in range(6)
    ]
    assert summary.per_video_ece == pytest.approx(np.mean(episodes), abs=1e-6)
