"""Runtime monitor for a robot or a rollout: one verdict per step."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt8

from worldmodel.monitors.alarm_rule import (
    AlarmRule,
    DisturbedEpisodes,
    MonitorConfig,
    held_levels,
)
from worldmodel.monitors.arrays import require_floats, require_integer, require_probabilities
from worldmodel.monitors.causes.classifier import CauseModel
from worldmodel.monitors.causes.explain import Attribution
from worldmodel.monitors.channels.action import RECENT
from worldmodel.monitors.channels.camera_mounting import CameraSetupCheck
from worldmodel.monitors.channels.channel_set import SIGNALS, SMOOTHED, Scores, recent_mean
from worldmodel.monitors.channels.colour import MEMORY
from worldmodel.monitors.channels.sensor import SensorChannel, SensorError
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.channels.stillness import StillnessCheck
from worldmodel.monitors.claims import Claims, PredictionCheck
from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.metrics.watched import WatchedEpisode
from worldmodel.monitors.storage import SavedMonitor, load_monitor, save_monitor
from worldmodel.monitors.validity import MonitorMetadata, doubted, staleness, utc_now
from worldmodel.monitors.verdict import Evidence, Level, Verdict

Features = tuple[Float[np.ndarray, " d"], Float[np.ndarray, "*place c"]]
FeatureFunction = Callable[[UInt8[np.ndarray, "*view height width 3"]], Features]
"""Frame -> pooled features, and features of every latent position (place is [h, w] or [view, h,
w])."""


class RuntimeMonitor:
    """Judges every step by the camera frame, the action and the model's own prediction.

    `features` is injected, so the monitor needs neither a world model nor a GPU. Channels that lack
    their input (`features`, an imagined frame) do not run, and the verdict says so. Memory is
    constant. Any error inside the monitor becomes a `STOP` verdict that names it.
    """

    not_certified: Evidence | None = None
    """Why the model must not be trusted, whatever it claims: no verdict is then a `TRUST`."""

    def __init__(
        self,
        config: MonitorConfig | None = None,
        *,
        features: FeatureFunction | None = None,
        claims: Claims | None = None,
        deadline_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        today: Callable[[], datetime] = utc_now,
    ) -> None:
        """Create an unfitted monitor; call `fit`, or use `load`.

        Args:
            config: Alarm rates and channel settings.
            features: Frame -> features for the appearance channel.
            claims: Imagines the next frame when `update` gets no prediction; see `online_monitor`.
            deadline_s: A verdict that takes longer becomes a `STOP`; None: no deadline. The monitor
                cannot interrupt itself, so that verdict still comes late.
            clock: Seconds from any origin, read twice per update.
            today: Current date and time with a time zone, read once per episode. If the calibration
                has expired by then, every verdict of the episode is at least a `DEGRADE`.
        """
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"`deadline_s` must be above 0 or None, got {deadline_s}.")
        self.config = config or MonitorConfig()
        self.features = features
        self.claims = claims
        self.deadline_s = deadline_s
        self.clock = clock
        self.today = today

    def fit(
        self,
        calibration: Sequence[EpisodeSignals],
        *,
        frame_shape: tuple[int, ...],
        reference: Sequence[EpisodeSignals] | None = None,
        disturbed: Sequence[DisturbedEpisodes] = (),
        causes: CauseModel | None = None,
        metadata: MonitorMetadata | None = None,
        rate_hz: float | None = None,
    ) -> RuntimeMonitor:
        """Learn thresholds from nominal `calibration` episodes that the model was not trained on.

        Args:
            calibration: Calibration set; the alarm rates hold for episodes exchangeable with it.
            frame_shape: Shape of a valid frame, [height, width, 3] or [view, height, width, 3].
            reference: Reference set of familiar episodes, for example training episodes. None:
                every second calibration episode, and only the others set the thresholds.
            disturbed: Copies of these episodes under each declared nuisance, one entry per
                nuisance; the alarm rates hold under each of them, too.
            causes: Fitted cause model that names the change when a frame looks unfamiliar. None:
                such an alarm is called "appearance".
            metadata: Intended use and expiry date; None: no expiry. The creation date and the name
                of the feature function are filled in.
            rate_hz: Expected camera frames per second, to check time stamps against; None: only
                their order is checked.
        """
        metadata = metadata or MonitorMetadata()
        rows = metadata.action_rows
        sensor = SensorChannel(frame_shape, rate_hz=rate_hz, action_rows=rows)
        if reference is None:
            reference, calibration = calibration[::2], calibration[1::2]
        self.alarm_rule_ = AlarmRule(self.config).fit(
            calibration, reference=reference, disturbed=disturbed
        )
        created, name = self.today().replace(microsecond=0), getattr(self.features, "name", None)
        nuisances = [copies.nuisance.name for copies in disturbed]
        self.metadata_ = replace(metadata, created=created, features=name, nuisances=nuisances)
        self.causes_ = causes
        videos = [episode.frames for episode in reference if episode.frames is not None]
        if len(videos) == len(reference):
            sensor.mounting = CameraSetupCheck().fit(videos)
        sensor.stillness = _stillness((*reference, *calibration))
        self._start(sensor)
        return self

    def _start(self, sensor: SensorChannel) -> None:
        self.frame_shape_, self._sensor = sensor.frame_shape, sensor
        sensor.clear()
        cameras = self.metadata_.cameras or ()
        self._attribution = Attribution(self.alarm_rule_, self.causes_, cameras)
        self.reset()

    def sibling(self) -> RuntimeMonitor:
        """Copy for another robot: shares the fit, keeps its own episode state."""
        require_fitted(self, "alarm_rule_")
        other = copy.copy(self)
        other.claims = self.claims and self.claims.sibling()
        other._start(copy.copy(self._sensor))
        return other

    def reset(self) -> None:
        """Start a new episode."""
        require_fitted(self, "alarm_rule_")
        self._sensor.reset()
        self._attribution.reset()
        self._recent: deque[Level] = deque(maxlen=self.config.calm_steps)
        self._actions: deque[np.ndarray] = deque(maxlen=RECENT)
        self._absences: deque[np.ndarray] = deque(maxlen=MEMORY)
        self._scores = {name: deque[float](maxlen=count) for name, count in SMOOTHED.items()}
        self._num_frames = 0
        self._drop_claims()
        self._stale = staleness(self.metadata_, self.today())

    def update(
        self,
        observation: object,
        action: object,
        imagined: PredictionCheck | None = None,
        *,
        started: float | None = None,
    ) -> Verdict:
        """Judge one step.

        Args:
            observation: A uint8 frame of the fitted shape (the view axis may be omitted if there is
                one view), or a mapping with the frame as "image" and optionally its capture time as
                "time_s": seconds on a clock that never goes back, one number or one per view.
                Anything else gives a `STOP`, never an exception.
            action: Canonical action commanded at this frame, [7], or None. If the model's frames
                are several commands apart: all of them, concatenated.
            imagined: The world model's prediction of this frame; None: ask `claims`, if set.
            started: Reading of `clock` from which the latency and the deadline count, for example
                before the observation was decoded; None: now.
        """
        require_fitted(self, "alarm_rule_")
        started = self.clock() if started is None else started
        self._num_frames += 1
        try:
            verdict = self._judge_step(observation, action, imagined)
        except Exception as error:  # noqa: BLE001 (fail-safe: only an interrupt or exit passes)
            verdict = _failed(error)
            self._drop_claims()
        latency_s = self.clock() - started
        if self.deadline_s is not None and not latency_s <= self.deadline_s:
            verdict = _late(verdict, latency_s, self.deadline_s)
        verdict = doubted(verdict, self._stale, self.not_certified)
        self._recent.append(verdict.level)
        level = max(self._recent)
        causes = verdict.causes if level == verdict.level else (*verdict.causes, "held")
        return Verdict(level, causes, verdict.evidence, verdict.trust_map, latency_s)

    def _drop_claims(self) -> None:
        """Discard predictions; report a failure to do so with the next verdict."""
        self._unclaimed: Exception | None = None
        try:
            if self.claims is not None:
                self.claims.reset()
        except Exception as error:  # noqa: BLE001
            self._unclaimed = error

    def imagine(self, executed: object = None) -> None:
        """Let `claims` imagine the next frame now, instead of in the next `update`.

        Call it after acting on the verdict, while the robot moves. An error in it becomes a `STOP`
        at the next step.

        Args:
            executed: Canonical action the robot executed, if it differs from the judged one.
        """
        if self.claims is None:
            return
        try:
            self.claims.imagine(None if executed is None else self._row(executed))
        except Exception as error:  # noqa: BLE001 (reported with the next verdict)
            self._unclaimed = error

    def _judge_step(
        self, observation: object, action: object, imagined: PredictionCheck | None
    ) -> Verdict:
        frame = self._sensor.check(observation, action)
        if self._unclaimed is not None:
            raise self._unclaimed
        if imagined is None and self.claims is not None:
            imagined = self.claims.observe(frame, self._row(action))
        signals = self._remembered(
            self.alarm_rule_.channels_.derived(self._signals(frame, action, imagined))
        )
        scores = self._smoothed(self.alarm_rule_.channels_.scores(signals))
        for name, score in scores.items():
            has_input = self.alarm_rule_.channels_.has_input(name, signals)
            if has_input and not np.isfinite(score).all():
                return _failure("monitor.error", f"the channel {name} gave the score {score[0]}.")
        if not any(np.isfinite(s).all() for name, s in scores.items() if name != "action"):
            return _failure("monitor.blind", "no calibrated channel could score the frame.")
        level = Level(int(self.alarm_rule_.frame_levels(scores, first=self._num_frames - 1)[0]))
        causes, found = self._attribution.explain(frame, signals, scores)
        evidence = {name: self._evidence(name, scores) for name in SIGNALS} | found
        if self._num_frames > self.alarm_rule_.max_frames_:
            evidence["promise"] = self._overdue()
        return Verdict(level, causes, evidence, self.alarm_rule_.trust_map(signals))

    def _evidence(self, name: str, scores: Scores) -> Evidence:
        if name not in scores:
            return Evidence(None, None, "did not run: it was not calibrated.")
        threshold, score = self.alarm_rule_.threshold(name), float(scores[name][0])
        if not np.isnan(score):
            return Evidence(score, threshold)
        return Evidence(None, threshold, f"did not run: {MISSING[name]}.")

    def _overdue(self) -> Evidence:
        note = "the alarm rate holds only up to the length of the longest calibration episode."
        return Evidence(float(self._num_frames), float(self.alarm_rule_.max_frames_), note)

    def _remembered(self, signals: EpisodeSignals) -> EpisodeSignals:
        """Take the familiar colours of the last frames into account, not of this one alone."""
        if signals.absences is None:
            return signals
        self._absences.append(signals.absences[0])
        return replace(signals, absences=np.min(self._absences, axis=0)[None])

    def _smoothed(self, scores: Scores) -> Scores:
        """Smooth this frame's scores over recent frames, as `smoothed` does for whole episodes."""
        for name, recent in self._scores.items():
            if name in scores:
                recent.append(float(scores[name][0]))
                mean = recent_mean(np.array(recent), SMOOTHED[name])
                scores = {**scores, name: np.array([mean])}
        return scores

    def _signals(
        self,
        frame: UInt8[np.ndarray, "*view height width 3"],
        action: object,
        imagined: PredictionCheck | None,
    ) -> EpisodeSignals:
        pooled, positions, confidence, horizon, ratio = None, None, None, None, None
        if self.features is not None:
            pooled, positions = (require_floats("features", p)[None] for p in self.features(frame))
        if imagined is not None:
            stated = require_floats("confidence", imagined.confidence)[None]
            confidence = require_probabilities(stated)
            horizon = np.array([require_integer("horizon", imagined.horizon)])
            if imagined.error_ratio is not None:
                ratio = require_floats("error_ratio", imagined.error_ratio)[None]
        return EpisodeSignals(
            pooled=pooled,
            positions=positions,
            frames=frame[None],
            confidence=confidence,
            horizon=horizon,
            error_ratio=ratio,
            actions=self._recent_actions(action),
        )

    def _row(self, action: object) -> Float64[np.ndarray, " a"]:
        """Action as float64; NaN if unknown."""
        if action is None:
            return np.full(7 * self._sensor.action_rows, np.nan)
        return np.asarray(action, dtype=np.float64)

    def _recent_actions(self, action: object) -> Float64[np.ndarray, "1 recent a"]:
        """Append the action, checked by the sensor channel; rows as in `recent_actions`."""
        row = self._row(action)
        while len(self._actions) < RECENT:
            self._actions.append(row)
        self._actions.append(row)
        return np.stack(self._actions)[None]

    def watch(self, signals: EpisodeSignals) -> WatchedEpisode:
        """Judge a recorded episode at once, like `update` but without sensor and expiry checks."""
        require_fitted(self, "alarm_rule_")
        scores = self.alarm_rule_.scores(signals)
        alarm_score = self.alarm_rule_.alarm_score(scores)
        levels = np.where(
            np.isfinite(alarm_score), self.alarm_rule_.frame_levels(scores), Level.STOP
        )
        return WatchedEpisode(scores, alarm_score, held_levels(levels, self.config.calm_steps))

    def save(self, folder: str | Path) -> None:
        """Write the fitted monitor to `folder`; the feature function is not saved."""
        require_fitted(self, "alarm_rule_")
        saved = SavedMonitor(self.alarm_rule_, self._sensor, self.metadata_, self.causes_)
        save_monitor(saved, Path(folder))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        features: FeatureFunction | None = None,
        deadline_s: float | None = None,
        model_hash: str | None = None,
        action_spec: Mapping[str, Any] | None = None,
    ) -> RuntimeMonitor:
        """Read a saved monitor; `features` must be the function it was fitted with.

        Raises:
            OSError: `folder` holds no monitor.
            ValueError: a file is corrupt, or the monitor was fitted for another model, another
                action spec or another feature function. Only values known on both sides count.
        """
        saved = load_monitor(Path(folder))
        name = getattr(features, "name", None)
        use = MonitorMetadata(model_hash=model_hash, action_spec=action_spec, features=name)
        saved.metadata.check_fits(str(folder), use)
        monitor = cls(saved.alarm_rule.config, features=features, deadline_s=deadline_s)
        monitor.alarm_rule_, monitor.metadata_ = saved.alarm_rule, saved.metadata
        monitor.causes_ = saved.causes
        monitor._start(saved.sensor)
        return monitor


