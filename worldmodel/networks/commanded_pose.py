"""Commanded pose of the gripper: the robot's state, carried forward by its actions.

A network that has to add up displacements from its own imagined pictures loses the arm after a few
frames. The commands say where the arm is.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

STATE = 10
"""Numbers of a canonical state: position (m), two columns of the rotation, gripper opening."""
ROW = 7
"""Numbers of a canonical command: displacement (m), rotation vector (rad), gripper opening."""
WAVES = (1.5, 3.0, 6.0)
"""Frequencies of the position's sines and cosines, per standard deviation."""
SMALLEST_STD = (0.01,) * 3 + (0.1,) * 6 + (0.5,)
"""Lower bounds of the scales, for robots that never turn, say."""
LARGEST = 5.0
"""Standardised poses and changes are clamped to this."""


class CommandedPose(nn.Module):
    """Integrates canonical actions from a state, and turns poses into inputs of a network.

    A pose is a row of 11 numbers: a canonical state, and 1 if it is known or 0 if it began from the
    mean state because the robot's state is unknown.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    num_features = 2 * STATE + 6 * len(WAVES) + 1
    """Width of the output of `features`."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1, 0, 1])
        self.register_buffer("mean", start)
        self.register_buffer("std", torch.ones(STATE))
        self.register_buffer("low", torch.full((3,), -torch.inf))
        self.register_buffer("high", torch.full((3,), torch.inf))

    @torch.no_grad()
    def fit(self, states: Float[Tensor, "n 10"]) -> CommandedPose:
        """Fit scales and the workspace, the box of all positions, to the states of the data."""
        if not states.isfinite().all():
            raise ValueError("`states` must be finite, got NaN or infinity.")
        self.mean.copy_(states.mean(0))
        self.std.copy_(states.std(0, correction=0).maximum(states.new_tensor(SMALLEST_STD)))
        self.low.copy_(states[:, :3].min(0).values)
        self.high.copy_(states[:, :3].max(0).values)
        return self

    def start(
        self, states: Float[Tensor, "batch 10"] | None, batch: int
    ) -> Float[Tensor, "batch 11"]:
        """Poses in `states`; the mean state where it is unknown (None, or NaN in a row)."""
        unknown = torch.cat((self.mean, self.mean.new_zeros(1))).expand(batch, -1)
        if states is None:
            return unknown
        known = torch.cat((states.to(self.mean), torch.ones_like(states[:, :1]).to(self.mean)), 1)
        return torch.where(known.isfinite().all(1, keepdim=True), known, unknown)

    def advance(
        self,
        pose: Float[Tensor, "batch 11"],
        action: Float[Tensor, "batch action"],
        valid: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch 11"]:
        """Pose after an action of one or more commands; unknown actions do not move it.

        A known position does not leave the workspace of the training data.
        """
        for row in torch.split(action * valid[:, None], ROW, dim=1):
            position, known = pose[:, :3] + row[:, :3], pose[:, -1:]
            inside = position.clamp(self.low.minimum(pose[:, :3]), self.high.maximum(pose[:, :3]))
            turned = turn(
                pose[:, 3:9].reshape(-1, 2, 3), row[:, None, 3:6].expand(-1, 2, -1)
            ).flatten(1)
            opening = torch.where(valid[:, None], row[:, 6:], pose[:, 9:10])
            place = torch.where(known > 0, inside, position)
            pose = torch.cat((place, turned, opening, known), 1)
        return pose

    def features(
        self, pose: Float[Tensor, "*batch 11"], before: Float[Tensor, "*batch 11"]
    ) -> Float[Tensor, "*batch features"]:
        """Network inputs for a frame: standardised pose, its change, and waves of the position."""
        state = ((pose[..., :-1] - self.mean) / self.std).clamp(-LARGEST, LARGEST)
        change = (2 * (pose - before)[..., :-1] / self.std).clamp(-LARGEST, LARGEST)
        phase = [wave * state[..., :3] for wave in WAVES]
        waves = [part for x in phase for part in (x.sin(), x.cos())]
        return torch.cat((state, change, *waves, pose[..., -1:]), -1)

    def track(
        self,
        states: Float[Tensor, "batch 10"] | None,
        actions: Float[Tensor, "batch rows action"],
        valid: Bool[Tensor, "batch rows"],
    ) -> Float[Tensor, "batch rows+1 11"]:
        """Poses at the first frame and after each action."""
        poses = [self.start(states, len(actions))]
        for row in range(actions.shape[1]):
            poses.append(self.advance(poses[-1], actions[:, row].to(self.mean), valid[:, row]))
        return torch.stack(poses, 1)


def turn(
    vectors: Float[Tensor, "*batch 3"], rotation_vector: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """Rotate vectors by rotation vectors (Rodrigues' formula).

    >>> turn(torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, torch.pi / 2])).round(decimals=4) + 0.0
    tensor([0., 1., 0.])
    """
    angle = rotation_vector.norm(dim=-1, keepdim=True)
    axis = rotation_vector / angle.clamp_min(1e-9)
    along = (axis * vectors).sum(-1, keepdim=True) * axis
    across = torch.linalg.cross(axis, vectors)
    return along + (vectors - along) * angle.cos() + across * angle.sin()


def pose_features(
    pose: CommandedPose,
    states: Float[Tensor, "batch 10"] | None,
    actions: Float[Tensor, "batch rows action"],
    valid: Bool[Tensor, "batch rows"],
) -> Float[Tensor, "batch rows+1 features"]:
    """Features of all frames of a clip; the first one has no change."""
    poses = pose.track(states, actions, valid)
    return pose.features(poses, torch.cat((poses[:, :1], poses[:, :-1]), 1))
