"""Localisation of interventions by heatmaps, on episodes with known masks.

The real frames of a rollout show the intervention; each map of an imagined frame is compared with
the mask of that frame. Confidence predicts the error, not novelty: a still unknown object is easy
to predict by repeating it. The map "true error" is the upper bound for a head that knows every
error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldmodel.calibration.features import MONITOR_EPSILON, FrameFeatures
from worldmodel.episodes.episode import Episode
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.heatmaps import upsample
from worldmodel.monitors.metrics.localisation import (
    Localisation,
    score_picture,
    summarize_localisation,
)
from worldmodel.networks.images import to_model
from worldmodel.rollouts.open_loop import EPSILONS, START, EpisodeRollouts, roll_out

HORIZONS = (1, 4)
"""Evaluated horizons, in frames."""
SMOOTHING = 1 / 4
"""Standard deviation of the filter on the round-trip residual, in latent positions."""
ALL = "all kinds"


@dataclass(frozen=True)
class MarkedEpisode:
    """Episode with an intervention and its mask."""

    kind: str
    """Kind of intervention."""
    origin: str
    """Name of the original episode; the bootstrap resamples origins."""
    episode: Episode
    mask: Bool[np.ndarray, "time view height width"]


@dataclass(frozen=True, kw_only=True)
class MapInputs:
    """Inputs of a map for one camera of an imagined frame."""

    confidence: Float[np.ndarray, "channel h w levels"]
    """P(error <= ε) for each of `EPSILONS`."""
    appearance: Float[np.ndarray, "h w"]
    """Appearance score of the last real frame."""
    trust: Float[np.ndarray, "h w"]
    """Trust map of the monitor: the minimum over the last real frame and this imagined frame."""
    round_trip: Float[np.ndarray, "height width"]
    """Smoothed mean absolute residual of the last real frame after encoding and decoding;
    frames are in [-1, 1]."""
    error: Float[np.ndarray, "channel h w"]
    """True error in latent standard deviations, for reference."""


SurpriseMap = Callable[[MapInputs], Float[np.ndarray, "rows columns"]]
"""Map of any size, higher is more surprising; it is resized to the frame."""


def doubt(inputs: MapInputs) -> Float[np.ndarray, "h w"]:
    """Probability that the error exceeds the monitor's ε, mean over channels."""
    return 1 - inputs.confidence[..., EPSILONS.index(MONITOR_EPSILON)].mean(axis=0)


def expected_error(inputs: MapInputs) -> Float[np.ndarray, "h w"]:
    """Expected error capped at the largest of `EPSILONS`: area above the confidence curve."""
    return 1 - inputs.confidence.mean(axis=(0, -1))


MAPS: dict[str, SurpriseMap] = {
    "confidence": doubt,
    "expected error": expected_error,
    "appearance": lambda inputs: inputs.appearance,
    "round trip": lambda inputs: inputs.round_trip,
    "distrust": lambda inputs: 1 - inputs.trust,
    "appearance x expected error": lambda inputs: inputs.appearance * expected_error(inputs),
    "appearance x round trip": lambda inputs: (
        upsample(inputs.appearance, *inputs.round_trip.shape) * inputs.round_trip
    ),
    "true error": lambda inputs: inputs.error.mean(axis=0),
}
"""Name -> map; "confidence" to "distrust" are single signals, "true error" is an upper bound."""


