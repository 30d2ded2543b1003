"""Alarm rule: fitted channels, one common scale for their scores, and a threshold per level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from worldmodel.monitors.nuisances import Nuisance
from worldmodel.monitors.verdict import Level

LEAST_SCALED = 10
"""Fewest calibration episodes from which the tails of signals are estimated."""
TIE = 1e-4
"""Largest rounding difference of alarm scores between processors, thread counts and batch sizes,
in spreads of a signal; measured ones are below 1e-5."""
MIN_SPREAD = 1e-6
"""Smallest spread of a signal's episode maxima; signals are of order 1."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Alarm rates on nominal episodes for each level, and channel settings.

    The rates exclude faults of the input (`sensor.*`) and of the monitor (`monitor.*`). A fault is
    always a `STOP`, except a stale calibration, which is a `DEGRADE`.
    """

    alpha_notice: float = 0.05
    """Probability that a nominal episode ever reaches NOTICE or more: that of any alarm."""
    alpha_degrade: float = 0.02
    """Probability that it ever reaches DEGRADE or more."""
    alpha_stop: float = 0.01
    """Probability that it ever reaches STOP; 0.01 needs 99 calibration episodes."""
    delta: float | None = None
    """Share of calibration sets for which a level's alarm rate may exceed its alpha; None: the rate
    holds on average over calibration sets. 0.05 with an alpha of 0.01 needs 299 episodes."""
    calm_steps: int = 5
    """Calm steps before the level falls again (hysteresis)."""
    unchecked_steps: int = 4
    """First steps of an episode, before any prediction can be checked, in which an unfamiliar look
    gives NOTICE at most; only for monitors fitted with predictions."""
    low_confidence: float = 0.5
    """Confidence below which a subpatch counts as low."""
    region: int = 2
    """Side of the window, in latent positions, over which confidence is averaged."""

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
        """Level -> probability that a nominal episode reaches it."""
        return {
            Level.NOTICE: self.alpha_notice,
            Level.DEGRADE: self.alpha_degrade,
            Level.STOP: self.alpha_stop,
        }

    @classmethod
    def for_episodes(cls, num_calibration: int, *, delta: float | None = None) -> MonitorConfig:
        """Default config, each alpha raised to the lowest that this many episodes can guarantee."""
        least = smallest_alpha(num_calibration, delta)
        return cls(
            delta=delta,
            alpha_notice=max(cls.alpha_notice, least),
            alpha_degrade=max(cls.alpha_degrade, least),
            alpha_stop=max(cls.alpha_stop, least),
        )


@dataclass(frozen=True)
class DisturbedEpisodes:
    """Copies of nominal episodes under one declared nuisance."""

    nuisance: Nuisance
    calibration: Iterable[tuple[int, EpisodeSignals]]
    """Index of a calibration episode and its copy: of all, or of as many as the alarm rates need;
    read once."""
    reference: Mapping[int, EpisodeSignals]
    """Index of a reference episode -> its copy, for what the nuisance does to the features. Where
    the calibration episodes are too few to set the scales, these copies set them, from all of their
    signals; otherwise features are enough."""


Maxima = dict[str, float]
"""Signal -> its largest score in an episode; signals that never ran are left out."""


@dataclass(frozen=True)
class Scale:
    """Location and spread of a signal's largest score per nominal episode."""

    centre: float
    """Median over nominal episodes."""
    spread: float
    """Distance from `centre` to the quantile at its share of alpha_notice, plus the largest shift
    of that quantile by a nuisance."""


