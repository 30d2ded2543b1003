"""Do heatmaps point at what does not belong? Any map of any model, on episodes with known masks.

The context of a rollout shows the intervention; each map of an imagined frame is compared with
where the intervention truly was in that frame. Confidence speaks of the error of a prediction, not
of whether a thing is strange: a still object that nobody knows is predicted well by repeating it.
The map "true error" shows how far a head that knew every error would point at it.
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
"""Frames ahead at which maps are judged."""
SMOOTHING = 1 / 4
"""Standard deviation of the filter over the round trip's residual, in latent positions."""
ALL = "all kinds"


@dataclass(frozen=True)
class MarkedEpisode:
    """An episode of which it is known where something does not belong."""

    kind: str
    """Of intervention."""
    origin: str
    """Name of the episode without it: those of one origin stand and fall together."""
    episode: Episode
    mask: Bool[np.ndarray, "time view height width"]


@dataclass(frozen=True, kw_only=True)
class Glance:
    """What a map of one camera's imagined frame can be made from."""

    confidence: Float[np.ndarray, "channel h w levels"]
    """P(error <= ε) for each of `EPSILONS`."""
    appearance: Float[np.ndarray, "h w"]
    """How unfamiliar the last real frame is to the monitor."""
    calibration: Float[np.ndarray, "h w"]
    """The least that the monitor grants the last real frame or the model this one."""
    round_trip: Float[np.ndarray, "height width"]
    """Mean absolute residual of the last real frame through the tokenizer, smoothed by
    a quarter of a latent position; frames are in [-1, 1]."""
    error: Float[np.ndarray, "channel h w"]
    """The truth, in latent standard deviations: for reference alone."""


SurpriseMap = Callable[[Glance], Float[np.ndarray, "rows columns"]]
"""Higher is more surprising; of any size, enlarged to the frame's."""


def doubt(glance: Glance) -> Float[np.ndarray, "h w"]:
    """Probability that the error exceeds the monitor's epsilon, mean over channels."""
    return 1 - glance.confidence[..., EPSILONS.index(MONITOR_EPSILON)].mean(axis=0)


def expected_error(glance: Glance) -> Float[np.ndarray, "h w"]:
    """Expected error, cut off at the largest of `EPSILONS`: the area above the stated curve."""
    return 1 - glance.confidence.mean(axis=(0, -1))


MAPS: dict[str, SurpriseMap] = {
    "confidence": doubt,
    "expected error": expected_error,
    "appearance": lambda glance: glance.appearance,
    "round trip": lambda glance: glance.round_trip,
    "distrust": lambda glance: 1 - glance.calibration,
    "appearance x expected error": lambda glance: glance.appearance * expected_error(glance),
    "appearance x round trip": lambda glance: (
        upsample(glance.appearance, *glance.round_trip.shape) * glance.round_trip
    ),
    "true error": lambda glance: glance.error.mean(axis=0),
}
"""Name -> map. "confidence" to "distrust" are single signals; the last is out of reach."""


@dataclass(frozen=True, kw_only=True)
class LocalisationRow:
    """One map on one kind of intervention at one horizon."""

    kind: str
    surprise: str
    """Name of the map."""
    horizon: int
    result: Localisation

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values in one level."""
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
    """Every map on every kind of intervention, and on all together, at every horizon.

    Pictures in which the intervention cannot be seen are left out.

    Args:
        model: Its own confidence head is used as it is.
        alarm_rule: Of a monitor fitted for the model's tokenizer: its appearance channel is used.
        episodes: At least `START + max(horizons)` frames long, not trained or calibrated on.
        maps: Name -> map.
        horizons: Frames ahead.
        seed: Of the rollouts and of the episodes redrawn for intervals.

    Raises:
        ValueError: an episode is too short, or the monitor has no appearance channel.
    """
    glances = look_at(model, alarm_rule, episodes, horizons=horizons, seed=seed)
    kinds = (*dict.fromkeys(marked.kind for marked in episodes), ALL)
    rows = []
    for name, surprise in maps.items():
        for horizon in horizons:
            scored = [
                (marked, score_picture(upsample(surprise(glance), *mask.shape), mask))
                for marked, seen in zip(episodes, glances, strict=True)
                for glance, mask in zip(seen[horizon], mask_at(marked, horizon), strict=True)
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
    """Where the intervention is in the frame so far ahead."""
    return marked.mask[START - 1 + horizon]


def summarize(pictures: Sequence[tuple[str, Mapping[str, float]]], seed: int) -> Localisation:
    """Means over pictures, each with its episode's name."""
    origins, scores = zip(*pictures, strict=True)
    return summarize_localisation(scores, origins, rng=np.random.default_rng(seed))


def look_at(
    model: WorldModel,
    alarm_rule: AlarmRule,
    episodes: Sequence[MarkedEpisode],
    *,
    horizons: Sequence[int],
    seed: int,
) -> list[dict[int, list[Glance]]]:
    """For each episode: horizon -> one glance per camera."""
    if alarm_rule.channels_.appearance is None:
        raise ValueError("`alarm_rule` has no appearance channel; fit it with features of frames.")
    length = START + max(horizons)
    for marked in episodes:
        if len(marked.mask) < length:
            raise ValueError(
                f"`episodes` must have at least {length} frames, {START} real ones and "
                f"{max(horizons)} imagined; {marked.episode.name!r} has {len(marked.mask)}."
            )
    batches = [marked.episode.batch.cut(length) for marked in episodes]
    rollouts = roll_out(model, batches, horizon=max(horizons), seed=seed)
    features = FrameFeatures(model)
    return [
        {h: glances(features, alarm_rule, marked.episode, imagined, h) for h in horizons}
        for marked, imagined in zip(episodes, rollouts, strict=True)
    ]


@torch.inference_mode()
def glances(
    features: FrameFeatures,
    alarm_rule: AlarmRule,
    episode: Episode,
    rollouts: EpisodeRollouts,
    horizon: int,
) -> list[Glance]:
    """What there is to know of the frame so far ahead, one glance per camera."""
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
    calibration, channel = alarm_rule.trust_map(signals), alarm_rule.channels_.appearance
    assert calibration is not None
    assert channel is not None
    appearance = channel.position_scores(positions)[0]
    residual = round_trip(features.model, last)
    error = rollouts.error[frame].numpy()
    return [
        Glance(
            confidence=confidence[view],
            appearance=appearance[view],
            calibration=calibration[view],
            round_trip=residual[view],
            error=error[view],
        )
        for view in range(len(last))
    ]


def round_trip(
    model: WorldModel, frame: UInt8[Tensor, "view height width 3"]
) -> Float[np.ndarray, "view height width"]:
    """Mean absolute residual of frames at the model's size through the tokenizer, smoothed."""
    from scipy.ndimage import gaussian_filter

    pixels = to_model(frame.to(model.tokenizer.mean.device))
    residual = (model.tokenizer.decode(model.tokenizer.encode(pixels)) - pixels).abs().mean(1)
    width = model.tokenizer.stride * SMOOTHING
    return gaussian_filter(residual.cpu().numpy(), (0, width, width))