MISSING = {
    "appearance": "no feature function",
    "region": "no feature function",
    "colour": "no frame",
    "missing_colour": "no frame",
    "action": "no action, or none before it",
    "action_range": "no action",
    "confidence": "no imagined frame",
    "surprise": "no imagined frame with its error",
}
"""Signal -> the input it lacks when it does not run."""


def _stillness(episodes: Sequence[EpisodeSignals]) -> StillnessCheck | None:
    """Stillness check fitted to all episodes; None if one lacks frames or actions."""
    familiar = [
        (e.frames, np.nan_to_num(e.actions[:, -1]).reshape(len(e), -1, 7)[..., :6].sum(axis=1))
        for e in episodes
        if e.frames is not None and e.actions is not None and e.actions.shape[-1] % 7 == 0
    ]
    return StillnessCheck().fit(familiar) if len(familiar) == len(episodes) else None


def _failed(error: Exception) -> Verdict:
    """`STOP` verdict for an exception: a sensor fault or an internal error."""
    if isinstance(error, SensorError):
        return _failure(f"sensor.{error.code}", str(error))
    return _failure("monitor.error", f"{type(error).__name__}: {error}")


def _failure(cause: str, note: str) -> Verdict:
    return Verdict(Level.STOP, (cause,), {cause: Evidence(None, None, note)})


def _late(verdict: Verdict, latency_s: float, deadline_s: float) -> Verdict:
    """`STOP` verdict for a missed deadline; keeps the causes and evidence."""
    cause, note = "monitor.deadline", "missed the deadline (seconds): the verdict came too late."
    evidence = {**verdict.evidence, cause: Evidence(latency_s, deadline_s, note)}
    return Verdict(Level.STOP, (*verdict.causes, cause), evidence, verdict.trust_map)