class AlarmRule:
    """Compares the largest standardised signal of a frame with thresholds for each level.

    A signal is standardised by the median and spread of its episode maxima on nominal episodes. The
    alarm score is the largest standardised signal; the thresholds bound its episode maximum. The
    alarm rates therefore hold for all signals together, and with any of them missing, because
    leaving one out only lowers the maximum. Each spread reaches the quantile at the signal's share
    of the alarm budget (weighted Bonferroni, `WEIGHTS`); otherwise the signal with the longest tail
    would set the threshold of all. The threshold itself accounts for signals that alarm together.

    With nuisances, a threshold is the largest of those of the nominal episodes and of their copies
    under each nuisance, so that each alarm rate holds under each nuisance alone.
    """

    def __init__(self, config: MonitorConfig) -> None:
        self.config = config

    def fit(
        self,
        calibration: Sequence[EpisodeSignals],
        *,
        reference: Sequence[EpisodeSignals],
        disturbed: Sequence[DisturbedEpisodes] = (),
    ) -> AlarmRule:
        """Fit the channels on `reference` and the thresholds on `calibration` episodes.

        The two must not share an episode: a channel scores the frames it was fitted on as more
        familiar. A third of the calibration episodes sets the scales, if enough remain for the
        thresholds. Otherwise the reference episodes set them by two-fold cross-scoring. The same
        holds for the copies of each nuisance.
        """
        if len(reference) < 2:
            raise ValueError(f"`reference` needs at least 2 episodes, got {len(reference)}.")
        self._check_count(len(calibration))
        self.channels_ = self._fit_channels(dict(enumerate(reference)), disturbed)
        maxima = [
            {index: _maxima(self.scores(episode)) for index, episode in episodes}
            for episodes in (enumerate(calibration), *(copies.calibration for copies in disturbed))
        ]
        for episodes in maxima:
            self._check_count(len(episodes))
        if min(self._num_spare(episodes) for episodes in maxima) >= LEAST_SCALED:
            spare = [{i: m for i, m in e.items() if i % 3 == 0} for e in maxima]
            self.scales_ = self._scales(*spare)
            maxima = [{i: m for i, m in e.items() if i % 3} for e in maxima]
        else:
            self.scales_ = self._scales(*self._cross_scored(reference, disturbed))
        largest = [np.array([self._largest(m) for m in e.values()]) for e in maxima]
        self.thresholds_ = {
            level: max(
                EpisodeThreshold(alpha, delta=self.config.delta).fit(values).value_
                for values in largest
            )
            for level, alpha in self.config.alphas.items()
        }
        self.maxima_: Float64[np.ndarray, " episode"] | None = largest[0]  # None in old files
        self.num_reference_, self.num_calibration_ = len(reference), len(largest[0])
        self.max_frames_ = max(map(len, calibration))
        return self

    def _largest(self, maxima: Maxima) -> float:
        """Largest alarm score of an episode; minus infinity if no signal ran."""
        scores = {name: np.array([value]) for name, value in maxima.items()}
        return float(self.alarm_score(scores).max()) if scores else -np.inf

    def _num_spare(self, episodes: Mapping[int, Maxima]) -> int:
        """Episodes that may set the scales; 0 if too few would remain for the thresholds."""
        third = sum(index % 3 == 0 for index in episodes)
        return third if len(episodes) - third >= self._num_needed() else 0

    def _num_needed(self) -> int:
        return episodes_needed(self.config.alpha_stop, self.config.delta)

    def _check_count(self, num_calibration: int) -> None:
        """Raise before fitting if the strictest level lacks calibration episodes."""
        alpha, delta = self.config.alpha_stop, self.config.delta
        needed = self._num_needed()
        if num_calibration < needed:
            target = f"`alpha_stop`={alpha:g}" + (f" with `delta`={delta:g}" if delta else "")
            least = smallest_alpha(num_calibration, delta)
            raise ValueError(
                f"{target} needs at least {needed} calibration episodes, got {num_calibration}, "
                f"which support {least:.3g} at best (see `MonitorConfig.for_episodes`)."
            )

    def _fit_channels(
        self, reference: Mapping[int, EpisodeSignals], disturbed: Sequence[DisturbedEpisodes]
    ) -> Channels:
        return fit_channels(
            list(reference.values()),
            low_confidence=self.config.low_confidence,
            region=self.config.region,
            nuisances=[copies.nuisance for copies in disturbed],
            effects=_effects(reference, disturbed),
        )

    def _cross_scored(
        self, reference: Sequence[EpisodeSignals], disturbed: Sequence[DisturbedEpisodes]
    ) -> list[dict[int, Maxima]]:
        """Maxima of each half of the episodes, from channels fitted on the other half.

        The first ones are those of the reference episodes, the others those of their copies.
        """
        sets = [dict(enumerate(reference)), *(copies.reference for copies in disturbed)]
        scored: list[dict[int, Maxima]] = [{} for _ in sets]
        for half in (0, 1):
            others = {i: e for i, e in enumerate(reference) if i % 2 != half}
            channels = self._fit_channels(others, disturbed)
            for maxima, episodes in zip(scored, sets, strict=True):
                mine = {index: e for index, e in episodes.items() if index % 2 == half}
                maxima |= {i: _maxima(smoothed(channels.scores(e))) for i, e in mine.items()}
        return scored

    def _scales(
        self, nominal: Mapping[int, Maxima], *disturbed: Mapping[int, Maxima]
    ) -> dict[str, Scale]:
        """Scale of each signal, from nominal episodes and their copies under each nuisance."""
        names = dict.fromkeys(name for maxima in nominal.values() for name in maxima)
        weights = {name: WEIGHTS.get(name, 1.0) for name in names}
        scales = {}
        for name, weight in weights.items():
            level = 1 - self.config.alpha_notice * weight / sum(weights.values())
            values = [m[name] for m in nominal.values() if name in m]
            centre, high = np.quantile(values, [0.5, level])
            shifts = (
                _shift([(nominal[i][name], m[name]) for i, m in copies.items() if name in m], level)
                for copies in disturbed
            )
            high += max(shifts, default=0.0)
            scales[name] = Scale(float(centre), max(float(high - centre), MIN_SPREAD))
        return scales

    def scores(self, signals: EpisodeSignals) -> Scores:
        """Scores of each signal per frame, in its own unit; NaN where it did not run."""
        require_fitted(self, "channels_")
        return smoothed(self.channels_.scores(signals))

    def standardised(self, scores: Mapping[str, Float64[np.ndarray, " time"]]) -> Scores:
        """Standardised scores: spreads above the median episode maximum."""
        return {
            name: (score - self.scales_[name].centre) / self.scales_[name].spread
            for name, score in scores.items()
        }

    def alarm_score(
        self, scores: Mapping[str, Float64[np.ndarray, " time"]]
    ) -> Float64[np.ndarray, " time"]:
        """Largest standardised score of each frame; minus infinity where no signal ran."""
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
        """Level of each frame from its alarm score, before hysteresis."""
        return (alarm_score[:, None] > np.array(list(self.limits.values()))).sum(axis=1)

    def frame_levels(self, scores: Scores, *, first: int = 0) -> Int[np.ndarray, " time"]:
        """Level of each frame, before hysteresis; `first` is the index of the first frame.

        If the model's predictions were checked and held, an unfamiliar look gives NOTICE at most: a
        change that leaves the model right does no harm. Lower levels break no guarantee.
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
        """Trust in [0, 1] per latent position of the first frame; None if no channel gives a map.

        Trust is 1 up to a distance per signal. For regions: the median over nominal episodes of the
        least familiar region's distance. For colours: the NOTICE threshold.
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
        """Threshold of signal `name` for `level`, in the signal's own unit."""
        return self._in_own_unit(name, self.limits[level])

    def _in_own_unit(self, name: str, standardised: float) -> float:
        """Convert a standardised score of signal `name` to its own unit."""
        scale = self.scales_[name]
        return scale.centre + scale.spread * standardised


