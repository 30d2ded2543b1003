"""Training objectives of the dynamics, the confidence head and the success classifiers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.episodes.clips import LatentBatch
from worldmodel.imagination import Network, frames, to_tokens
from worldmodel.model import WorldModel
from worldmodel.networks.commanded_pose import pose_features
from worldmodel.networks.confidence_heads import masked_mean
from worldmodel.networks.dynamics import (
    Dynamics,
    Estimate,
    FrameInputs,
    only_valid,
    two_stream_mask,
)
from worldmodel.networks.noise_schedule import (
    add_noise,
    posterior_under_persistence,
    training_levels,
)
from worldmodel.networks.rollout import RolloutInputs, leading_actions, previous_frames
from worldmodel.networks.success import ActionSuccessClassifier, SuccessClassifier
from worldmodel.training.randomness import StepRandomness


class DynamicsObjective(nn.Module):
    """Denoise every frame of a clip given the earlier frames, in one pass with two streams.

    With probability `own_context` the context consists of the model's own one-step predictions, up
    to `passes` frames deep, as in a rollout. The target is still the true frame.

    With probability `image_share` a clip is treated as independent images: its frames do not attend
    to each other, and each is denoised like a first frame. Images teach the appearance of scenes,
    videos the effect of actions.

    With probability `action_dropout` a frame is denoised without its own action, given the earlier
    ones. Classifier-free guidance needs this at sampling time.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        own_context: float,
        passes: int,
        pure_noise: float = 0.5,
        action_dropout: float = 0.0,
        image_share: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= action_dropout < 1:
            raise ValueError(
                f"`action_dropout` must be at least 0 and below 1, got {action_dropout}."
            )
        if not 0 <= image_share < 1:
            raise ValueError(f"`image_share` must be at least 0 and below 1, got {image_share}.")
        self.action_dropout = action_dropout
        self.image_share = image_share
        self.dynamics = dynamics
        self.own_context = own_context
        self.passes = passes
        self.pure_noise = pure_noise

    def estimate(
        self,
        batch: LatentBatch,
        context: Tensor,
        noisy: Tensor,
        level: Float[Tensor, "batch time"],
        dropped: Bool[Tensor, "batch time"] | None = None,
    ) -> Estimate:
        """Denoise the noisy stream, given a clean stream of `context` frames.

        Where `dropped` is true, the noisy frame's own action is masked.
        """
        num_frames = context.shape[1]
        actions, valid = leading_actions(batch.actions[:, :-1], batch.action_valid[:, :-1])
        previous, starts_segment = previous_frames(context), batch.starts_segment
        if starts_segment is not None:
            previous = where_segment_starts(starts_segment, torch.zeros_like(previous), previous)
            valid = valid & ~starts_segment
        inputs = FrameInputs(
            noisy=torch.cat((context, noisy), 1),
            previous=previous.repeat(1, 2, 1, 1, 1, 1),
            level=torch.cat((torch.zeros_like(level), level), 1),
            actions=actions.repeat(1, 2, 1),
            action_valid=torch.cat((valid, valid if dropped is None else valid & ~dropped), 1),
            pose=self._pose(batch, dropped),
            view_valid=None if batch.view_valid is None else batch.view_valid.repeat(1, 2, 1),
        )
        positions = torch.arange(num_frames, device=noisy.device)
        mask = two_stream_mask(positions, self.dynamics.config.context)
        if starts_segment is not None:
            each = mask & same_segment_mask(starts_segment).repeat(1, 2, 2)
            mask = repeat(each, "b q k -> (b n) 1 q k", n=self.dynamics.config.tokens)
        both = self.dynamics(inputs, mask=mask, positions=positions.repeat(2))
        return Estimate(
            both.correction[:, num_frames:],
            both.clean[:, num_frames:],
            both.features[:, num_frames:],
        )

    def _pose(self, batch: LatentBatch, dropped: Tensor | None) -> Tensor | None:
        """Pose features of both streams; zeros in the noisy one where the action is dropped."""
        if self.dynamics.pose is None:
            return None
        states = None if batch.states is None else batch.states[:, 0]
        features = pose_features(
            self.dynamics.pose, states, batch.actions[:, :-1], batch.action_valid[:, :-1]
        )
        noisy = features if dropped is None else features.masked_fill(dropped[..., None], 0.0)
        return torch.cat((features, noisy), 1)

    @torch.no_grad()
    def own_predictions(
        self, batch: LatentBatch, passes: int, randomness: StepRandomness
    ) -> Tensor:
        """Context made of the model's own predictions after `passes` one-step passes."""
        context = batch.latents
        level = torch.ones(context.shape[:2], device=context.device)
        for _ in range(passes):
            predicted = self.estimate(batch, context, randomness.normal_like(context), level).clean
            context = torch.cat((batch.latents[:, :1], predicted[:, 1:].to(context)), 1)
            if batch.starts_segment is not None:
                context = where_segment_starts(batch.starts_segment, batch.latents, context)
            if batch.view_valid is not None:
                context = only_valid(context, batch.view_valid)
        return context

    def dropped_actions(
        self, num_items: int, num_frames: int, randomness: StepRandomness
    ) -> Bool[Tensor, "batch time"]:
        """Mask of the frames that are denoised without their own action."""
        device = randomness.generator.device
        uniform = randomness.per_item(
            num_items,
            lambda n: torch.rand((n, num_frames), generator=randomness.generator, device=device),
        )
        return uniform < self.action_dropout

    def forward(
        self, batch: LatentBatch, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the correction, weighted towards positions that change."""
        context = latents = batch.latents
        b, t = latents.shape[:2]
        if self.image_share:
            batch = batch.as_single_frames(
                randomness.uniform(b).to(latents.device) < self.image_share
            )
        # All processes decide alike: a step takes as long as its slowest process.
        if randomness.random.random() < self.own_context:
            passes = 1 + randomness.random.randrange(min(self.passes, t - 1))
            context = self.own_predictions(batch, passes, randomness)
        level = randomness.per_item(
            b,
            lambda n: training_levels(
                (n, t), pure_noise=self.pure_noise, generator=randomness.generator
            ),
        ).to(latents)
        noisy = add_noise(latents, randomness.normal_like(latents), level)
        dropped = self.dropped_actions(b, t, randomness) if self.action_dropout else None
        estimate = self.estimate(batch, context, noisy, level, dropped)
        scale = self.dynamics.change_std[:, None, None]
        previous = previous_frames(context)
        weight = activity_weight(latents) * object_weight(batch)
        if batch.starts_segment is not None:
            # A frame without a predecessor has its error in units of latents, not of changes.
            previous = where_segment_starts(
                batch.starts_segment, torch.zeros_like(previous), previous
            )
            weight = where_segment_starts(batch.starts_segment, scale.square(), weight)
        mean, std = posterior_under_persistence(noisy, previous, level, scale)
        target = (latents - mean) / std
        weight = weight[:, 1:]
        error = weight * (estimate.correction.float() - target).square()[:, 1:]
        baseline = weight * target.square()[:, 1:]
        view_mask = None if batch.view_valid is None else batch.view_valid[:, 1:]
        loss = mean_over_views(error, view_mask)
        if self.dynamics.config.views > 1:
            # All processes need gradients for the same weights, even where no camera is missing.
            loss = loss + 0 * self.dynamics.missing.sum()
        return loss, {"relative_error": loss.detach() / mean_over_views(baseline, view_mask)}


def where_segment_starts(
    starts_segment: Bool[Tensor, "batch time"], yes: Tensor, no: Tensor
) -> Tensor:
    """`yes` at the first frame of each segment, `no` elsewhere."""
    return torch.where(starts_segment[:, :, None, None, None, None], yes, no)


def same_segment_mask(
    starts_segment: Bool[Tensor, "batch time"],
) -> Bool[Tensor, "batch time time"]:
    """Mask of frame pairs that belong to the same segment of consecutive frames.

    >>> same_segment_mask(torch.tensor([[False, False, True]])).int()
    tensor([[[1, 1, 0],
             [1, 1, 0],
             [0, 0, 1]]], dtype=torch.int32)
    """
    segment = starts_segment.cumsum(1)
    return segment[:, :, None] == segment[:, None, :]


def mean_over_views(
    values: Float[Tensor, "batch time view channel h w"],
    view_mask: Bool[Tensor, "batch time view"] | None,
) -> Float[Tensor, ""]:
    """Mean over the views in `view_mask`; None: all views.

    >>> values = torch.tensor([1.0, 5.0]).reshape(1, 1, 2, 1, 1, 1)
    >>> mean_over_views(values, torch.tensor([[[True, False]]]))
    tensor(1.)
    """
    if view_mask is None:
        return values.mean()
    per_view = only_valid(values, view_mask).mean((3, 4, 5))
    return per_view.sum() / view_mask.sum().clamp_min(1)


def activity_weight(latents: Float[Tensor, "batch time view channel h w"]) -> Tensor:
    """Weight of each position by its change within the clip: 1/4 to 4, mean about 1.

    It depends on the position, not on the frame, so it hardly biases predictions towards motion.
    """
    spread = latents.std(1, keepdim=True).mean(3, keepdim=True)
    return (spread / spread.mean((-2, -1), keepdim=True).clamp_min(1e-6)).clamp(0.25, 4.0)


OBJECT_WEIGHT = 5.0
"""Additional weight of the position that shows the object's centre."""
OBJECT_RADIUS = 0.1
"""Standard deviation of that weight, as a share of the image's side."""


def object_weight(batch: LatentBatch) -> Float[Tensor, "batch time view 1 h w"]:
    """Weight 1 everywhere, and up to 1 + `OBJECT_WEIGHT` around the object in the first view."""
    b, t, v, _, h, w = batch.latents.shape
    weight = batch.latents.new_ones(b, t, v, 1, h, w)
    if batch.objects is None:
        return weight
    place = batch.objects[..., 3:].to(weight)
    rows = ((torch.arange(h, device=place.device) + 0.5) / h)[:, None]
    columns = (torch.arange(w, device=place.device) + 0.5) / w
    squares = (columns - place[..., 0, None, None]) ** 2 + (rows - place[..., 1, None, None]) ** 2
    weight[:, :, 0, 0] += OBJECT_WEIGHT * torch.exp(-squares / (2 * OBJECT_RADIUS**2)).nan_to_num()
    return weight


class ConfidenceObjective(nn.Module):
    """Train the confidence head on the model's own rollouts; the dynamics stay frozen.

    The training event equals the deployed one: the error of final latents from the model's own
    sampler, at every horizon of an open-loop rollout. A rollout's first frame and its number of
    real frames are random; it ends with the clip.
    """

    def __init__(self, model: WorldModel, *, longest_start: int) -> None:
        super().__init__()
        assert model.confidence is not None, (
            "nothing to train: the network has its own confidence head"
        )
        self.head = model.confidence
        self.longest_start = longest_start
        self.sampling = model.sampling
        # Hide the dynamics in a function: outside the module tree they are not copied, trained,
        # averaged or checkpointed.
        frozen = model.dynamics.eval().requires_grad_(False)
        self.dynamics: Callable[[], Network] = lambda: frozen

    def forward(
        self, batch: LatentBatch, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean proper score over rollouts, horizons and subpatches; logs the mean error."""
        num_frames = batch.latents.shape[1]
        begin = randomness.random.randrange(num_frames - 1)
        start = 1 + randomness.random.randrange(min(self.longest_start, num_frames - 1 - begin))
        batch = batch.cut(num_frames - begin, start=begin)
        inputs = RolloutInputs(
            context=batch.latents[:, :start],
            actions=batch.actions[:, :-1],
            action_valid=batch.action_valid[:, :-1],
            seeds=randomness.seeds(len(batch)),
            view_valid=None if batch.view_valid is None else batch.view_valid[:, :start],
            first_state=None if batch.states is None else batch.states[:, 0],
        )
        # Deployed rollouts are float32, so these are too, even when training in bf16.
        with torch.autocast(batch.latents.device.type, enabled=False):
            return self._score(batch, inputs, randomness)

    def _score(
        self, batch: LatentBatch, inputs: RolloutInputs, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        dynamics = self.dynamics().to(batch.latents.device)
        start = inputs.context.shape[1]
        losses, errors = [], []
        for index, frame in enumerate(frames(dynamics, inputs, sampling=self.sampling)):
            # Tensors made in inference mode cannot be saved for a backward pass; clones can.
            features, latent = frame.features.clone(), frame.latent.clone()
            error = to_tokens((latent - batch.latents[:, start + index]).abs(), dynamics).float()
            horizon = torch.full((len(features),), index + 1.0, device=features.device)
            counted = counted_tokens(batch, inputs, start + index, tokens=error.shape[1])
            losses.append(
                self.head.loss(
                    features, horizon, error, generator=randomness.generator, counted=counted
                )
            )
            errors.append(masked_mean(error, counted))
        figures = {"mean_error": torch.stack(errors).mean()}
        return torch.stack(losses).mean(), figures


def counted_tokens(
    batch: LatentBatch, inputs: RolloutInputs, frame: int, *, tokens: int
) -> Bool[Tensor, "batch tokens"] | None:
    """Mask of the tokens of views that were imagined and are valid; None: all tokens."""
    if batch.view_valid is None or inputs.imagined_views is None:
        return None
    both = inputs.imagined_views[:, 0] & batch.view_valid[:, frame]
    return repeat(both, "b v -> b (v n)", n=tokens // both.shape[1])


class SuccessObjective(nn.Module):
    """Binary cross-entropy of both success classifiers; batches are whole episodes.

    Latents get noise of up to `latent_noise`, of another strength in every frame: imagined latents
    are never exact.
    """

    latent_noise = 0.1

    def __init__(self, judge: SuccessClassifier, action_judge: ActionSuccessClassifier) -> None:
        super().__init__()
        self.judge = judge
        self.action_judge = action_judge

    def forward(
        self, batch: LatentBatch, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of both classifiers' losses; logs the accuracy of each."""
        strength = self.latent_noise * randomness.frame_uniform(batch.latents)
        noisy = batch.latents + strength * randomness.normal_like(batch.latents)
        if batch.view_valid is not None:
            noisy = only_valid(noisy, batch.view_valid)
        per_frame = self.judge(noisy, batch.task).float()
        known = ~batch.success.isnan()
        frame_loss = F.binary_cross_entropy_with_logits(per_frame[known], batch.success[known])
        episode = self.action_judge(batch.actions, batch.task).float()
        outcome = batch.success[:, -1]
        loss = frame_loss + F.binary_cross_entropy_with_logits(episode, outcome)
        return loss, {
            "frame_accuracy": ((per_frame > 0) == (batch.success > 0.5))[known].float().mean(),
            "episode_accuracy_from_actions": ((episode > 0) == (outcome > 0.5)).float().mean(),
        }
