"""The fitted part of the monitor: channels, their common scale, and the thresholds on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from worldmodel.monitors.channels.channel_set import (
    CLAIMS,
    LOOKS,
    WEIGHTS,
    Channels,
    Scores,
    fit_channels,
    smoothed,
)
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.guarantees.episode_threshold import (
    EpisodeThreshold,
    episodes_needed,
    smallest_alpha,
)
from worldmodel.monitors.verdict import Level

LEAST_SCALED = 10
"""Calibration episodes that can say how far the tails of signals reach."""
TIE = 1e-4
"""Largest rounding difference of alarm scores between processors, thread counts and batch sizes,
in spreads of a signal; measured ones are below 1e-5."""
MIN_SPREAD = 1e-6
"""Smallest spread of a signal's episode maxima; signals are of order 1."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """How often a nominal episode may raise each level, and what the channels look at.

    Faults of the input (`sensor.*`) and of the monitor (`monitor.*`) do not count in these rates:
    they are a `STOP` whenever they happen, but a stale calibration is a `DEGRADE`.
    """

    alpha_notice: float = 0.05
    """Chance that a nominal episode ever reaches NOTICE or more: the chance of any alarm."""
    alpha_degrade: float = 0.02
    """Chance that it ever reaches DEGRADE or more."""
    alpha_stop: float = 0.01
    """Chance that it ever reaches STOP; 0.01 needs 99 calibration episodes."""
    delta: float | None = None
    """Share of calibration sets that may give a level a higher chance than its alpha; None: the
    chance is kept on average over calibration sets. 0.05 and an alpha of 0.01 need 299 episodes."""
    calm_steps: int = 5
    """Steps without an alarm after which the level falls again."""
    unchecked_steps: int = 4
    """First steps of an episode at which how a frame looks gives NOTICE at most, while the model
    has claimed nothing yet that could be checked; for monitors that were fitted on claims."""
    low_confidence: float = 0.5
    """Confidence below which a subpatch counts as low."""
    region: int = 2
    """Side of the window, in latent positions, whose mean confidence is looked at."""

    def __post_init__(self) -> None:
        if not 1 > self.alpha_notice >= self.alpha_degrade >= self.alpha_stop > 0:
            raise ValueError(
                "`alpha_notice`, `alpha_degrade`, `alpha_stop` must lie in (0, 1) and not rise, "
                f"got {self.alpha_notice}, {self.alpha_degrade} and {self.alpha_stop}."
            )
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"`delta` must lie in (0, 1) or be None, got {self.delta}.")
        for name, least in (("calm_steps", 1), ("unchecked_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")

    @property
    def alphas(self) -> dict[Level, float]:
        """Level -> chance that a nominal episode reaches it."""
        return {
            Level.NOTICE: self.alpha_notice,
            Level.DEGRADE: self.alpha_degrade,
            Level.STOP: self.alpha_stop,
        }

    @classmethod
    def for_episodes(cls, num_calibration: int, *, delta: float | None = None) -> MonitorConfig:
        """The default, with every alpha raised to what so few calibration episodes support."""
        least = smallest_alpha(num_calibration, delta)
        return cls(
            delta=delta,
            alpha_notice=max(cls.alpha_notice, least),
            alpha_degrade=max(cls.alpha_degrade, least),
            alpha_stop=max(cls.alpha_stop, least),
        )


@dataclass(frozen=True)
class Scale:
    """What is usual for the largest score of an episode."""

    centre: float
    """Median over nominal episodes."""
    spread: float
    """From there to the score that its share of alpha_notice exceeds."""


class AlarmRule:
    """Compares the largest standardised signal of a frame with thresholds for each level.

    A signal is standardised by the median and spread of its episode maxima on nominal episodes;
    the thresholds bound the episode maximum of the largest standardised signal, its surprise. So
    the promise holds for all signals together, and with any of them missing: leaving one out only
    lowers the maximum. Each signal's own scale reaches as far as its share of the alarms (a
    weighted Bonferroni correction, `WEIGHTS`), or the one with the longest tail would set the
    threshold of all; how many signals alarm in the same episodes is the threshold's to learn.
    """

    def __init__(self, config: MonitorConfig) -> None:
        self.config = config

    def fit(
        self, calibration: Sequence[EpisodeSignals], *, reference: Sequence[EpisodeSignals]
    ) -> AlarmRule:
        """Learn what is usual from `reference`, and the thresholds from `calibration` episodes.

        The two must not share an episode: a frame looks more familiar to a channel fitted on it.
        A third of the calibration episodes sets the scales of the signals, if the others are still
        enough for the thresholds; else the reference episodes do, halves scored by channels of the
        other half.
        """
        if len(reference) < 2:
            raise ValueError(f"`reference` needs at least 2 episodes, got {len(reference)}.")
        self._check_count(len(calibration))
        self.channels_ = self._fit_channels(reference)
        third = len(calibration[::3])
        if third >= LEAST_SCALED and len(calibration) - third >= self._num_needed():
            self.scales_ = self._scales([_maxima(self.scores(e)) for e in calibration[::3]])
            calibration = [episode for i, episode in enumerate(calibration) if i % 3]
        else:
            self.scales_ = self._scales(self._cross_scored(reference))
        maxima = np.array(
            [self.alarm_score(self.scores(e)).max() for e in calibration], dtype=np.float64
        )
        self.thresholds_ = {
            level: EpisodeThreshold(alpha, delta=self.config.delta).fit(maxima).value_
            for level, alpha in self.config.alphas.items()
        }
        self.maxima_: Float64[np.ndarray, " episode"] | None = maxima  # None in files of format 1
        self.num_reference_, self.num_calibration_ = len(reference), len(calibration)
        self.max_frames_ = max(map(len, calibration))
        return self

    def _num_needed(self) -> int:
        return episodes_needed(self.config.alpha_stop, self.config.delta)

    def _check_count(self, num_calibration: int) -> None:
        """Refuse before the work begins, naming the strictest level."""
        alpha, delta = self.config.alpha_stop, self.config.delta
        needed = self._num_needed()
        if num_calibration < needed:
            promise = f"`alpha_stop`={alpha:g}" + (f" with `delta`={delta:g}" if delta else "")
            least = smallest_alpha(num_calibration, delta)
            raise ValueError(
                f"{promise} needs at least {needed} calibration episodes, got {num_calibration}, "
                f"which support {least:.3g} at best (see `MonitorConfig.for_episodes`)."
            )

    def _fit_channels(self, reference: Sequence[EpisodeSignals]) -> Channels:
        config = self.config
        return fit_channels(reference, low_confidence=config.low_confidence, region=config.region)

    def _cross_scored(self, reference: Sequence[EpisodeSignals]) -> list[dict[str, float]]:
        """Largest scores of each half of the episodes by channels fitted on the other half."""
        scored = []
        for half in (0, 1):
            channels = self._fit_channels(reference[1 - half :: 2])
            scored += [_maxima(smoothed(channels.scores(e))) for e in reference[half::2]]
        return scored

    def _scales(self, maxima: Sequence[Mapping[str, float]]) -> dict[str, Scale]:
        """The scale of every signal from the largest scores of episodes."""
        names = dict.fromkeys(name for episode in maxima for name in episode)
        weights = {name: WEIGHTS.get(name, 1.0) for name in names}
        scales = {}
        for name, weight in weights.items():
            alpha = self.config.alpha_notice * weight / sum(weights.values())
            values = [episode[name] for episode in maxima if name in episode]
            middle, high = np.quantile(values, [0.5, 1 - alpha])
            scales[name] = Scale(float(middle), max(float(high - middle), MIN_SPREAD))
        return scales

    def scores(self, signals: EpisodeSignals) -> Scores:
        """Every signal's score of every frame, in its own unit; NaN where it could not run."""
        require_fitted(self, "channels_")
        return smoothed(self.channels_.scores(signals))

    def standardised(self, scores: Mapping[str, Float64[np.ndarray, " time"]]) -> Scores:
        """Scores in spreads above the usual episode maximum."""
        return {
            name: (score - self.scales_[name].centre) / self.scales_[name].spread
            for name, score in scores.items()
        }

    def alarm_score(
        self, scores: Mapping[str, Float64[np.ndarray, " time"]]
    ) -> Float64[np.ndarray, " time"]:
        """The largest standardised score of each frame; minus infinity where none could run."""
        table = np.stack(list(self.standardised(scores).values()))
        return np.where(np.isnan(table), -np.inf, table).max(axis=0)

    @property
    def limits(self) -> dict[Level, float]:
        """Level -> alarm score above which it is raised: its threshold plus `TIE`.

        Frame-by-frame and whole-episode scores differ in the last bits. Without the tolerance, an
        episode that set the threshold could alarm on one path and not on the other. A higher limit
        only lowers alarm rates, so every guarantee holds.
        """
        return {level: value + TIE for level, value in self.thresholds_.items()}

    def levels(self, alarm_score: Float64[np.ndarray, " time"]) -> Int[np.ndarray, " time"]:
        """The level of each frame on its own."""
        return (alarm_score[:, None] > np.array(list(self.limits.values()))).sum(axis=1)

    def frame_levels(self, scores: Scores, *, first: int = 0) -> Int[np.ndarray, " time"]:
        """The level of each frame, before hysteresis; `first` is the first one's place.

        A frame that looks unfamiliar is a NOTICE at most where the model's claims were checked and
        held: a change that leaves the model right does no harm. Capping levels breaks no promise.
        """
        standard = self.standardised(scores)
        level = {name: self.levels(np.nan_to_num(s, nan=-np.inf)) for name, s in standard.items()}
        nothing = np.zeros_like(next(iter(level.values())))
        looks = np.maximum.reduce([nothing, *(level[n] for n in LOOKS if n in level)])
        rest = np.maximum.reduce([nothing, *(level[n] for n in level if n not in LOOKS)])
        if "surprise" not in level:
            return np.maximum(looks, rest)
        claims = [name for name in CLAIMS if name in level]
        unchecked = np.logical_or.reduce([np.isnan(standard[name]) for name in claims])
        held = np.maximum.reduce([level[name] for name in claims]) == Level.TRUST
        early = first + np.arange(len(looks)) < self.config.unchecked_steps
        harmless = np.where(unchecked, early, held)
        return np.maximum(np.where(harmless, looks.clip(max=Level.NOTICE), looks), rest)

    def trust_map(self, signals: EpisodeSignals) -> Float64[np.ndarray, "*view h w"] | None:
        """Trust in [0, 1] per latent position of the first frame; None if nothing maps it.

        The usual distance is that of an episode's least familiar region: its median over nominal
        episodes; of colours, what gives notice.
        """
        usual = {}
        if "region" in self.scales_:
            usual["region"] = max(self.scales_["region"].centre, MIN_SPREAD)
        if "colour" in self.scales_:
            usual["colour"] = max(
                self._in_own_unit("colour", self.thresholds_[Level.NOTICE]), MIN_SPREAD
            )
        return self.channels_.trust_map(signals, usual=usual)

    def threshold(self, name: str, level: Level = Level.NOTICE) -> float:
        """The score of signal `name`, in its own unit, above which it raises `level`."""
        return self._in_own_unit(name, self.limits[level])

    def _in_own_unit(self, name: str, standardised: float) -> float:
        """The score of signal `name` behind a standardised one."""
        scale = self.scales_[name]
        return scale.centre + scale.spread * standardised


def _maxima(scores: Scores) -> dict[str, float]:
    """Each signal's largest score; one that never ran is left out."""
    return {name: float(np.nanmax(s)) for name, s in scores.items() if np.isfinite(s).any()}


def held_levels(levels: Int[np.ndarray, " time"], calm_steps: int) -> Int[np.ndarray, " time"]:
    """Levels that rise at once and fall only after `calm_steps` lower steps in a row.

    >>> held_levels(np.array([0, 3, 0, 1, 0, 0, 0]), calm_steps=2)
    array([0, 3, 3, 1, 1, 0, 0])
    """
    padded = np.concatenate([np.zeros(calm_steps - 1, dtype=levels.dtype), levels])
    return np.lib.stride_tricks.sliding_window_view(padded, calm_steps).max(axis=1)