def _shift(pairs: Sequence[tuple[float, float]], level: float) -> float:
    """How far a nuisance raises a quantile of an episode's maximum; 0 if it lowers it.

    `pairs` holds the nominal and the disturbed maximum of the same episodes: an odd episode raises
    both quantiles, so it does not count as the nuisance's effect.
    """
    if not pairs:
        return 0.0
    nominal, disturbed = np.quantile(pairs, level, axis=0)
    return max(0.0, float(disturbed - nominal))


def _effects(
    reference: Mapping[int, EpisodeSignals], disturbed: Sequence[DisturbedEpisodes]
) -> list[Float64[np.ndarray, "_ d"]]:
    """What each nuisance adds to the pooled features of the reference episodes with copies."""
    effects = []
    for copies in disturbed:
        shared = copies.reference.keys() & reference.keys()
        pairs = [(copies.reference[i].pooled, reference[i].pooled) for i in sorted(shared)]
        changes = [
            changed.astype(np.float64) - original
            for changed, original in pairs
            if changed is not None and original is not None
        ]
        effects += [np.concatenate(changes)] if changes else []
    return effects


def _maxima(scores: Scores) -> Maxima:
    """Largest score of each signal; signals that never ran are left out."""
    return {name: float(np.nanmax(s)) for name, s in scores.items() if np.isfinite(s).any()}


def held_levels(levels: Int[np.ndarray, " time"], calm_steps: int) -> Int[np.ndarray, " time"]:
    """Hysteresis: levels rise at once and fall only after `calm_steps` lower steps in a row.

    >>> held_levels(np.array([0, 3, 0, 1, 0, 0, 0]), calm_steps=2)
    array([0, 3, 3, 1, 1, 0, 0])
    """
    padded = np.concatenate([np.zeros(calm_steps - 1, dtype=levels.dtype), levels])
    return np.lib.stride_tricks.sliding_window_view(padded, calm_steps).max(axis=1)
