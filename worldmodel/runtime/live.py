"""The model beside a robot: what it claims of the next frame, checked when that frame comes."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldmodel.calibration.calibrated import Calibration
from worldmodel.imagination import Imagination, state_confidence
from worldmodel.model import WorldModel
from worldmodel.monitors.claims import PredictionCheck
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.networks.rollout import RolloutInputs
from worldmodel.rollouts.open_loop import CONTEXT, EPSILONS
from worldmodel.runtime.watch import claimed


def online_monitor(model: WorldModel, calibration: Calibration, *, seed: int = 0) -> RuntimeMonitor:
    """The fitted monitor for a robot, which lets the model imagine the frame to come.

    So its confidence and surprise channels run without a recording: `update` compares a frame with
    what was claimed of it, and `imagine` makes the next claim.
    """
    monitor = calibration.monitor.sibling()
    monitor.claims = OnlinePredictor(
        model, start=calibration.watch_start, horizon=calibration.watch_horizon, seed=seed
    )
    return monitor


class OnlinePredictor:
    """Predicts frame by frame what `Calibration.claims` does for an episode, in constant memory.

    The same model, seed, frames and actions give the same claims, but for rounding: a rollout
    starts from real frames `start`, `start + horizon` and so on.
    """

    def __init__(self, model: WorldModel, *, start: int, horizon: int, seed: int = 0) -> None:
        self.model, self.start, self.horizon, self.seed = model, start, horizon, seed
        self._device = model.tokenizer.mean.device
        self._levels = torch.tensor(EPSILONS, device=self._device)
        self._rollout: Imagination | None = None
        self.reset()

    def sibling(self) -> OnlinePredictor:
        """Another episode of the same model."""
        return OnlinePredictor(self.model, start=self.start, horizon=self.horizon, seed=self.seed)

    def reset(self) -> None:
        """Start a new episode, or go on after a gap: nothing is claimed of the next frame."""
        self._latents: deque[Tensor] = deque(maxlen=CONTEXT)
        self._actions: deque[np.ndarray] = deque(maxlen=CONTEXT)
        self._num_frames = 0
        self._end_rollout()
        self._claim: tuple[Tensor, Tensor] | None = None
        self._is_due = False

    @torch.inference_mode()
    def observe(
        self, frame: UInt8[np.ndarray, "*view height width 3"], action: Float[np.ndarray, " a"]
    ) -> PredictionCheck | None:
        """What had been claimed of this frame, and how wrong it was; None if nothing was.

        Args:
            frame: At the model's size.
            action: The model's action commanded at it; NaN where it is unknown.
        """
        self.imagine()
        views = torch.from_numpy(frame.reshape(-1, *frame.shape[-3:]))
        latent = self.model.encode(views[None])[0].half().cpu().float()  # as episodes keep them
        claim, self._claim = self._claim, None
        self._latents.append(latent)
        self._actions.append(action)
        self._num_frames += 1
        self._is_due = True
        if claim is None:
            return None
        imagined, confidence = claim
        error = (imagined - latent).abs().half().numpy()
        return claimed(confidence.half().numpy(), error, self._ahead(self._num_frames - 1))

    @torch.inference_mode()
    def imagine(self, executed: Float[np.ndarray, " a"] | None = None) -> None:
        """Imagine the frame after the one seen last, if that is not done yet.

        Args:
            executed: The action that the robot really got, if it is not the one that was observed.
        """
        if not self._is_due:
            return
        self._is_due = False
        if executed is not None:
            self._actions[-1] = executed
        if self._num_frames < self.start:
            return
        actions = torch.from_numpy(np.stack(self._actions)).float()[None].to(self._device)
        known = actions.isfinite().all(-1)
        actions = torch.where(known[..., None], actions, 0.0)
        ahead = self._ahead(self._num_frames)
        if ahead == 1:
            self._end_rollout()
            number = (self._num_frames - self.start) // self.horizon
            self._rollout = self._begin(actions, known, self.seed + number)
        assert self._rollout is not None  # the first claim is one ahead
        made = self._rollout.step(actions[:, -1:], known[:, -1:])
        network, head, stated = self.model.dynamics, self.model.confidence, made.confidence
        if head is not None:
            stated = state_confidence(
                network, head, made.features[:, None], self._levels, first_horizon=ahead
            ).squeeze(1)
        assert stated is not None  # who has no head states it of its own
        self._claim = made.latent[0].cpu(), stated[0].cpu()

    def _end_rollout(self) -> None:
        if self._rollout is not None:
            self._rollout.end()
            self._rollout = None

    def _begin(self, actions: Tensor, known: Tensor, seed: int) -> Imagination:
        context = torch.stack(tuple(self._latents))[None].to(self._device)
        inputs = RolloutInputs(context=context, actions=actions, action_valid=known, seeds=[seed])
        model = self.model
        return Imagination(model.dynamics, inputs, sampling=model.sampling, epsilon=self._levels)

    def _ahead(self, index: int) -> int:
        """How far ahead frame `index` is imagined."""
        return (index - self.start) % self.horizon + 1
