"""Channel set: fit and score all channels of single frames together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from worldmodel.monitors.arrays import require_probabilities
from worldmodel.monitors.channels.action import ActionChannel
from worldmodel.monitors.channels.appearance import AppearanceChannel, region_score
from worldmodel.monitors.channels.colour import ColourChannel, running_minimum
from worldmodel.monitors.channels.confidence import ConfidenceChannel
from worldmodel.monitors.channels.regions import position_means
from worldmodel.monitors.channels.signals import EpisodeSignals, stacked
from worldmodel.monitors.channels.surprise import SurpriseChannel
from worldmodel.monitors.nuisances import Nuisance

CHANNELS: dict[str, tuple[str, ...]] = {
    "appearance": ("appearance", "region"),
    "colour": ("colour", "missing_colour"),
    "action": ("action", "action_range"),
    "confidence": ("confidence",),
    "surprise": ("surprise",),
}
"""Channel -> its signals: frame and least familiar region (features), unfamiliar and missing
colours, action, the model's confidence in its prediction, and the prediction's error."""
SIGNALS = tuple(name for names in CHANNELS.values() for name in names)
LOOKS = ("appearance", "region", "colour", "missing_colour")
"""Signals of the frame's appearance, independent of the model's prediction."""
CLAIMS = ("confidence", "surprise")
"""Signals of the model's prediction: its confidence and its error."""
SMOOTHED = {"surprise": 4}
"""Signal -> frames over which its score is averaged: errors of single frames are noisy."""
WEIGHTS = {"surprise": 20.0, "region": 3.0, "colour": 3.0, "missing_colour": 3.0}
"""Signal -> weight in the alarm budget; 1 for the others. Surprise is the only signal that detects
ignored actions, and has the longest tail; regions and colours detect objects and tools. Changes
that the other signals detect exceed their thresholds by far."""

Scores = dict[str, Float64[np.ndarray, " time"]]
"""Signal -> score per frame in its own unit, higher is more surprising; NaN: did not run."""


