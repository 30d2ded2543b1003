"""Features and signals of real frames and rollouts, for the monitor."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import save
from torch import Tensor

from worldmodel.episodes.episode import Episode
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.monitors.channels.action import recent_actions
from worldmodel.monitors.channels.channel_set import LOOKS
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.channels.surprise import error_ratio
from worldmodel.monitors.verdict import Level
from worldmodel.networks.images import resize, to_model
from worldmodel.networks.tokenizer import BottleneckInput
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts
from worldmodel.rollouts.recalibrate import start_frames

MONITOR_EPSILON = 0.5
"""Error level, in latent standard deviations, of the confidence that the monitor uses."""
PROJECTED = 32
"""Maximum number of features of a position."""


class FrameFeatures:
    """Features of real frames for the appearance channel, from the tokenizer's encoder.

    They come from the last layer before the latents, which separates unfamiliar shapes better than
    the latents do (comparison: docs/monitor.md). Features of a position: the channels of the layer,
    or a fixed random projection if there are more than 32 (Johnson and Lindenstrauss 1984).
    Features of the frame: mean and standard deviation over the positions of each view.
    """

    def __init__(self, model: WorldModel) -> None:
        self.model = model
        self._encoder = BottleneckInput(model.tokenizer)

    @property
    def name(self) -> str:
        """Identifier of the features, with a hash of the tokenizer's weights and whitening."""
        state = {name: value.cpu().contiguous() for name, value in self._weights().items()}
        return f"{type(self).__name__} 2 {hashlib.sha256(save(state)).hexdigest()[:16]}"

    def __call__(
        self, frame: UInt8[np.ndarray, "*view height width 3"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "view h w c"]]:
        """Features of one frame at the model's size."""
        views = frame.reshape(-1, *frame.shape[-3:])
        pooled, positions = self.of_episode(torch.from_numpy(views)[None])
        return pooled[0], positions[0]

    @torch.inference_mode()
    def of_episode(
        self, frames: UInt8[Tensor, "time view height width 3"], *, chunk: int = 64
    ) -> tuple[Float[np.ndarray, "time d"], Float[np.ndarray, "time view h w c"]]:
        """Features of every frame of an episode, `chunk` frames at a time."""
        positions = torch.cat([self._positions(part) for part in torch.split(frames, chunk)])
        spread, mean = torch.std_mean(positions, dim=(2, 3), correction=0)
        pooled = rearrange(torch.cat([mean, spread], dim=-1), "t v c -> t (v c)")
        return pooled.cpu().numpy(), positions.cpu().numpy()

    def _weights(self) -> dict[str, Tensor]:
        """Weights that the features depend on."""
        return self.model.tokenizer.state_dict()

    def _positions(
        self, frames: UInt8[Tensor, "n view height width 3"]
    ) -> Float[Tensor, "n view h w c"]:
        pixels = to_model(frames.to(self._encoder.device).flatten(0, 1))
        layer = self._encoder(resize(pixels, self.model.config.image_size))
        return project(rearrange(layer, "(n v) c h w -> n v h w c", v=frames.shape[1]))


def project(features: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
    """Fixed random projection of more than `PROJECTED` features; fewer are returned unchanged."""
    channels = features.shape[-1]
    if channels <= PROJECTED:
        return features
    return features @ directions(channels).to(features)


@cache
def directions(channels: int) -> Float[Tensor, "{channels} d"]:
    """Directions of the random projection, the same in every process."""
    # NumPy guarantees the stream of RandomState; that of a Generator may change between versions.
    draw = np.random.RandomState(0).standard_normal((channels, PROJECTED)) / PROJECTED**0.5
    return torch.from_numpy(draw).float()


def confidence_maps(rollouts: EpisodeRollouts) -> Float[np.ndarray, "time view channel h w"]:
    """Confidence at `MONITOR_EPSILON`, the one that the monitor uses."""
    return rollouts.confidence[..., EPSILONS.index(MONITOR_EPSILON)].float().numpy()


def signals(features: FrameFeatures, episode: Episode, rollouts: EpisodeRollouts) -> EpisodeSignals:
    """Inputs of the monitor's channels for a recorded episode."""
    pooled, positions = features.of_episode(episode.frames)
    error, confidence = rollouts.error.half().numpy(), rollouts.confidence.numpy()
    valid = episode.batch.action_valid[0].numpy()
    actions = np.where(valid[:, None], episode.batch.actions[0].double().numpy(), np.nan)
    return EpisodeSignals(
        pooled=pooled,
        positions=positions,
        frames=episode.frames.numpy(),
        confidence=confidence_maps(rollouts),
        horizon=rollouts.horizon,
        error_ratio=error_ratio(error, confidence, np.array(EPSILONS)),
        actions=recent_actions(actions),
    )


def looks_familiar(
    features: FrameFeatures, rule: AlarmRule, episode: Episode, rollouts: EpisodeRollouts
) -> Bool[np.ndarray, " time"]:
    """Whether the appearance of each frame that a segment starts from raises no alarm.

    True for all of them if the monitor has no signal of appearance; False for other frames.
    """
    starts = np.unique(start_frames(rollouts)[rollouts.horizon > 0])
    familiar = np.zeros(len(rollouts.horizon), dtype=bool)
    if not len(starts):
        return familiar
    frames = episode.frames[starts]
    pooled, positions = features.of_episode(frames)
    scores = rule.channels_.scores(
        EpisodeSignals(pooled=pooled, positions=positions, frames=frames.numpy())
    )
    looks = {name: score for name, score in scores.items() if name in LOOKS}
    familiar[starts] = rule.levels(rule.alarm_score(looks)) == Level.TRUST if looks else True
    return familiar
