"""The monitor run over a recorded episode, frame by frame, as it would run beside a robot."""

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
"""Start of the name of a channel's score in a log."""
VERDICT = ("level", "causes", "latency_s")
"""Signals of a log that sum up a verdict."""


def watch(
    calibration: Calibration, episode: Episode, rollouts: EpisodeRollouts
) -> Iterator[Verdict]:
    """One verdict per frame, from the real frame and what the model claimed of it beforehand."""
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
    """What the monitor is told of an imagined frame, once the real one is there; None: it was not.

    `confidence` is that of `EPSILONS`.
    """
    if not horizon:
        return None
    stated = confidence[..., EPSILONS.index(MONITOR_EPSILON)].astype(np.float32)
    return PredictionCheck(stated, horizon, error_ratio(error, confidence, np.array(EPSILONS)))


def known(action: Float[np.ndarray, " a"]) -> Float[np.ndarray, " a"] | None:
    """An action as the monitor takes it: None where it is unknown."""
    return None if np.isnan(action).any() else action


def watched_steps(
    model: WorldModel,
    calibration: Calibration,
    episode: Episode,
    rollouts: EpisodeRollouts,
    *,
    show: Callable[[np.ndarray, Verdict], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """What a log keeps of every frame: what was imagined of it, and the verdict on it.

    `show` is given every frame [view, height, width, 3] and its verdict as they come.
    """
    channels = calibration.monitor.alarm_rule_.channels_.names
    config = model.config.dynamics
    map_shape = (config.views, config.height, config.width)
    verdicts = watch(calibration, episode, rollouts)
    for step, verdict in zip(steps(model, episode, rollouts), verdicts, strict=True):
        if show is not None:
            show(step["frame"], verdict)
        yield {**step, **verdict_signals(verdict, channels, map_shape)}


def verdict_signals(
    verdict: Verdict, channels: Sequence[str], map_shape: tuple[int, ...]
) -> dict[str, Any]:
    """What a log keeps of a verdict; NaN where there is no map or a channel did not run."""
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
    """What the monitor was shown in a watched rollout, for `replay`, as `RolloutLog.read` gives it.

    The replayed verdicts have the logged `verdict_signals`, bit for bit. Episodes of a camera of
    other proportions than the model's are the exception: their log holds the squeezed frames.
    """
    claims, errors, horizons = (signals.get(name) for name in ("confidence", "error", "horizon"))
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
    """What the monitor made of one episode."""

    num_frames: int
    first_alarm: int | None
    """Frame of the first verdict above TRUST; None without an alarm."""
    causes: tuple[str, ...]
    """Of the first alarm."""
    level: Level
    """Highest level reached."""
    latency_s: float
    """Median time of the monitor per frame, without the imagination."""


def summarize_watch(
    *, level: Sequence[str], causes: Sequence[Sequence[str]], latency_s: Sequence[float]
) -> WatchSummary:
    """Sum up the verdicts on an episode, given frame by frame as a log holds them.

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
