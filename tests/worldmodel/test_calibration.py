"""Which episodes calibrate, at what alarm rates, and recalibration blind to its own test."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.calibration import (
    calibrate,
    calibration_table,
    cross_fitted,
    monitor_config,
    plan_calibration,
    reference_episodes,
    trained_on,
)
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.model import WorldModel
from worldmodel.monitors.verdict import Level
from worldmodel.rollouts import EPSILONS, EpisodeRollouts

Store = Callable[..., ClipStore]


def overconfident(seed: int, horizons: Sequence[int] = (0, 1, 2, 1, 2)) -> EpisodeRollouts:
    """Errors even in [0, 1]: P(error <= eps) is eps. Stated: its square root at horizon 1, and its
    square at horizon 2, each with a little noise."""
    random = torch.Generator().manual_seed(seed)
    shape = (len(horizons), 1, 4, 8, 8)
    error = torch.rand(shape, generator=random)
    power = torch.tensor([2.0 if h == 2 else 0.5 for h in horizons])[
        :, None, None, None, None, None
    ]
    noise = 0.02 * torch.rand((*shape, 1), generator=random)
    confidence = (torch.tensor(EPSILONS) ** power * 0.95 + noise).expand(*shape, len(EPSILONS))
    return EpisodeRollouts(torch.zeros(shape), error, confidence.half(), np.array(horizons))


def test_recalibration_mends_each_horizon_on_its_own() -> None:
    """Eight episodes of 512 forecasts per horizon and level: a frequency is known to 0.012 at
    worst (one standard error), so a calibrated forecaster's ECE stays below 0.03."""
    rollouts = [overconfident(seed) for seed in range(8)]
    before = calibration_table(rollouts, horizons=(1, 2, 3))
    after = calibration_table(cross_fitted(rollouts), horizons=(1, 2, 3))
    assert list(before) == list(after) == [1, 2]  # no rollout reaches 3
    for horizon in (1, 2):
        assert before[horizon].num_forecasts == 8 * 2 * 256 * 10
        assert before[horizon].ece > 0.1
        assert after[horizon].ece < 0.03


def test_no_episode_shapes_its_own_recalibration() -> None:
    rollouts = [overconfident(seed) for seed in range(4)]
    wrong = [
        replace(rollout, imagined=rollout.imagined + 2) if i in (0, 2) else rollout
        for i, rollout in enumerate(rollouts)
    ]
    for i, (one, other) in enumerate(zip(cross_fitted(rollouts), cross_fitted(wrong), strict=True)):
        assert torch.equal(one.confidence, other.confidence) == (i in (0, 2))


def test_frames_that_were_not_imagined_keep_full_confidence() -> None:
    rollouts = [overconfident(seed) for seed in range(2)]
    for rollout in rollouts:
        rollout.confidence[0] = 1.0
    assert all((r.confidence[0] == 1).all() for r in cross_fitted(rollouts))


def test_one_episode_cannot_check_itself() -> None:
    with pytest.raises(ValueError, match="`rollouts` needs at least 2 episodes"):
        cross_fitted([overconfident(0)])


@pytest.mark.parametrize("num_episodes", [1, 2, 19, 30, 99, 400])
def test_every_level_keeps_to_what_the_episodes_support(num_episodes: int) -> None:
    """n episodes support no alpha below 1 / (n + 1)."""
    for alpha in (None, 0.5):
        rates = monitor_config(num_episodes, alpha).alphas
        assert min(rates.values()) >= 1 / (num_episodes + 1)
        assert rates[Level.NOTICE] == (alpha or max(0.05, 1 / (num_episodes + 1)))


def test_an_alpha_asked_for_is_kept_or_refused() -> None:
    assert monitor_config(24, 0.04).alphas == dict.fromkeys(list(Level)[1:], 0.04)
    with pytest.raises(ValueError, match=r"`alpha`=0\.04 needs 24 calibration episodes, got 23"):
        monitor_config(23, 0.04)
    with pytest.raises(ValueError, match="`alpha` must lie in"):
        monitor_config(23, 1.5)


def trained(make_model: Callable[..., WorldModel], **provenance: object) -> WorldModel:
    model = make_model()
    split = {"dynamics": ["episode-0", "episode-2"], "confidence": ["episode-1"], "untouched": []}
    model.config.provenance.update({"data": "data.zarr", "split": split, **provenance})
    return model


def test_training_data_are_known_by_name_and_by_source(
    make_model: Callable[..., WorldModel], make_store: Store, tmp_path: Path
) -> None:
    seen = {"episode-0", "episode-1", "episode-2"}
    same, other = make_store([6] * 4), make_store([6] * 4, name="other.zarr")
    assert trained_on(trained(make_model), same) == seen
    assert trained_on(trained(make_model), other) == set()
    source = {"source": {"form": "clip-store", "path": str(tmp_path / "other.zarr")}}
    assert trained_on(trained(make_model, data_attributes=source), other) == seen
    assert trained_on(make_model(), same) == set()


def test_the_plan_never_uses_an_episode_twice(
    make_model: Callable[..., WorldModel], make_store: Store
) -> None:
    store = make_store([6, 6, 6, 6, 4, 6])
    model = trained(make_model)
    plan = plan_calibration(model, store)
    assert (plan.calibration, plan.reference) == (  # episode-4 is too short
        ["episode-3", "episode-5"], ["episode-0", "episode-2"],
    )  # fmt: skip
    plan = plan_calibration(make_model(), store)
    assert (plan.calibration, plan.reference) == (
        ["episode-1", "episode-3"], ["episode-0", "episode-2", "episode-5"],
    )  # fmt: skip


def test_a_large_reference_is_thinned_evenly(
    make_model: Callable[..., WorldModel],
    make_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worldmodel.calibration.MAX_REFERENCE", 3)
    names = reference_episodes(make_model(), make_store([6] * 9))
    assert names == ["episode-0", "episode-4", "episode-8"]


def test_frames_of_other_proportions_calibrate_nothing(
    make_model: Callable[..., WorldModel],
    make_store: Store,
    make_trajectory: Callable[..., Trajectory],
) -> None:
    """The monitor stops at such frames, so a threshold for them would mean nothing."""
    model, store = make_model(), make_store([])
    for index in range(4):
        square = make_trajectory(f"wide-{index}", 6, index)
        frames = type(square.frames["front"])(np.zeros((6, 16, 32, 3), np.uint8))
        store.add(replace(square, frames={"front": frames}))
    plan = plan_calibration(model, store)
    with pytest.raises(ValueError, match="have other proportions than the model's"):
        calibrate(model, plan, config=monitor_config(2, None), horizon=2)
