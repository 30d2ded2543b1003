"""Which episodes calibrate, at what alarm rates, and recalibration blind to its own test."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from worldmodel.calibration.calibrate import calibrate, monitor_config
from worldmodel.calibration.choose_episodes import plan_calibration, reference_episodes, trained_on
from worldmodel.calibration.features import FrameFeatures
from worldmodel.calibration.fit_monitor import data_hash, disturbed_episodes
from worldmodel.calibration.trusted_share import trusted_shares
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.load import load_named
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.guarantees.risk_control import RiskControl
from worldmodel.monitors.nuisances import declared
from worldmodel.monitors.reliability.measures import bin_forecasts
from worldmodel.monitors.reliability.recalibration import CameraRecalibration, HorizonRecalibration
from worldmodel.monitors.verdict import Level
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts
from worldmodel.rollouts.recalibrate import (
    cross_fitted,
    fit_recalibration,
    recalibrated,
    restored_curves,
)
from worldmodel.rollouts.reliability import calibration_table

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


def two_cameras(seed: int, *, without_second: bool = False) -> EpisodeRollouts:
    """The first camera states what comes true at horizon 1, the second the square of it."""
    rollout = overconfident(seed, horizons=(0, 1, 1, 1, 1))
    levels = torch.tensor(EPSILONS)
    stated = torch.stack((levels, levels**2))[None, :, None, None, None]
    shape = (5, 2, 4, 8, 8, len(EPSILONS))
    return replace(
        rollout,
        truth=rollout.truth.repeat(1, 2, 1, 1, 1),
        imagined=torch.cat((rollout.imagined, overconfident(seed + 100).imagined), dim=1),
        confidence=stated.expand(shape).half(),
        view_valid=torch.tensor([[True, not without_second]] * 5),
    )


def test_only_segments_from_familiar_frames_are_recalibrated() -> None:
    rollout = overconfident(0)
    curves = fit_recalibration([overconfident(seed) for seed in range(3)])
    whole = recalibrated(rollout, curves)
    starts = np.arange(len(rollout.horizon)) - rollout.horizon
    familiar = np.arange(len(rollout.horizon)) % 2 == 0
    partly = recalibrated(rollout, curves, familiar=familiar)
    for t, start in enumerate(starts):
        expected = whole if familiar[start] else rollout
        assert torch.equal(partly.confidence[t], expected.confidence[t])
    assert not torch.equal(whole.confidence, rollout.confidence)


def test_each_camera_has_its_own_curves(tmp_path: Path) -> None:
    """20 episodes of 1024 forecasts: a frequency is known to 0.004 (one standard error)."""
    rollouts = [two_cameras(seed) for seed in range(20)]
    curves = fit_recalibration(rollouts)
    assert isinstance(curves, CameraRecalibration)
    save_file(curves.arrays(), tmp_path / "curves.safetensors")
    restored = restored_curves(load_file(tmp_path / "curves.safetensors"))
    assert isinstance(restored, CameraRecalibration)
    mended = recalibrated(rollouts[0], restored).confidence[1, :, 0, 0, 0].float()
    np.testing.assert_allclose(mended, np.tile(EPSILONS, (2, 1)), atol=0.02)
    kept = recalibrated(rollouts[0], restored).confidence[0]
    assert torch.equal(kept, rollouts[0].confidence[0])  # not imagined


def test_a_camera_that_few_episodes_have_shares_the_curves_of_all() -> None:
    rollouts = [two_cameras(seed, without_second=seed > 0) for seed in range(20)]
    curves = fit_recalibration(rollouts, method="beta")
    first, second = recalibrated(rollouts[0], curves).confidence[1, :, 0, 0, 0].float().numpy()
    np.testing.assert_allclose(first, EPSILONS, atol=0.02)
    stated = rollouts[0].confidence[1, 1, 0, 0, 0].float().numpy()
    assert isinstance(curves, CameraRecalibration)
    shared = curves.pooled_.predict(stated[:, None], horizon=1)[:, 0]
    np.testing.assert_allclose(second, shared, atol=1e-3)  # half precision


def test_one_camera_keeps_the_curves_it_always_had() -> None:
    """As fitted from sums of all forecasts of a horizon, whatever the camera or episode."""
    rollouts = [overconfident(seed) for seed in range(3)]
    bins = {
        horizon: [
            bin_forecasts(
                np.concatenate([r.confidence[rows(r, horizon), ..., i].ravel() for r in rollouts]),
                np.concatenate([(r.error[rows(r, horizon)] <= e).ravel() for r in rollouts]),
                num_bins=200,
            )
            for i, e in enumerate(EPSILONS)
        ]
        for horizon in (1, 2)
    }
    expected = HorizonRecalibration(EPSILONS).fit(bins).arrays()
    fitted = fit_recalibration(rollouts).arrays()
    assert fitted.keys() == expected.keys()
    for name, array in fitted.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-12)


def rows(rollout: EpisodeRollouts, horizon: int) -> np.ndarray:
    return np.flatnonzero(rollout.horizon == horizon)


def test_the_shipped_curves_are_read_as_they_were_written() -> None:
    stored = load_file(checkpoint_folder("tabletop") / "monitor" / "recalibration.safetensors")
    curves = restored_curves(stored)
    assert isinstance(curves, HorizonRecalibration)
    arrays = curves.arrays()
    assert arrays.keys() == stored.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, stored[name])


def test_thresholds_are_those_of_risk_control_on_stated_confidence() -> None:
    """Errors even in [0, 1]; confidence c at error level 0.5 is right with probability c."""
    rollouts = []
    for seed in range(12):
        rollout = overconfident(seed)
        stated = torch.rand(rollout.truth.shape, generator=torch.Generator().manual_seed(seed))
        stated = stated.half()
        wrong = torch.rand(stated.shape, generator=torch.Generator().manual_seed(99 + seed))
        imagined = torch.where(wrong < stated, 0.2, 0.8)
        confidence = stated[..., None].repeat(1, 1, 1, 1, 1, len(EPSILONS))
        rollouts.append(replace(rollout, imagined=imagined, confidence=confidence))
    refused, *allowed = trusted_shares(rollouts)
    assert (refused.alpha, refused.num_episodes, refused.num_needed) == (0.05, 12, 19)
    assert refused.threshold is refused.share_trusted is None
    stated_arrays = [r.confidence[1:, ..., 0].float().numpy() for r in rollouts]
    correct = [(r.error[1:] <= 0.5).numpy() for r in rollouts]
    for row in allowed:
        control = RiskControl(row.alpha).fit(stated_arrays, correct)
        assert row.threshold == control.threshold_
        assert row.share_trusted == pytest.approx(
            np.mean([control.trusted(stated) for stated in stated_arrays])
        )
    # Those at or above t are wrong in (1 - t) / 2 of cases; one wholly wrong episode is added.
    assert allowed[0].threshold == pytest.approx(1 - 2 * (0.1 * 13 - 1) / 12, abs=0.05)
    assert allowed[1].threshold == pytest.approx(1 - 2 * (0.2 * 13 - 1) / 12, abs=0.05)


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
    monkeypatch.setattr("worldmodel.calibration.choose_episodes.MAX_REFERENCE", 3)
    names, _ = reference_episodes(make_model(), make_store([6] * 9))
    assert names == ["episode-0", "episode-4", "episode-8"]


def test_the_data_hash_is_that_of_what_was_seen(
    make_model: Callable[..., WorldModel], make_store: Store
) -> None:
    model, store = make_model(), make_store([6] * 2)
    first, second = load_named(model, store, store.episode_ids)
    known = data_hash([first, second])
    assert data_hash(load_named(model, store, store.episode_ids)) == known
    frames, actions = first.frames.clone(), first.batch.actions.clone()
    frames[3, 0, 5, 5, 1] ^= 1
    actions[0, 2, 6] += 1e-6
    others = [
        replace(first, frames=frames),
        replace(first, batch=replace(first.batch, actions=actions)),
        replace(first, name="another"),
    ]
    hashes = {data_hash([episode, second]) for episode in others}
    assert len({known, data_hash([second, first]), data_hash([first]), *hashes}) == 6


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
    with pytest.raises(ValueError, match="have another aspect ratio than the model's"):
        calibrate(model, plan, config=monitor_config(2, None), horizon=2)


def test_thresholds_come_from_calibration_episodes_and_the_familiar_from_the_reference(
    make_model: Callable[..., WorldModel], make_store: Store
) -> None:
    """Of seven episodes three set the thresholds of monitor and gate, and four are familiar."""
    model, store = make_model(), make_store([8] * 7)
    plan = plan_calibration(model, store)
    result = calibrate(model, plan, config=monitor_config(3, None), horizon=2)
    for monitor in (result.calibration.monitor, result.gate.monitor):
        rule = monitor.alarm_rule_
        assert (rule.num_calibration_, rule.num_reference_) == (3, 4)


@pytest.mark.parametrize("num_calibration", [5, 60])
def test_reference_copies_show_what_a_nuisance_does_to_the_features(
    make_model: Callable[..., WorldModel], make_store: Store, num_calibration: int
) -> None:
    """60 calibration episodes set the scales themselves, so features of the copies are enough."""
    model, store = make_model(), make_store([6] * 3)
    episodes = load_named(model, store, store.episode_ids)
    (nuisance,) = declared(["noise:3"])
    (copies,) = disturbed_episodes(
        model, [episodes[0]] * num_calibration, episodes[1:], [nuisance],
        config=MonitorConfig(alpha_notice=0.2, alpha_degrade=0.2, alpha_stop=0.2), horizon=2,
    )  # fmt: skip
    assert sorted(copies.reference) == [0, 1]
    for index, copy in copies.reference.items():
        frames = nuisance(episodes[1 + index].frames.numpy(), seed=index)
        pooled, _ = FrameFeatures(model).of_episode(torch.from_numpy(frames))
        np.testing.assert_array_equal(copy.pooled, pooled)
        assert (copy.confidence is None) == (num_calibration == 60)
