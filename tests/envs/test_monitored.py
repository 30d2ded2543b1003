"""The monitored environment: hands over at the fault and not before, changes nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from gymnasium.utils.env_checker import check_env

from worldmodel.envs.monitored import MonitoredEnv, hold_still
from worldmodel.envs.tabletop import TabletopEnv
from worldmodel.monitors import EpisodeSignals, Level, MonitorConfig, RuntimeMonitor
from worldmodel.monitors.alert_log import Alert, AlertLog, read_alerts

SIDE = 8
MOVE = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)


class Camera(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Noise of one brightness; black from frame `fault` on. Reports the action it executed."""

    def __init__(self, fault: int | None = None) -> None:
        self.fault = fault
        image, state = Box(0, 255, (SIDE, SIDE, 3), np.uint8), Box(0, 1, (10,), np.float32)
        self.observation_space = Dict({"image": image, "state": state})
        self.action_space = Box(-1, 1, (7,), np.float32)

    def _observe(self) -> dict[str, np.ndarray]:
        image = self.np_random.normal(100, 25, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
        if self.fault is not None and self.count >= self.fault:
            image = np.zeros_like(image)
        return {"image": image, "state": np.full(10, 0.25, np.float32)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._observe(), float(action[0]), self.count == 10, False, {"executed": action}


def brightness(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    side = len(frame) // 4
    places = frame.reshape(4, side, 4, side, 3).mean(axis=(1, 3)).astype(np.float32)
    return places.mean(axis=(0, 1)), places


def fitted(episodes: list[np.ndarray]) -> RuntimeMonitor:
    signals = []
    for frames in episodes:
        pooled, positions = zip(*map(brightness, frames), strict=True)
        signals.append(EpisodeSignals(pooled=np.stack(pooled), positions=np.stack(positions)))
    config = MonitorConfig(alpha_notice=0.1, alpha_degrade=0.1, alpha_stop=0.1)
    shape = episodes[0].shape[1:]
    return RuntimeMonitor(config, features=brightness).fit(signals, frame_shape=shape)


@pytest.fixture(scope="module")
def monitor() -> RuntimeMonitor:
    rng = np.random.default_rng(0)
    draws = rng.normal(100, 25, (40, 12, SIDE, SIDE, 3))
    return fitted(list(draws.clip(0, 255).astype(np.uint8)))


def played(env: gymnasium.Env[Any, Any], seed: int) -> list[tuple[Any, ...]]:
    """Every row that an episode gives, with one action after another."""
    rows: list[tuple[Any, ...]] = [env.reset(seed=seed)]
    rng = np.random.default_rng(seed)
    while len(rows) == 1 or not (rows[-1][2] or rows[-1][3]):
        rows.append(env.step((MOVE * rng.uniform(0.5, 1)).astype(np.float32)))
    return rows


@pytest.mark.parametrize("fault", [0, 4, 9])
def test_hands_over_at_the_faulty_frame_and_not_before(monitor: RuntimeMonitor, fault: int) -> None:
    """The action chosen from the first black frame is the first that is replaced."""
    rows = played(MonitoredEnv(Camera(fault), monitor, hold_still), seed=1)[1:]
    assert [row[4]["handed_over"] for row in rows] == [t >= fault for t in range(10)]
    for t, row in enumerate(rows):
        moved = row[4]["executed"][0] > 0
        assert moved == (t < fault)
    assert rows[fault][4]["verdict"].causes == ("sensor.black",)
    assert rows[fault][4]["trust"] == 0
    assert rows[-1][4]["executed"][6] == 0.25 or fault > 9  # the gripper's own opening


def test_stays_handed_over_when_the_picture_returns_until_the_episode_ends(
    monitor: RuntimeMonitor,
) -> None:
    camera = Camera(3)
    env = MonitoredEnv(camera, monitor, hold_still)
    env.reset(seed=1)
    for t in range(9):
        camera.fault = None if t > 2 else 3  # frame 3 alone is black
        info = env.step(MOVE)[4]
    assert info["verdict"].level == Level.TRUST
    assert info["handed_over"]
    assert env.reset(seed=1)[1] == {"verdict": None, "trust": 0.0, "handed_over": False}
    assert not env.step(MOVE)[4]["handed_over"]


def test_a_nominal_episode_is_untouched(monitor: RuntimeMonitor) -> None:
    bare = played(Camera(), seed=5)
    alerts: list[Alert] = []
    watched = played(MonitoredEnv(Camera(), monitor, hold_still, on_alert=alerts.append), seed=5)
    assert len(bare) == len(watched) == 11
    for one, other in zip(bare, watched, strict=True):
        assert np.array_equal(one[0]["image"], other[0]["image"])
        assert one[1:-1] == other[1:-1]
    assert alerts == []
    assert [row[-1]["handed_over"] for row in watched] == [False] * 11
    assert all(0 < row[-1]["trust"] <= 1 for row in watched[1:])


def test_a_broken_action_is_never_executed(monitor: RuntimeMonitor) -> None:
    env = MonitoredEnv(Camera(), monitor, hold_still)
    env.reset(seed=1)
    env.step(MOVE)
    info = env.step(MOVE * np.nan)[4]
    assert info["verdict"].causes == ("sensor.action",)
    assert np.isfinite(info["executed"]).all()


def test_what_a_policy_draws_on_its_observation_is_not_judged(monitor: RuntimeMonitor) -> None:
    env = MonitoredEnv(Camera(), monitor, hold_still)
    observation, _ = env.reset(seed=1)
    observation["image"][:] = 0
    assert env.step(MOVE)[4]["verdict"].level == Level.TRUST


class Listens:
    """A model that keeps what it is told of executed actions, and claims nothing."""

    def __init__(self) -> None:
        self.told: list[np.ndarray | None] = []

    def observe(self, frame: np.ndarray, action: np.ndarray) -> None:
        """It says nothing."""

    def imagine(self, executed: np.ndarray | None = None) -> None:
        self.told.append(executed)

    def reset(self) -> None:
        """It keeps no episode."""

    def sibling(self) -> "Listens":
        return self


def test_a_model_beside_it_imagines_what_is_executed(monitor: RuntimeMonitor) -> None:
    watcher = monitor.sibling()
    watcher.claims = claims = Listens()
    rows = played(MonitoredEnv(Camera(4), watcher, hold_still), seed=1)[1:]
    assert rows[4][4]["handed_over"]
    np.testing.assert_array_equal(claims.told, [row[4]["executed"] for row in rows])


def test_a_lower_level_hands_over_if_asked(monitor: RuntimeMonitor) -> None:
    env = MonitoredEnv(Camera(), monitor, hold_still, level=Level.TRUST)
    env.reset(seed=1)
    assert env.step(MOVE)[4]["handed_over"]


def test_alerts_name_episode_and_step_and_survive_in_a_file(
    monitor: RuntimeMonitor, tmp_path: Path
) -> None:
    with AlertLog(tmp_path / "alerts.jsonl") as log:
        env = MonitoredEnv(Camera(7), monitor, hold_still, on_alert=log.write)
        for seed in (1, 2):
            played(env, seed)
        alerts = list(read_alerts(tmp_path / "alerts.jsonl"))
    assert [(a.episode, a.step) for a in alerts] == [(e, t) for e in "01" for t in (7, 8, 9)]
    assert alerts[0].verdict.causes == ("sensor.black",)


def test_passes_gymnasiums_checks(monitor: RuntimeMonitor) -> None:
    env = MonitoredEnv(Camera(), monitor, hold_still)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(MOVE)
    with pytest.warns(UserWarning, match="different from the unwrapped version"):
        check_env(env, skip_render_check=True)


def test_stops_the_tabletop_when_its_wall_changes(
    tabletop: Callable[[str], TabletopEnv],
) -> None:
    """Defaults fit the tabletop; calibrated on 18 layouts, shown the strongest background."""
    env = tabletop("pick_place")

    def frames(seed: int) -> np.ndarray:
        seen = [env.reset(seed=seed)[0]["image"]]
        return np.stack(seen + [env.step(MOVE)[0]["image"] for _ in range(2)])

    monitored = MonitoredEnv(env, fitted([frames(seed) for seed in range(18)]), hold_still)
    monitored.reset(seed=100)
    assert not monitored.step(MOVE)[4]["handed_over"]
    monitored.reset(seed=100, options={"factor": "background", "severity": 3})
    info = monitored.step(MOVE)[4]
    assert info["handed_over"]
    assert set(info["verdict"].causes) <= {"appearance", "region"}
