"""The channels that look at one frame, fitted and scored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from worldmodel.monitors.appearance import AppearanceChannel, region_score
from worldmodel.monitors.calibration import checked
from worldmodel.monitors.confidence import ConfidenceChannel
from worldmodel.monitors.regions import position_confidence
from worldmodel.monitors.signals import EpisodeSignals, stacked

SIGNALS = ("appearance", "region", "confidence")
"""The frame as a whole, its least familiar region, the model's distrust of its own prediction."""


@dataclass(frozen=True)
class Channels:
    """Whichever of the channels the reference episodes had signals for."""

    appearance: AppearanceChannel | None
    confidence: ConfidenceChannel | None

    @property
    def names(self) -> tuple[str, ...]:
        """The signals that were fitted."""
        appearance = SIGNALS[:2] if self.appearance else ()
        return appearance + (SIGNALS[2:] if self.confidence else ())

    def scores(self, signals: EpisodeSignals) -> dict[str, Float64[np.ndarray, " time"]]:
        """Each signal's score per frame, higher is more surprising; NaN where it cannot run."""
        scores = {name: np.full(len(signals), np.nan) for name in self.names}
        if self.appearance and signals.pooled is not None and signals.positions is not None:
            scores["appearance"] = self.appearance.score(signals.pooled)
            places = self.appearance.position_scores(signals.positions)
            scores["region"] = region_score(places)
        imagined = signals.imagined()
        if self.confidence and imagined:
            rows, maps, horizons = imagined
            scores["confidence"][rows] = self.confidence.score(maps, horizons)
        return scores

    def trust_map(
        self, signals: EpisodeSignals, *, usual_distance: float
    ) -> Float64[np.ndarray, "*view h w"] | None:
        """Trust in [0, 1] per latent position of the first frame, the least any channel grants.

        The appearance channel grants 1 up to the usual distance and usual / distance beyond it; the
        model grants its confidence.
        """
        maps = []
        if self.appearance and signals.positions is not None:
            distance = self.appearance.position_scores(signals.positions[:1])[0]
            maps.append(usual_distance / distance.clip(usual_distance))
        imagined = signals.imagined()
        if imagined:
            maps.append(position_confidence(checked(imagined[1]))[0])
        if len(maps) == 2 and maps[0].shape != maps[1].shape:
            raise ValueError(
                "`positions` and `confidence` must describe the same latent positions, "
                f"got {maps[0].shape} and {maps[1].shape}."
            )
        return np.minimum.reduce(maps) if maps else None


def fit_channels(
    reference: Sequence[EpisodeSignals], *, low_confidence: float, region: int
) -> Channels:
    """Fit every channel whose signals all reference episodes have."""
    appearance, confidence = None, None
    if all(episode.pooled is not None for episode in reference):
        appearance = AppearanceChannel().fit(*stacked(reference))
    imagined = [found for episode in reference if (found := episode.imagined())]
    if len(imagined) == len(reference):
        _, maps, horizons = zip(*imagined, strict=True)
        channel = ConfidenceChannel(threshold=low_confidence, region=region)
        confidence = channel.fit(np.concatenate(maps), np.concatenate(horizons))
    if appearance is None and confidence is None:
        raise ValueError(
            "`reference` holds no signal that every episode has; nothing can be fitted."
        )
    return Channels(appearance, confidence)