@dataclass(frozen=True)
class Channels:
    """Fitted channels; None where the reference episodes lacked the signal."""

    appearance: AppearanceChannel | None = None
    colour: ColourChannel | None = None
    action: ActionChannel | None = None
    confidence: ConfidenceChannel | None = None
    surprise: SurpriseChannel | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fitted signals."""
        return tuple(s for c, names in CHANNELS.items() if getattr(self, c) for s in names)

    def derived(self, signals: EpisodeSignals) -> EpisodeSignals:
        """Fill in `places` from `positions` and `absences` from `frames`, unless they are there."""
        if self.appearance and signals.positions is not None and signals.places is None:
            places = self.appearance.position_scores(signals.positions)
            signals = replace(signals, places=places)
        if self.colour and signals.frames is not None and signals.absences is None:
            distances = self.colour.anchor_distances(signals.frames)
            signals = replace(signals, absences=running_minimum(distances))
        return signals

    def scores(self, signals: EpisodeSignals) -> Scores:
        """Scores of each signal per frame, without smoothing."""
        signals = self.derived(signals)
        places = signals.places
        scores = {name: np.full(len(signals), np.nan) for name in self.names}
        if self.appearance and signals.pooled is not None and places is not None:
            scores["appearance"] = self.appearance.score(signals.pooled)
            scores["region"] = region_score(places)
        if self.colour and signals.frames is not None and signals.absences is not None:
            scores["colour"] = self.colour.score(signals.frames)
            scores["missing_colour"] = self.colour.missing_score(signals.absences)
        if self.action and signals.actions is not None:
            scores["action"] = self.action.score(signals.actions)
            scores["action_range"] = self.action.range_score(signals.actions)
        imagined = signals.imagined()
        if self.confidence and imagined:
            rows, maps, horizons = imagined
            scores["confidence"][rows] = self.confidence.score(maps, horizons)
        if self.surprise and imagined and signals.error_ratio is not None:
            rows, _, horizons = imagined
            scores["surprise"][rows] = self.surprise.score(signals.error_ratio[rows], horizons)
        return scores

    def has_input(self, name: str, signals: EpisodeSignals) -> bool:
        """Whether all inputs of a signal are present in the first frame."""
        if name in CHANNELS["colour"]:
            return signals.frames is not None
        if name in CHANNELS["action"]:
            return signals.actions is not None and bool(np.isfinite(signals.actions[0]).all())
        if name == "confidence":
            return signals.imagined() is not None
        if name == "surprise":
            return signals.imagined() is not None and signals.error_ratio is not None
        return name in self.names and signals.pooled is not None

    def trust_map(
        self, signals: EpisodeSignals, *, usual: Mapping[str, float]
    ) -> Float64[np.ndarray, "*view h w"] | None:
        """Trust in [0, 1] per latent position of the first frame: the minimum over channels.

        Features and colours give min(1, usual / distance), with the `usual` distance of each
        signal; the model gives its confidence.
        """
        maps = []
        places = self.derived(signals).places
        if places is not None:
            maps.append(usual["region"] / places[0].clip(usual["region"]))
        imagined = signals.imagined()
        if imagined:
            maps.append(position_means(require_probabilities(imagined[1]))[0])
        if len(maps) == 2 and maps[0].shape != maps[1].shape:
            raise ValueError(
                "`positions` and `confidence` must describe the same latent positions, "
                f"got {maps[0].shape} and {maps[1].shape}."
            )
        if self.colour and maps and signals.frames is not None:
            distance = self.colour.place_scores(signals.frames[:1], maps[0].shape)[0]
            maps.append(usual["colour"] / distance.clip(usual["colour"]))
        return np.minimum.reduce(maps) if maps else None


def smoothed(scores: Mapping[str, Float64[np.ndarray, " time"]]) -> Scores:
    """Average the `SMOOTHED` signals over the last few frames that have a score."""
    return {
        name: np.array([recent_mean(score[: t + 1], SMOOTHED[name]) for t in range(len(score))])
        if name in SMOOTHED
        else score
        for name, score in scores.items()
    }


def recent_mean(score: Float64[np.ndarray, " time"], count: int) -> float:
    """Mean of the last `count` scores, ignoring NaN; NaN if the last score is NaN."""
    if np.isnan(score[-1]):
        return float("nan")
    recent = [float(value) for value in score[-count:] if not np.isnan(value)]
    return sum(recent) / len(recent)


def fit_channels(
    reference: Sequence[EpisodeSignals],
    *,
    low_confidence: float,
    region: int,
    nuisances: Sequence[Nuisance] = (),
    effects: Sequence[Float64[np.ndarray, "_ d"]] = (),
) -> Channels:
    """Fit each channel whose signals are present in all reference episodes.

    Args:
        reference: Reference episodes.
        low_confidence: Confidence below which a subpatch counts as low.
        region: Side of the window over which confidence is averaged.
        nuisances: Declared nuisances.
        effects: What each of them adds to the pooled features of some reference frames.
    """
    appearance, colour, action, confidence, surprise = None, None, None, None, None
    if all(episode.pooled is not None for episode in reference):
        appearance = AppearanceChannel().fit(*stacked(reference), effects)
    frames = [episode.frames for episode in reference if episode.frames is not None]
    if len(frames) == len(reference):
        colour = ColourChannel().fit(frames, nuisances)
    actions = [episode.actions for episode in reference if episode.actions is not None]
    if len(actions) == len(reference):
        action = ActionChannel().fit(np.concatenate(actions))
    imagined = [found for episode in reference if (found := episode.imagined())]
    if len(imagined) == len(reference):
        _, maps, horizons = zip(*imagined, strict=True)
        channel = ConfidenceChannel(threshold=low_confidence, region=region)
        confidence = channel.fit(np.concatenate(maps), np.concatenate(horizons))
        ratios = [
            episode.error_ratio[rows]
            for episode, (rows, _, _) in zip(reference, imagined, strict=True)
            if episode.error_ratio is not None
        ]
        if len(ratios) == len(reference):
            surprise = SurpriseChannel().fit(np.concatenate(ratios), np.concatenate(horizons))
    if not (appearance or colour or action or confidence):
        raise ValueError(
            "`reference` has no signal that is present in every episode; no channel can be fitted."
        )
    return Channels(appearance, colour, action, confidence, surprise)
