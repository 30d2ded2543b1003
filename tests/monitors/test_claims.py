"""World model beside the monitor: its failures become STOP verdicts."""

import numpy as np
import pytest

from worldmodel.monitors import EpisodeSignals, Level, MonitorConfig, RuntimeMonitor

SHAPE = (8, 8, 3)
ACTION = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)


def features(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = frame.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).astype(np.float32)
    return places.mean(axis=(0, 1)), places


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 160, SHAPE, dtype=np.uint8)


@pytest.fixture(scope="module")
def monitor() -> RuntimeMonitor:
    episodes = []
    for seed in range(40):
        frames = [picture(1000 + 8 * seed + t) for t in range(8)]
        pooled, positions = zip(*map(features, frames), strict=True)
        episodes.append(EpisodeSignals(pooled=np.stack(pooled), positions=np.stack(positions)))
    config = MonitorConfig(alpha_notice=0.1, alpha_degrade=0.1, alpha_stop=0.1, calm_steps=3)
    return RuntimeMonitor(config, features=features).fit(episodes, frame_shape=SHAPE)


class Broken:
    """A model that fails in one of its duties."""

    def __init__(self, duty: str) -> None:
        self.duty = duty

    def _do(self, duty: str) -> None:
        if duty == self.duty:
            raise RuntimeError(f"cannot {duty}")

    def observe(self, frame: np.ndarray, action: np.ndarray) -> None:
        self._do("observe")

    def imagine(self, executed: np.ndarray | None = None) -> None:
        self._do("imagine")

    def reset(self) -> None:
        self._do("reset")

    def sibling(self) -> "Broken":
        return self


@pytest.mark.parametrize("duty", ["observe", "imagine", "reset"])
def test_failing_world_model_gives_a_stop(monitor: RuntimeMonitor, duty: str) -> None:
    other = monitor.sibling()
    other.claims = Broken(duty)
    other.reset()
    other.imagine()
    for seed in range(2):
        verdict = other.update(picture(seed), ACTION)
        other.imagine()
        assert verdict.level == Level.STOP
        assert verdict.causes == ("monitor.error",)
        assert verdict.evidence["monitor.error"].note == f"RuntimeError: cannot {duty}"


def test_invalid_executed_action_gives_a_stop_at_the_next_step(
    monitor: RuntimeMonitor,
) -> None:
    other = monitor.sibling()
    other.claims = Broken("nothing")
    other.update(picture(0), ACTION)
    other.imagine("forward")
    assert other.update(picture(1), ACTION).causes[0] == "monitor.error"
    for step in range(other.config.calm_steps):
        assert "monitor.error" not in other.update(picture(2 + step), ACTION).causes
