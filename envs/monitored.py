"""Environment wrapper with a runtime monitor and a fallback policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, SupportsFloat, TypeVar

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from jaxtyping import Float32, UInt8

from worldmodel.monitors.alert_log import Alert
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Level, Verdict

ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")


def image_of(observation: Any) -> UInt8[np.ndarray, "height width 3"]:
    """Image of a tabletop observation."""
    return observation["image"]


def hold_still(observation: Any) -> Float32[np.ndarray, " 7"]:
    """Fallback for the tabletop: hold the pose and the gripper opening."""
    action = np.zeros(7, np.float32)
    action[6] = observation["state"][9]
    return action


def unchanged(action: Any) -> Any:
    """Identity, for actions that are already canonical."""
    return action


class MonitoredEnv(
    gymnasium.Wrapper[ObsType, ActType, ObsType, ActType], Generic[ObsType, ActType]
):
    """Environment that monitors every frame and its action before the action is executed.

    A verdict of `level` or above hands over to `fallback`, which chooses this and all later actions
    of the episode, even if the level falls again. Observations, rewards and terminations are
    unchanged. `info` gains `verdict` (for the frame of the action; None after `reset`), `trust`
    (mean of the trust map, 0 without one) and `handed_over`.
    """

    def __init__(
        self,
        env: gymnasium.Env[ObsType, ActType],
        monitor: RuntimeMonitor,
        fallback: Callable[[ObsType], ActType],
        *,
        frame: Callable[[ObsType], object] = image_of,
        canonical: Callable[[ActType], object] = unchanged,
        level: Level = Level.STOP,
        on_alert: Callable[[Alert], object] | None = None,
    ) -> None:
        """Wrap an environment; the defaults fit the tabletop.

        Args:
            env: Any environment whose observations hold frames.
            monitor: Fitted for these frames.
            fallback: Observation -> action, called from the frame of the handover on.
            frame: Observation -> uint8 [height, width, 3], or [view, height, width, 3] for several
                cameras.
            canonical: Action -> canonical action, or None if it has no canonical form.
            level: Level that hands over; `Level.TRUST` hands over at once.
            on_alert: Called at once with every verdict above TRUST.
        """
        super().__init__(env)
        self.monitor = monitor
        self.fallback = fallback
        self.frame = frame
        self.canonical = canonical
        self.level = level
        self.on_alert = on_alert
        self.handed_over = False
        self._num_episodes = self._num_steps = 0
        self._observation: ObsType | None = None
        self._frame: object = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        """Start an episode and return control to the policy."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.monitor.reset()
        self.handed_over = False
        self._num_episodes, self._num_steps = self._num_episodes + 1, 0
        self._remember(observation)
        return observation, {**info, **self._monitor_info(None)}

    def step(self, action: ActType) -> tuple[ObsType, SupportsFloat, bool, bool, dict[str, Any]]:
        """Update the monitor, then execute the action or that of the fallback."""
        if self._observation is None:
            raise ResetNeeded("Call `reset` before `step`.")
        if self.handed_over:
            action = self.fallback(self._observation)
        verdict = self._judge(action)
        if not self.handed_over and verdict.level >= self.level:
            self.handed_over = True
            action = self.fallback(self._observation)
        self.monitor.imagine(self.canonical(action))
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._remember(observation)
        info = {**info, **self._monitor_info(verdict)}
        return observation, reward, terminated, truncated, info

    def _remember(self, observation: ObsType) -> None:
        """Copy the frame, so that the monitor does not see what a policy draws on it."""
        self._observation, self._frame = observation, copy.deepcopy(self.frame(observation))

    def _judge(self, action: ActType) -> Verdict:
        verdict = self.monitor.update(self._frame, self.canonical(action))
        if self.on_alert and verdict.level > Level.TRUST:
            episode = str(self._num_episodes - 1)
            self.on_alert(Alert(episode=episode, step=self._num_steps, verdict=verdict))
        self._num_steps += 1
        return verdict

    def _monitor_info(self, verdict: Verdict | None) -> dict[str, Any]:
        trust_map = None if verdict is None else verdict.trust_map
        trust = 0.0 if trust_map is None else float(trust_map.mean())
        return {"verdict": verdict, "trust": trust, "handed_over": self.handed_over}
