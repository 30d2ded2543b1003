"""A world model's monitor: features for its channels, fitted on nominal episodes, and its files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float64, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import save
from torch import Tensor

from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel, resize
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.causes.classifier import CauseModel
from worldmodel.monitors.channels.action import recent_actions
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.channels.surprise import error_ratio
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.reliability.counts import Reliability
from worldmodel.monitors.reliability.recalibration import CameraRecalibration, HorizonRecalibration
from worldmodel.monitors.validity import Artefact
from worldmodel.networks.tokenizer import BottleneckInput, to_model, to_pixels
from worldmodel.rollouts.open_loop import (
    EPSILONS,
    START,
    EpisodeRollouts,
    count_reliability,
    roll_out,
)

LOG = logging.getLogger(__name__)
MONITOR_EPSILON = 0.5
"""Error level, in latent standard deviations, whose confidence the monitor looks at."""
WATCH_HORIZON = 4
"""Frames ahead that the monitor lets the model imagine. Claims of more are too wide to be broken:
at 16, action faults were found about ten frames later."""
WATCH_START = 1
"""Real frames before the first one that it imagines: faults of the first frames count, too."""
CAUSE_EPISODES = 60
"""Familiar episodes that causes are learned from."""
CLIP_FRAMES = 8
"""Frames of each that are edited."""
PROJECTED = 32
"""Most features of a position."""
RECALIBRATION = "recalibration.safetensors"

Curves = HorizonRecalibration | CameraRecalibration
"""Of a model with one camera, and with several, which go by their place in the view axis."""


def to_model_size(
    frames: UInt8[Tensor, "*batch h w 3"], model: WorldModel
) -> UInt8[Tensor, "*batch height width 3"]:
    """Frames at the size the model works at: what the monitor is shown."""
    return to_pixels(resize(to_model(frames), model.config.image_size))


class FrameFeatures:
    """Features of real frames for the appearance channel, from the tokenizer's encoder alone.

    Of its last layer before the latents: those keep what a decoder needs to paint the familiar,
    that layer still tells an unfamiliar shape apart (docs/monitor.md has the comparison). Position:
    the layer's channels, or a fixed random projection of them where they are more than 32 (Johnson
    and Lindenstrauss 1984). Whole frame: mean and standard deviation over each view's positions.
    """

    def __init__(self, model: WorldModel) -> None:
        self.model = model
        self._encoder = BottleneckInput(model.tokenizer)

    @property
    def name(self) -> str:
        """Of these features alone: with a hash of the tokenizer's weights and whitening."""
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
        """What the features depend on."""
        return self.model.tokenizer.state_dict()

    def _positions(
        self, frames: UInt8[Tensor, "n view height width 3"]
    ) -> Float[Tensor, "n view h w c"]:
        pixels = to_model(frames.to(self._encoder.device).flatten(0, 1))
        layer = self._encoder(resize(pixels, self.model.config.image_size))
        return project(rearrange(layer, "(n v) c h w -> n v h w c", v=frames.shape[1]))