@dataclass(frozen=True, kw_only=True)
class LocalisationRow:
    """Result of one map on one kind of intervention at one horizon."""

    kind: str
    surprise: str
    """Name of the map."""
    horizon: int
    result: Localisation

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, not nested."""
        where = {"kind": self.kind, "map": self.surprise, "horizon": self.horizon}
        return {**where, **self.result.as_dict()}


def localisation_table(
    model: WorldModel,
    alarm_rule: AlarmRule,
    episodes: Sequence[MarkedEpisode],
    *,
    maps: Mapping[str, SurpriseMap] = MAPS,
    horizons: Sequence[int] = HORIZONS,
    seed: int = 0,
) -> list[LocalisationRow]:
    """Evaluate every map on every kind of intervention and on all kinds, at every horizon.

    Frames without a visible intervention are skipped.

    Args:
        model: Model with its own confidence head.
        alarm_rule: Alarm rule with an appearance channel, fitted for the model's tokenizer.
        episodes: Held-out episodes of at least `START + max(horizons)` frames.
        maps: Name -> map.
        horizons: Horizons in frames.
        seed: Seed of the rollouts and the bootstrap.

    Raises:
        ValueError: an episode is too short, or the monitor has no appearance channel.
    """
    inputs = rollout_map_inputs(model, alarm_rule, episodes, horizons=horizons, seed=seed)
    kinds = (*dict.fromkeys(marked.kind for marked in episodes), ALL)
    rows = []
    for name, surprise in maps.items():
        for horizon in horizons:
            scored = [
                (marked, score_picture(upsample(surprise(inputs), *mask.shape), mask))
                for marked, by_horizon in zip(episodes, inputs, strict=True)
                for inputs, mask in zip(by_horizon[horizon], mask_at(marked, horizon), strict=True)
                if mask.any() and not mask.all()
            ]
            for kind in kinds:
                pictures = [(m.origin, score) for m, score in scored if kind in (m.kind, ALL)]
                if pictures:
                    result = summarize(pictures, seed)
                    row = LocalisationRow(kind=kind, surprise=name, horizon=horizon, result=result)
                    rows.append(row)
    return rows


def mask_at(marked: MarkedEpisode, horizon: int) -> Bool[np.ndarray, "view height width"]:
    """Mask of the intervention in the imagined frame at a horizon."""
    return marked.mask[START - 1 + horizon]


def summarize(pictures: Sequence[tuple[str, Mapping[str, float]]], seed: int) -> Localisation:
    """Mean scores over frames, with bootstrap intervals over origins."""
    origins, scores = zip(*pictures, strict=True)
    return summarize_localisation(scores, origins, rng=np.random.default_rng(seed))


def rollout_map_inputs(
    model: WorldModel,
    alarm_rule: AlarmRule,
    episodes: Sequence[MarkedEpisode],
    *,
    horizons: Sequence[int],
    seed: int,
) -> list[dict[int, list[MapInputs]]]:
    """For each episode: horizon -> map inputs per camera."""
    if alarm_rule.channels_.appearance is None:
        raise ValueError(
            "`alarm_rule` must have an appearance channel; fit the monitor with frame features."
        )
    length = START + max(horizons)
    for marked in episodes:
        if len(marked.mask) < length:
            raise ValueError(
                f"`episodes` must have at least {length} frames, {START} real and {max(horizons)} "
                f"imagined, got {len(marked.mask)} in {marked.episode.name!r}."
            )
    batches = [marked.episode.batch.cut(length) for marked in episodes]
    rollouts = roll_out(model, batches, horizon=max(horizons), seed=seed)
    features = FrameFeatures(model)
    return [
        {h: map_inputs(features, alarm_rule, marked.episode, imagined, h) for h in horizons}
        for marked, imagined in zip(episodes, rollouts, strict=True)
    ]


@torch.inference_mode()
def map_inputs(
    features: FrameFeatures,
    alarm_rule: AlarmRule,
    episode: Episode,
    rollouts: EpisodeRollouts,
    horizon: int,
) -> list[MapInputs]:
    """Map inputs of the imagined frame at a horizon, one per camera."""
    last, frame = episode.frames[START - 1], START - 1 + horizon
    pooled, positions = features.of_episode(last[None])
    confidence = rollouts.confidence[frame].float().numpy()
    signals = EpisodeSignals(
        pooled=pooled,
        positions=positions,
        frames=last[None].numpy(),
        confidence=confidence[None, ..., EPSILONS.index(MONITOR_EPSILON)],
        horizon=np.array([horizon]),
    )
    trust, channel = alarm_rule.trust_map(signals), alarm_rule.channels_.appearance
    assert trust is not None
    assert channel is not None
    appearance = channel.position_scores(positions)[0]
    residual = round_trip(features.model, last)
    error = rollouts.error[frame].numpy()
    return [
        MapInputs(
            confidence=confidence[view],
            appearance=appearance[view],
            trust=trust[view],
            round_trip=residual[view],
            error=error[view],
        )
        for view in range(len(last))
    ]


def round_trip(
    model: WorldModel, frame: UInt8[Tensor, "view height width 3"]
) -> Float[np.ndarray, "view height width"]:
    """Smoothed mean absolute residual of frames after encoding and decoding."""
    from scipy.ndimage import gaussian_filter

    pixels = to_model(frame.to(model.tokenizer.mean.device))
    residual = (model.tokenizer.decode(model.tokenizer.encode(pixels)) - pixels).abs().mean(1)
    width = model.tokenizer.stride * SMOOTHING
    return gaussian_filter(residual.cpu().numpy(), (0, width, width))
