"""Gymnasium environment of the tabletop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space
from jaxtyping import Float32, UInt8

from worldmodel.datasets.actions import CANONICAL
from worldmodel.envs.factors import Domain, shifted
from worldmodel.envs.layout import Distractor, Layout, draw_distractors, draw_layout
from worldmodel.envs.registry import lookup
from worldmodel.envs.renderers import make_renderer, resolve_renderer

if TYPE_CHECKING:
    from worldmodel.envs.simulation import Simulation

Observation = dict[str, np.ndarray]

ACTION_HIGH = np.array([0.12] * 3 + [0.6] * 3 + [1], np.float32)
"""Largest displacement (m), rotation-vector component (rad) and gripper opening per action."""
ACTION_LOW = np.append(-ACTION_HIGH[:6], np.float32(0))
ZONE_RADIUS = 0.05
"""Distance (m) from the zone's centre within which the object counts as delivered."""


class TabletopEnv(gymnasium.Env[Observation, np.ndarray]):
    """A WidowX-like arm, a block and a zone; canonical 7-D actions at 5 Hz.

    Observations are `image` (uint8 [height, width, 3]) and `state` (float32 [10], canonical).
    `size` is the image's height and width, or one number for both. Actions beyond the action space
    are clipped to it; the gripper opens above 0.5. `info["success"]` is the success of the task at
    this step, and the reward is the same value as a float. `reset` takes `options` with a `factor`
    and a `severity` (0 to 3), or with a `domain`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 (Gymnasium's name)
    action_spec = CANONICAL

    def __init__(
        self,
        task: str = "pick_place",
        size: int | tuple[int, int] = 64,
        renderer: str = "auto",
        terminate_on_success: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self._succeeded = lookup("task", task, TASKS)
        height, width = _checked_size(size)
        backend = resolve_renderer(renderer)
        from worldmodel.envs.simulation import Simulation  # MuJoCo reads MUJOCO_GL on import

        self.task = task
        self.terminate_on_success = terminate_on_success
        self.render_mode = render_mode
        self.domain = Domain()
        self.simulation = Simulation(height, width)
        self.renderer = make_renderer(backend, self.simulation.model, height, width)
        image = Box(0, 255, (height, width, 3), np.uint8)
        state = Box(np.array([-1] * 9 + [0], np.float32), np.ones(10, np.float32))
        self.observation_space: Space[Any] = Dict({"image": image, "state": state})
        self.action_space = Box(ACTION_LOW, ACTION_HIGH)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the same seed gives the same layout under every factor."""
        super().reset(seed=seed)
        self._episode = int(self.np_random.integers(2**63))
        self.domain = _domain(options or {}, self._generator(0))
        self.simulation.reset(self.domain, self._layout(), self._distractors())
        return self._observe(), {"success": self.success()}

    def change(self, options: dict[str, Any]) -> Observation:
        """Change the appearance during an episode; moving bodies keep their state.

        `options` are those of `reset`; factors that they do not shift keep their appearance.
        """
        self.domain = _domain(options, self._generator(0))
        self.simulation.dress(self.domain, self._distractors())
        return self._observe()

    def _generator(self, number: int) -> np.random.Generator:
        """Independent generator of appearance (0), layout (1) or clutter (2)."""
        return np.random.default_rng([self._episode, number])

    def _layout(self) -> Layout:
        return draw_layout(self._generator(1))

    def _distractors(self) -> list[Distractor]:
        count, pool = self.domain.num_distractors, self.domain.distractor_pool
        return draw_distractors(count, pool, self._layout(), self._generator(2))

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Simulate 0.2 s under a canonical action."""
        self.simulation.arm.step(self.simulation.data, _checked(action))
        success = self.success()
        terminated = success and self.terminate_on_success
        return self._observe(), float(success), terminated, False, {"success": success}

    def success(self) -> bool:
        """Whether the task is currently solved."""
        return self._succeeded(self.simulation)

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """Image of the last observation."""
        return self._image.copy()

    def close(self) -> None:
        """Free the renderer."""
        self.renderer.close()

    def _observe(self) -> Observation:
        self._image = self.renderer.render(self.simulation.data, self.domain)
        return {"image": self._image.copy(), "state": self.simulation.state()}


def _domain(options: dict[str, Any], rng: np.random.Generator) -> Domain:
    unexpected = set(options) - {"factor", "severity", "domain"}
    if unexpected:
        raise ValueError(
            f"`options` takes `factor`, `severity` and `domain`, got {sorted(unexpected)}."
        )
    if "domain" in options:
        if not isinstance(options["domain"], Domain):
            raise ValueError(f"`domain` must be a Domain, got {options['domain']!r}.")
        return options["domain"]
    return shifted(options.get("factor", "nominal"), options.get("severity", 1), rng)


def _checked(action: np.ndarray) -> Float32[np.ndarray, " 7"]:
    action = np.asarray(action, np.float32)
    if action.shape != (7,):
        raise ValueError(f"`action` must have shape (7,), got {action.shape}.")
    if not np.isfinite(action).all():
        raise ValueError(f"`action` must be finite, got {action.tolist()}.")
    return np.clip(action, ACTION_LOW, ACTION_HIGH)


def _checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"`size` must be at least 1 pixel, got {size}.")
    return height, width


def _delivered(simulation: Simulation) -> bool:
    scene = simulation.scene()
    near = np.linalg.norm(scene.object[:2] - scene.zone) < ZONE_RADIUS
    return bool(near and scene.object[2] < 0.06)


def _lifted(simulation: Simulation) -> bool:
    return bool(simulation.scene().object[2] > 0.09)


def _placed(simulation: Simulation) -> bool:
    """Whether the object is in the zone, released, and the gripper has moved away."""
    height = simulation.arm.end_effector(simulation.data)[0][2]
    clear = height > simulation.scene().object[2] + 0.03
    return _delivered(simulation) and simulation.arm.opening > 0.5 and bool(clear)


TASKS: dict[str, Callable[[Simulation], bool]] = {
    "pick_place": _placed,
    "push": _delivered,
    "lift": _lifted,
}
"""Task -> success test."""