def project(features: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
    """`PROJECTED` random directions of features that have more; the same in every process."""
    channels = features.shape[-1]
    if channels <= PROJECTED:
        return features
    return features @ directions(channels).to(features)


@cache
def directions(channels: int) -> Float[Tensor, "{channels} d"]:
    """Random directions, drawn once."""
    # The stream of RandomState is frozen; that of a Generator may change between versions.
    draw = np.random.RandomState(0).standard_normal((channels, PROJECTED)) / PROJECTED**0.5
    return torch.from_numpy(draw).float()


@dataclass(frozen=True)
class Episode:
    """A recorded episode, ready to be imagined and watched."""

    name: str
    frames: UInt8[Tensor, "time view height width 3"]
    """At the model's size."""
    batch: LatentBatch
    stretch: float = 1.0
    """Width over height of the source's frames, over that of the model's: 1 if only scaled."""


def confidence_maps(rollouts: EpisodeRollouts) -> Float[np.ndarray, "time view channel h w"]:
    """The confidence the monitor looks at."""
    return rollouts.confidence[..., EPSILONS.index(MONITOR_EPSILON)].float().numpy()


def signals(features: FrameFeatures, episode: Episode, rollouts: EpisodeRollouts) -> EpisodeSignals:
    """What the monitor's channels see of a recorded episode."""
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


@dataclass(frozen=True)
class Trust:
    """What `worldmodel calibrate` learns and keeps in `<checkpoint>/monitor`."""

    monitor: RuntimeMonitor
    """Watches real frames and the model's confidence in them."""
    recalibration: Curves
    """Curves per band of horizons and error level of `EPSILONS`, and per camera if several."""
    horizon: int
    """Frames ahead that the recalibration knows."""
    watch_horizon: int
    """Frames imagined before what the monitor watches starts from real frames again."""
    watch_start: int = WATCH_START
    """Real frames of an episode before the first one that is imagined for the monitor."""

    def claims(
        self, model: WorldModel, episodes: Sequence[LatentBatch], *, seed: int
    ) -> list[EpisodeRollouts]:
        """What the model claims of recorded episodes, for the monitor to check."""
        return roll_out(
            model, episodes, start=self.watch_start, horizon=self.watch_horizon, seed=seed
        )

    def save(self, folder: Path) -> None:
        """Write everything into `folder`."""
        self.monitor.save(folder)
        curves = save_arrays(self.recalibration.arrays())
        (folder / RECALIBRATION).write_bytes(curves)
        horizons = {
            "horizon": self.horizon,
            "watch_horizon": self.watch_horizon,
            "watch_start": self.watch_start,
        }
        rollouts = {**horizons, "curves_sha256": hashlib.sha256(curves).hexdigest()}
        (folder / "rollouts.json").write_text(json.dumps(rollouts) + "\n")

    @classmethod
    def load(cls, folder: Path, model: WorldModel, *, model_hash: str | None = None) -> Trust:
        """Read what `save` wrote.

        Args:
            folder: Where it is.
            model: The model to watch.
            model_hash: The `fingerprint` of its checkpoint; None: only its tokenizer and what its
                actions mean are compared with those the monitor was fitted for.

        Raises:
            OSError: nothing there.
            ValueError: a file is corrupt, or the monitor was fitted for another model.
        """
        monitor = RuntimeMonitor.load(
            folder,
            features=FrameFeatures(model),
            model_hash=model_hash,
            action_spec=model.config.action_spec.as_dict(),
        )
        try:
            curves = (folder / RECALIBRATION).read_bytes()
            rollouts = json.loads((folder / "rollouts.json").read_text())
            horizon, written = int(rollouts["horizon"]), rollouts.get("curves_sha256")
            watch_horizon = int(rollouts.get("watch_horizon", horizon))  # 0.1.0 had one of both
            watch_start = int(rollouts.get("watch_start", START))
            if written not in (None, hashlib.sha256(curves).hexdigest()):
                raise ValueError(f"{RECALIBRATION} was changed after it was written.")
            recalibration = restored_curves(load_arrays(curves))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"The monitor in {folder} cannot be read; calibrate it again."
            ) from error
        return cls(monitor, recalibration, horizon, watch_horizon, watch_start)


def restored_curves(arrays: Mapping[str, np.ndarray]) -> Curves:
    """The inverse of `arrays` of either kind: those of several cameras have ":" in their names."""
    several = any(":" in name for name in arrays)
    return (CameraRecalibration if several else HorizonRecalibration).from_arrays(arrays)


def recalibrated(rollouts: EpisodeRollouts, curves: Curves) -> EpisodeRollouts:
    """The same rollouts with recalibrated confidence; frames that were not imagined keep theirs."""
    confidence = rollouts.confidence.clone()
    for horizon in np.unique(rollouts.horizon[rollouts.horizon > 0]):
        rows = torch.from_numpy(rollouts.horizon == horizon)
        stated = rearrange(confidence[rows].float().numpy(), "t v ... level -> v level t ...")
        curved = [_predict(curves, view, n, int(horizon)) for n, view in enumerate(stated)]
        mended = rearrange(np.stack(curved), "v level t ... -> t v ... level")
        confidence[rows] = torch.from_numpy(mended).to(confidence.dtype)
    return replace(rollouts, confidence=confidence)


