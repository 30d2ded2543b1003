"""Comparing ways to state confidence: measures, resumption, and episodes left out."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.calibration.cross_validation import copied, make_folds
from benchmarks.calibration.episodes import BenchmarkData, imagined, make_banks
from benchmarks.calibration.heads import HeadRecipe
from benchmarks.calibration.measures import measure
from benchmarks.calibration.methods import (
    SHIPPED,
    Comparison,
    MethodForecasts,
    MethodResult,
    pool_forecasts,
    run,
)
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts


def made_up(num_frames: int, seed: int, *, honest: bool) -> EpisodeRollouts:
    """Errors drawn from stated exponential distributions, or from ones half as wide."""
    rng = np.random.default_rng(seed)
    shape = (num_frames, 1, 2, 8, 8)
    scale = np.exp(rng.normal(-1, 0.7, shape))
    error = rng.exponential(scale if honest else scale / 2)
    stated = 1 - np.exp(-np.array(EPSILONS) / scale[..., None])
    horizon = np.arange(num_frames) - 3
    return EpisodeRollouts(
        truth=torch.zeros(shape),
        imagined=torch.from_numpy(error).float(),
        confidence=torch.from_numpy(stated).half(),
        horizon=horizon.clip(0),
    )


def test_honest_confidence_has_no_error_and_ranks_errors_as_far_as_can_be() -> None:
    """12 episodes of 4 counted frames of 128 subpatches: about 6000 errors, 61,000 forecasts."""
    honest = [made_up(21, seed, honest=True) for seed in range(12)]
    row = measure(honest, method="true", group="nominal")
    assert row.num_episodes == 12
    assert row.num_forecasts == 12 * 4 * 128 * len(EPSILONS)
    assert row.ece.value < 0.015
    assert row.per_video_ece.value > row.ece.value
    assert row.brier_skill.low > 0
    assert row.pi.high < -0.3
    assert row.ece.low <= row.ece.value
    wide = [made_up(21, seed, honest=False) for seed in range(12)]
    off = measure(wide, method="wide", group="nominal")
    assert off.ece.low > 0.05
    assert off.pi.value == pytest.approx(row.pi.value, abs=0.05)  # the order is as good


def test_scores_rank_in_place_of_confidence() -> None:
    rollouts = [made_up(21, seed, honest=True) for seed in range(3)]
    ideal = measure(rollouts, method="", group="", scores=[r.error for r in rollouts])
    assert ideal.pi.value == pytest.approx(-1, abs=1e-9)
    assert ideal.ause.value == pytest.approx(0, abs=1e-9)


@pytest.fixture
def comparison(
    make_model: Callable[..., WorldModel],
    make_trajectory: Callable[..., Trajectory],
    monkeypatch: pytest.MonkeyPatch,
) -> Comparison:
    """An untrained model and six short episodes; few resamples, as no test looks at intervals."""
    monkeypatch.setattr("benchmarks.calibration.measures.NUM_RESAMPLES", 5)
    model = make_model()
    episodes = [
        load_episode(model, make_trajectory(f"e{seed}", 12, seed), model.config.cameras)
        for seed in range(6)
    ]
    rolled = imagined(model, episodes, seed=0)
    data = BenchmarkData(
        learn=partial(make_banks, model, episodes[:2], passes=1, horizon=8, seed=0),
        calibrate=rolled,
        corrupt=lambda: rolled,
        groups={"calm": rolled, "odd": imagined(model, episodes[3:], seed=1)},
        seconds_per_frame=1.0,
    )
    return Comparison(model, lambda: data, steps=2, recipes=(HeadRecipe(),))


def test_every_method_is_judged_once_and_kept(comparison: Comparison, tmp_path: Path) -> None:
    merged = {"both": ("calm", "odd")}
    only = (SHIPPED, "distribution", "base rate", "round trip")
    results = run([comparison], merged, tmp_path, only=only)
    names = [result.method for result in results]
    assert f"{SHIPPED}, beta" in names
    assert names == [n for n in comparison.methods() if any(part in n for part in only)]
    for result in results:
        assert [row.group for row in result.rows] == ["calm", "odd", "both"]
        assert [row.num_episodes for row in result.rows] == [6, 3, 9]
        assert result.cost >= 1
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = run([comparison], merged, tmp_path, only=only)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert json.dumps([r.as_dict() for r in again]) == json.dumps([r.as_dict() for r in results])


def test_gains_over_a_copy_are_pooled_by_episode(comparison: Comparison) -> None:
    gains = comparison.gains({"both": ("calm", "odd")})
    assert {name: gain.num_episodes for name, gain in gains.items()} == {
        "calm": 6, "odd": 3, "both": 9,
    }  # fmt: skip
    pooled = (6 * gains["calm"].gain_db + 3 * gains["odd"].gain_db) / 9
    assert gains["both"].gain_db == pytest.approx(pooled)


def test_recalibration_helps_on_the_episodes_it_was_fitted_on(
    comparison: Comparison, tmp_path: Path
) -> None:
    results = {r.method: r.rows[0] for r in run([comparison], {}, tmp_path, only=(SHIPPED,))}
    stated = results[SHIPPED].ece.value
    assert stated > 0.1  # an untrained head
    for curve in ("isotonic", "platt", "beta"):
        assert results[f"{SHIPPED}, {curve}"].ece.value < 0.5 * stated


def test_a_constant_confidence_has_no_rank_and_survives_storage(
    comparison: Comparison, tmp_path: Path
) -> None:
    (result,) = run([comparison], {}, tmp_path, only=("base rate",))
    assert math.isnan(result.rows[0].pi.value)
    text = json.dumps(result.as_dict())
    assert "NaN" not in text
    back = MethodResult.from_dict(json.loads(text))
    assert math.isnan(back.rows[0].pi.value)
    assert back.rows[0].ece == result.rows[0].ece


def test_models_are_judged_together(comparison: Comparison) -> None:
    forecasts = comparison.shipped()
    half = MethodForecasts({"calm": forecasts.forecasts["calm"][:2]}, 1.5)
    rest = MethodForecasts({"calm": forecasts.forecasts["calm"][2:]}, 2.5)
    whole = pool_forecasts([half, rest])
    assert [id(r) for r in whole.forecasts["calm"]] == [id(r) for r in forecasts.forecasts["calm"]]
    assert whole.cost == 2.0


def test_episodes_are_dealt_once_and_copies_not_at_all(
    make_store: Callable[..., ClipStore], make_trajectory: Callable[..., Trajectory], tmp_path: Path
) -> None:
    store = make_store([6, 7, 8, 6, 7, 3])
    store.add(make_trajectory("copy", 6, 0))
    dealt = make_folds(store, 2)
    assert sorted(name for fold in dealt for name in fold) == [f"episode-{i}" for i in range(5)]
    assert [len(fold) for fold in dealt] == [3, 2]
    for folds in (1, 3):
        with pytest.raises(ValueError, match=r"`folds` must be from 2 to 2, half .* got \d"):
            make_folds(store, folds)
    target = tmp_path / "fold.zarr"
    copied(store, dealt[0][:1], target)
    again = copied(store, dealt[0], target)
    assert list(again.episode_ids) == dealt[0]


def test_rollouts_keep_features_only_if_asked(comparison: Comparison) -> None:
    kept = comparison.data.groups["odd"].rollouts[0]
    assert kept.features is not None
    assert not kept.features[kept.horizon == 0].any()
    assert kept.features[kept.horizon > 0].abs().sum(dim=(1, 2)).min() > 0
