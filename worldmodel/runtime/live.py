"""Online prediction: the model predicts the next frame, which is checked when it arrives."""

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
    """The fitted monitor with an `OnlinePredictor`, to run on a robot.

    Its confidence and surprise channels then need no recording: `update` compares a frame with its
    prediction, and `imagine` predicts the next frame.
    """
    monitor = calibration.monitor.sibling()
    monitor.claims = OnlinePredictor(
        model, start=calibration.watch_start, horizon=calibration.watch_horizon, seed=seed
    )
    return monitor


class OnlinePredictor:
    """Frame-by-frame counterpart of `Calibration.claims`, in constant memory.

    The same model, seed, frames and actions give the same predictions up to rounding: rollout
    segments start at frames `start`, `start + horizon` and so on.
    """

    def __init__(self, model: WorldModel, *, start: int, horizon: int, seed: int = 0) -> None:
        if model.config.pairing == "same":
            raise ValueError(
                "The model sees every frame with the action commanded at it, which is not known "
                "when the frame has to be predicted: it cannot run live. Import its checkpoint "
                "with `--pairing next`, or watch recordings."
            )
        self.model, self.start, self.horizon, self.seed = model, start, horizon, seed
        self._device = model.tokenizer.mean.device
        self._levels = torch.tensor(EPSILONS, device=self._device)
        self._rollout: Imagination | None = None
        self.reset()

    def sibling(self) -> OnlinePredictor:
        """Predictor with the same settings for another robot."""
        return OnlinePredictor(self.model, start=self.start, horizon=self.horizon, seed=self.seed)

    def reset(self) -> None:
        """Start a new episode, or continue after a gap: the next frame has no prediction."""
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
        """Compare a frame with its prediction; None if it had none.

        Args:
            frame: Frame at the model's size.
            action: Commanded action, in the model's spec; NaN if it is unknown.
        """
        self.imagine()
        views = torch.from_numpy(frame.reshape(-1, *frame.shape[-3:]))
        latent = self.model.encode(views[None])[0].half().cpu().float()  # rounded as in episodes
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
        """Predict the frame after the last observed one, once.

        Args:
            executed: Executed action, if it differs from the observed one.
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
        assert self._rollout is not None  # the first prediction of a segment begins it
        predicted = self._rollout.step(actions[:, -1:], known[:, -1:])
        network, head, confidence = self.model.dynamics, self.model.confidence, predicted.confidence
        if head is not None:
            confidence = state_confidence(
                network, head, predicted.features[:, None], self._levels, first_horizon=ahead
            ).squeeze(1)
        assert confidence is not None  # networks without a head state their own confidence
        self._claim = predicted.latent[0].cpu(), confidence[0].cpu()

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
        """Horizon at which frame `index` is predicted."""
        return (index - self.start) % self.horizon + 1
