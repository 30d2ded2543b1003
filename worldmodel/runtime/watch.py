"""Monitoring of a recorded episode, frame by frame, as on a robot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from worldmodel.calibration.calibrated import Calibration
from worldmodel.calibration.features import MONITOR_EPSILON
from worldmodel.episodes.episode import Episode, unstretched
from worldmodel.model import WorldModel
from worldmodel.monitors.channels.surprise import error_ratio
from worldmodel.monitors.claims import PredictionCheck
from worldmodel.monitors.replay import RecordedStep
from worldmodel.monitors.verdict import Level, Verdict
from worldmodel.rollouts.log import commanded, steps
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts

SCORE = "score."
"""Prefix of the names of channel scores in a log."""
VERDICT = ("level", "causes", "latency_s")
"""Signals of a log that summarize a verdict."""


def watch(
    calibration: Calibration, episode: Episode, rollouts: EpisodeRollouts
) -> Iterator[Verdict]:
    """One verdict per frame, from the real frame and its prediction."""
    monitor = calibration.monitor
    monitor.reset()
    frames = unstretched(episode)
    for t, horizon in enumerate(rollouts.horizon):
        error = rollouts.error[t].half().numpy()
        claim = claimed(rollouts.confidence[t].numpy(), error, int(horizon))
        action = known(commanded(episode, t))
        yield monitor.update(frames[t].numpy(), action, claim)


def claimed(
    confidence: Float[np.ndarray, "view channel h w levels"],
    error: Float[np.ndarray, "view channel h w"],
    horizon: int,
) -> PredictionCheck | None:
    """Check of a predicted frame for the monitor; None if the frame was not predicted.

    `confidence` has the levels of `EPSILONS`.
    """
    if not horizon:
        return None
    stated = confidence[..., EPSILONS.index(MONITOR_EPSILON)].astype(np.float32)
    return PredictionCheck(stated, horizon, error_ratio(error, confidence, np.array(EPSILONS)))


def known(action: Float[np.ndarray, " a"]) -> Float[np.ndarray, " a"] | None:
    """Action for the monitor; None if it is unknown (NaN)."""
    return None if np.isnan(action).any() else action


def watched_steps(
    model: WorldModel,
    calibration: Calibration,
    episode: Episode,
    rollouts: EpisodeRollouts,
    *,
    show: Callable[[np.ndarray, Verdict], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Log entries, one per frame: rollout and verdict.

    `confidence` is the one that reports show; `stated_confidence` is the monitor's input.
    `show` is called with every frame [view, height, width, 3] and its verdict.
    """
    channels = calibration.monitor.alarm_rule_.channels_.names
    config = model.config.dynamics
    map_shape = (config.views, config.height, config.width)
    verdicts = watch(calibration, episode, rollouts)
    shown = steps(model, episode, calibration.shown(model, episode, rollouts))
    for step, stated, verdict in zip(shown, rollouts.confidence, verdicts, strict=True):
        if show is not None:
            show(step["frame"], verdict)
        step["stated_confidence"] = stated.numpy()
        yield {**step, **verdict_signals(verdict, channels, map_shape)}


def verdict_signals(
    verdict: Verdict, channels: Sequence[str], map_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Log entry of a verdict; NaN if there is no trust map or a channel did not run."""
    no_map = np.full(map_shape, np.nan, np.float32)
    scores = {name: e.score for name, e in verdict.evidence.items() if e.score is not None}
    return {
        "level": verdict.level.name.lower(),
        "causes": list(verdict.causes),
        "trust_map": no_map if verdict.trust_map is None else verdict.trust_map.astype(np.float32),
        "latency_s": verdict.latency_s,
        **{SCORE + name: float(scores.get(name, np.nan)) for name in channels},
    }


def logged_steps(signals: Mapping[str, np.ndarray]) -> Iterator[RecordedStep]:
    """Inputs of the monitor in a logged rollout (from `RolloutLog.read`), for `replay`.

    The replayed verdicts equal the logged `verdict_signals` bit for bit, unless the camera has
    another aspect ratio than the model: the log then holds resized frames.
    """
    claims = signals.get("stated_confidence", signals.get("confidence"))  # 0.1.0: only "confidence"
    errors, horizons = signals.get("error"), signals.get("horizon")
    for t, frame in enumerate(signals["frame"]):
        claim = None
        if claims is not None and errors is not None and horizons is not None:
            claim = claimed(claims[t], errors[t], int(horizons[t]))
        yield RecordedStep(
            observation=frame,
            action=known(signals["action"][t]),
            imagined=claim,
            latency_s=float(signals["latency_s"][t]),
        )


@dataclass(frozen=True, kw_only=True)
class WatchSummary:
    """Summary of the verdicts on one episode."""

    num_frames: int
    first_alarm: int | None
    """Frame of the first verdict above TRUST; None without an alarm."""
    causes: tuple[str, ...]
    """Causes of the first alarm."""
    level: Level
    """Highest level of the episode."""
    latency_s: float
    """Median time of the monitor per frame, without the world model."""


def summarize_watch(
    *, level: Sequence[str], causes: Sequence[Sequence[str]], latency_s: Sequence[float]
) -> WatchSummary:
    """Summarize the verdicts on an episode, given frame by frame as in a log.

    >>> levels, causes = ["trust", "notice", "stop"], [(), ("region",), ("appearance",)]
    >>> summarize_watch(level=levels, causes=causes, latency_s=[0.1, 0.2, 0.3])
    WatchSummary(num_frames=3, first_alarm=1, causes=('region',), level=..., latency_s=0.2)
    """
    levels = [Level[name.upper()] for name in level]
    first = next((t for t, reached in enumerate(levels) if reached > Level.TRUST), None)
    return WatchSummary(
        num_frames=len(levels),
        first_alarm=first,
        causes=() if first is None else tuple(causes[first]),
        level=max(levels),
        latency_s=float(np.median(latency_s)),
    )
