"""Claims beside a robot: those that a recording would get, without knowing what comes next."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodel.calibration.calibrated import Calibration, load_calibration
from worldmodel.cli import main
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel
from worldmodel.monitors import PredictionCheck
from worldmodel.monitors.verdict import Level, Verdict
from worldmodel.networks.cache import LayerCache
from worldmodel.rollouts.log import commanded
from worldmodel.rollouts.open_loop import CONTEXT
from worldmodel.runtime.live import OnlinePredictor, online_monitor
from worldmodel.runtime.watch import claimed, known, watch

HORIZON = 4
ROUNDING = 2e-3
"""Claims are kept in half precision."""
Parts = tuple[WorldModel, Calibration, Episode]


@pytest.fixture(scope="module")
def loaded(calibrated: Path, scenes: Path) -> Parts:
    model = WorldModel.load(calibrated)
    episode = load_episode(model, open_dataset(scenes).episode("train/7"), ("front",))
    return model, load_calibration(model, calibrated), episode


def action_at(episode: Episode, t: int) -> np.ndarray:
    return commanded(episode, t).astype(np.float64)


def observed(claims: OnlinePredictor, episode: Episode) -> list[PredictionCheck | None]:
    """What was claimed of every frame, one after the other."""
    return [
        claims.observe(frame.numpy(), action_at(episode, t))
        for t, frame in enumerate(episode.frames)
    ]


@pytest.mark.parametrize("start", [1, 3, CONTEXT + 1])
@pytest.mark.parametrize("horizon", [1, HORIZON])
def test_they_are_those_of_the_recording(loaded: Parts, start: int, horizon: int) -> None:
    model, calibration, episode = loaded
    recorded = Calibration(calibration.monitor, calibration.recalibration, HORIZON, horizon, start)
    (rollouts,) = recorded.claims(model, [episode.batch], seed=5)
    live = observed(OnlinePredictor(model, start=start, horizon=horizon, seed=5), episode)
    assert [claim is None for claim in live] == [t < start for t in range(len(live))]
    for t, claim in enumerate(live):
        error = rollouts.error[t].half().numpy()
        wanted = claimed(rollouts.confidence[t].numpy(), error, int(rollouts.horizon[t]))
        if wanted is None or claim is None:
            assert claim is wanted
            continue
        assert claim.horizon == wanted.horizon
        np.testing.assert_allclose(claim.confidence, wanted.confidence, atol=ROUNDING)
        np.testing.assert_allclose(claim.error_ratio, wanted.error_ratio, rtol=0.02, atol=ROUNDING)


def beside(loaded: Parts, *, imagine: bool) -> list[Verdict]:
    model, calibration, episode = loaded
    monitor, verdicts = online_monitor(model, calibration), []
    for t, frame in enumerate(episode.frames):
        verdicts.append(monitor.update(frame.numpy(), known(commanded(episode, t))))
        if imagine:
            monitor.imagine()
    return verdicts


def test_the_monitor_runs_every_channel_beside_a_robot(loaded: Parts) -> None:
    model, calibration, episode = loaded
    (rollouts,) = calibration.claims(model, [episode.batch], seed=0)
    recorded = list(watch(calibration, episode, rollouts))
    live = beside(loaded, imagine=True)
    assert [verdict.level for verdict in live] == [verdict.level for verdict in recorded]
    for verdict, wanted in zip(live[1:], recorded[1:], strict=True):
        for name in ("confidence", "surprise"):
            score, other = verdict.evidence[name].score, wanted.evidence[name].score
            assert score == pytest.approx(other, rel=0.02, abs=ROUNDING)
    assert live == beside(loaded, imagine=False)  # late, but the same


def test_after_a_broken_frame_nothing_is_claimed_of_the_next(loaded: Parts) -> None:
    model, calibration, episode = loaded
    monitor = online_monitor(model, calibration)
    frames = [frame.numpy() for frame in episode.frames[:6]]
    frames[3] = np.zeros_like(frames[3])
    verdicts = []
    for t, frame in enumerate(frames):
        verdicts.append(monitor.update(frame, known(commanded(episode, t))))
        monitor.imagine()
    ran = ["surprise" in v.evidence and v.evidence["surprise"].score is not None for v in verdicts]
    assert ran == [False, True, True, False, False, True]
    assert verdicts[3].causes == ("sensor.black",)
    assert min(v.level for v in verdicts[3:6]) == Level.STOP  # held


def test_what_the_robot_did_counts_and_not_what_was_asked(loaded: Parts) -> None:
    model, _, episode = loaded
    frames = [frame.numpy() for frame in episode.frames[:2]]
    asked, done = np.zeros(7), np.full(7, 3.0)

    def ratio(action: np.ndarray, executed: np.ndarray | None) -> np.ndarray:
        claims = OnlinePredictor(model, start=1, horizon=HORIZON)
        claims.observe(frames[0], action)
        claims.imagine(executed)
        claim = claims.observe(frames[1], asked)
        assert claim is not None
        assert claim.error_ratio is not None
        return claim.error_ratio

    assert (ratio(asked, done) == ratio(done, None)).all()
    assert (ratio(asked, done) != ratio(asked, None)).any()
    unknown = ratio(np.full(7, np.nan), None)
    assert np.isfinite(unknown).all()
    assert (unknown != ratio(asked, None)).any()


def test_a_past_that_is_over_is_freed_without_the_garbage_collector(loaded: Parts) -> None:
    model, _, episode = loaded
    claims = OnlinePredictor(model, start=1, horizon=2)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            observed(claims, episode)
            claims.reset()
        assert not [x for x in gc.get_objects() if type(x) is LayerCache]
    finally:
        gc.enable()


def test_robots_do_not_share_an_episode(loaded: Parts) -> None:
    model, _, episode = loaded
    one = OnlinePredictor(model, start=1, horizon=HORIZON)
    one.observe(episode.frames[0].numpy(), np.zeros(7))
    other = one.sibling()
    assert other.observe(episode.frames[5].numpy(), np.zeros(7)) is None
    assert one.observe(episode.frames[1].numpy(), np.zeros(7)) is not None
    one.reset()
    assert one.observe(episode.frames[2].numpy(), np.zeros(7)) is None


def test_commands_side_by_side_are_watched_as_one_action(
    untrained: Path, scenes: Path, tmp_path: Path
) -> None:
    """A model at half the rate of its data, which reads both commands between its frames."""
    model = WorldModel.load(untrained)
    two = model.config.action_spec.side_by_side(2)
    dynamics = replace(model.config.dynamics, action_dim=two.dim)
    slow = WorldModel(replace(model.config, dynamics=dynamics, action_spec=two), model.tokenizer)
    slow.save(tmp_path / "slow")
    assert main(["calibrate", "--model", str(tmp_path / "slow"), "--data", str(scenes)]) == 0
    model = WorldModel.load(tmp_path / "slow")
    episode = load_episode(model, open_dataset(scenes).episode("train/7"), ("front",))
    verdicts = beside((model, load_calibration(model, tmp_path / "slow"), episode), imagine=True)
    assert len(verdicts) == 6
    assert not any(cause.startswith("sensor") for v in verdicts for cause in v.causes)
    for name in ("action", "surprise"):
        assert verdicts[2].evidence[name].score is not None
