"""The channels that look at one frame, fitted and scored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from worldmodel.monitors.appearance import AppearanceChannel, region_score
from worldmodel.monitors.confidence import ConfidenceChannel
from worldmodel.monitors.regions import position_confidence
from worldmodel.monitors.signals import EpisodeSignals, stacked


@dataclass(frozen=True)
class Channels:
    """Whichever of the channels the reference episodes had signals for.

    The signals are "appearance" (the frame as a whole), "region" (its least familiar region) and
    "confidence" (the model's distrust of its own prediction).
    """

    appearance: AppearanceChannel | None
    confidence: ConfidenceChannel | None

    @property
    def names(self) -> tuple[str, ...]:
        """The signals that can be scored."""
        appearance = ("appearance", "region") if self.appearance else ()
        return appearance + (("confidence",) if self.confidence else ())

    def scores(self, signals: EpisodeSignals) -> dict[str, Float64[np.ndarray, " time"]]:
        """Each signal's score per frame, higher is more surprising; NaN where it cannot run."""
        scores = {name: np.full(len(signals), np.nan) for name in self.names}
        if self.appearance and signals.pooled is not None and signals.positions is not None:
            scores["appearance"] = self.appearance.score(signals.pooled)
            places = self.appearance.position_scores(signals.positions)
            scores["region"] = region_score(places)
        if self.confidence and signals.horizon is not None:
            scores["confidence"][signals.horizon > 0] = self.confidence.score(*signals.imagined())
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
        if signals.confidence is not None and signals.horizon is not None and signals.horizon[0]:
            maps.append(position_confidence(signals.confidence[:1])[0])
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
    if all(episode.horizon is not None and episode.horizon.any() for episode in reference):
        maps, horizons = zip(*(episode.imagined() for episode in reference), strict=True)
        channel = ConfidenceChannel(threshold=low_confidence, region=region)
        confidence = channel.fit(np.concatenate(maps), np.concatenate(horizons))
    if appearance is None and confidence is None:
        raise ValueError(
            "`reference` holds no signal that every episode has; nothing can be fitted."
        )
    return Channels(appearance, confidence)