def _predict(
    curves: Curves, confidence: Float[np.ndarray, " level *any"], view: int, horizon: int
) -> Float64[np.ndarray, " level *any"]:
    if isinstance(curves, CameraRecalibration):
        return curves.predict(confidence, horizon=horizon, camera=str(view))
    return curves.predict(confidence, horizon=horizon)


def count_all(rollouts: Sequence[EpisodeRollouts], *, num_bins: int) -> Reliability:
    """`count_reliability` at every horizon that was reached."""
    horizons = np.unique(np.concatenate([r.horizon[r.horizon > 0] for r in rollouts])).tolist()
    names = [str(number) for number in range(len(rollouts))]
    return count_reliability(rollouts, names=names, horizons=horizons, num_bins=num_bins)


def fit_recalibration(rollouts: Sequence[EpisodeRollouts], *, method: str = "isotonic") -> Curves:
    """Curves of nominal rollouts, of the kind that `method` names; of each camera if several."""
    reliability = count_all(rollouts, num_bins=200)
    if len(reliability.cameras) > 1:
        return CameraRecalibration(EPSILONS, method=method).fit(reliability)
    bins = {
        horizon: [reliability.bins(epsilon=epsilon, horizon=horizon) for epsilon in EPSILONS]
        for horizon in reliability.horizons
    }
    return HorizonRecalibration(EPSILONS, method=method).fit(bins)


Rolled = tuple[Episode, EpisodeRollouts]
"""An episode and what the model imagined of it."""


def data_hash(episodes: Iterable[Episode]) -> str:
    """Hash of episodes in order, 16 hex digits: ids, frames at the model's size, and actions."""
    digest = hashlib.sha256()
    for episode in episodes:
        batch = episode.batch
        digest.update(json.dumps([episode.name, list(episode.frames.shape)]).encode())
        for part in (episode.frames, batch.actions, batch.action_valid):
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def fit_causes(
    films: Sequence[UInt8[np.ndarray, "_ view height width 3"]],
) -> CauseModel | None:
    """What names a change of the scene, learned from edits of familiar episodes.

    None if they are too alike, too few or too short to learn it from: alarms are then called
    "appearance".
    """
    from worldmodel.monitors.causes.edits import edited_episodes

    chosen = np.linspace(0, len(films) - 1, min(len(films), CAUSE_EPISODES)).round().astype(int)
    nominal = [films[i] for i in chosen]
    try:
        return CauseModel().fit(nominal, edited_episodes(nominal, clip_frames=CLIP_FRAMES, seed=0))
    except ValueError as error:
        LOG.warning("note: causes of unfamiliar frames will not be named: %s", error)
        return None


def fit_monitor(
    model: WorldModel,
    calibration: Sequence[Rolled],
    reference: Sequence[Rolled],
    *,
    config: MonitorConfig,
    artefact: Artefact | None = None,
) -> RuntimeMonitor:
    """Fit the monitor.

    Args:
        model: the world model.
        calibration: nominal episodes no part of the model was trained on; they set thresholds.
        reference: episodes that count as familiar; no episode may be in both. All are imagined
            `WATCH_HORIZON` frames ahead, from frame `WATCH_START` on.
        config: alarm rates.
        artefact: what else is known of the model and for how long the monitor is good.
    """
    features = FrameFeatures(model)
    artefact = replace(
        artefact or Artefact(),
        action_spec=model.config.action_spec.as_dict(),
        cameras=model.config.cameras,
        data_hash=data_hash(episode for episode, _ in (*calibration, *reference)),
    )
    return RuntimeMonitor(config, features=features).fit(
        [signals(features, *rolled) for rolled in calibration],
        frame_shape=tuple(calibration[0][0].frames.shape[1:]),
        reference=[signals(features, *rolled) for rolled in reference],
        causes=fit_causes([episode.frames.numpy() for episode, _ in reference]),
        artefact=artefact,
        rate_hz=model.config.rate_hz,
    )
