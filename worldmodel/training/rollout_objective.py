"""Training of the recurrent network by backpropagation through its own rollouts."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.episodes.clips import LatentBatch
from worldmodel.networks.commanded_pose import pose_features
from worldmodel.networks.confidence_heads import masked_mean
from worldmodel.networks.dynamics import only_valid
from worldmodel.networks.recurrent import RecurrentDynamics
from worldmodel.networks.rollout import leading_actions
from worldmodel.networks.success import of_task
from worldmodel.training.objectives import activity_weight, mean_over_views, object_weight
from worldmodel.training.randomness import StepRandomness

HUBER = 0.5
"""Error, in latent standard deviations, from which the loss grows linearly."""
POSITION_SHARE = 0.05
SUCCESS_SHARE = 0.03
"""Weights of the auxiliary losses of object position and success."""


class RolloutObjective(nn.Module):
    """Roll out a clip from its first frames and compare every predicted frame with the truth.

    Half of the clips begin with one real frame, the others with up to `longest_start`. A share
    `unknown_states` of the clips does not know the robot's state, so that the network also runs
    where nobody reports it.
    """

    def __init__(
        self,
        dynamics: RecurrentDynamics,
        *,
        longest_start: int,
        unknown_states: float = 0.15,
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.longest_start = longest_start
        self.unknown_states = unknown_states

    def forward(
        self, batch: LatentBatch, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted Huber loss of the rollout, plus auxiliary losses where labels are known."""
        latents, view_mask = batch.latents, batch.view_valid
        if view_mask is not None:
            latents = only_valid(latents, view_mask)
        conditions = self._conditions(batch, randomness)
        real = self._real_frames(batch, randomness)
        predicted, features = self.dynamics.unroll(latents, conditions, real, view_mask)
        weight = (activity_weight(latents).clamp(0.5, 2) * object_weight(batch))[:, 1:]
        seen = None if view_mask is None else view_mask[:, 1:]

        def huber(guess: Tensor) -> Tensor:
            each = F.smooth_l1_loss(guess, latents[:, 1:], beta=HUBER, reduction="none")
            return mean_over_views(weight * each, seen)

        loss = huber(predicted)
        figures = {"relative_error": loss.detach() / huber(latents[:, :1].expand_as(predicted))}
        position, success = self.dynamics.readout(predicted, features)
        extra, more = self._auxiliary(batch, position.float(), success.float())
        return loss + extra, figures | more

    def _conditions(self, batch: LatentBatch, randomness: StepRandomness) -> Tensor:
        actions, valid = batch.actions[:, :-1], batch.action_valid[:, :-1]
        pose = None
        if self.dynamics.pose is not None:
            states = None
            if batch.states is not None:
                hidden = randomness.uniform(len(batch)).to(batch.states) < self.unknown_states
                states = batch.states[:, 0].masked_fill(hidden[:, None], torch.nan)
            pose = pose_features(self.dynamics.pose, states, actions, valid)
        return self.dynamics.conditions(*leading_actions(actions, valid), pose)

    def _real_frames(
        self, batch: LatentBatch, randomness: StepRandomness
    ) -> Bool[Tensor, "batch time"]:
        """Mask of the frames that the rollouts see."""
        uniform = randomness.uniform(len(batch)).to(batch.actions)
        # Half of the clips: 1; the others: 1 to `longest_start`, all equally likely.
        count = 1 + ((2 * uniform - 1).clamp_min(0) * self.longest_start).long()
        return torch.arange(batch.latents.shape[1], device=count.device) < count[:, None]

    def _auxiliary(
        self, batch: LatentBatch, position: Tensor, success: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = 0 * position.sum() + 0 * success.sum(), {}
        if batch.objects is not None:
            truth = batch.objects[:, 1:, :3]
            known = truth.isfinite().all(-1)
            scale = self.dynamics.readout.object_std
            error = (position - truth.nan_to_num()) / scale
            each = F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.3, reduction="none")
            loss = loss + POSITION_SHARE * masked_mean(each, known)
            distance = (position - truth.nan_to_num()).norm(dim=-1)
            figures["object_error_m"] = masked_mean(distance[..., None], known).detach()
        labels = batch.success[:, 1:]
        known = labels.isfinite()
        logits = of_task(success, batch.task)
        each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
        return loss + SUCCESS_SHARE * masked_mean(each[..., None], known), figures
