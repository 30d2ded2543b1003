"""Verdicts and key frames of a watched episode, kept for its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from worldmodel.monitors.verdict import Evidence, Level, Verdict

Frame = UInt8[np.ndarray, "view height width 3"]
Map = Float[np.ndarray, "*view h w"]

MIN_CHOSEN = 5
"""First frame, last frame, and those before, at and after the first alarm."""
MAX_SPREAD = 48
"""Most evenly spaced frames in memory, from which further key frames are chosen."""


def ratio(evidence: Evidence) -> float:
    """Score divided by threshold; NaN without a finite score or a threshold above 0."""
    score, threshold = evidence.score, evidence.threshold
    if score is None or threshold is None or not np.isfinite(score) or not 0 < threshold < np.inf:
        return float("nan")
    return score / threshold


def verdict_text(verdict: Verdict) -> str:
    """Level and causes of a verdict as text.

    >>> verdict_text(Verdict(Level.STOP, ("appearance", "held")))
    'stop: appearance, held'
    """
    return ": ".join(filter(None, (verdict.level.name.lower(), ", ".join(verdict.causes))))


def differs(verdict: Verdict, before: Verdict | None) -> bool:
    """Whether the level or the set of causes changed."""
    return before is None or (verdict.level, {*verdict.causes}) != (before.level, {*before.causes})


def evidence_text(verdict: Verdict) -> str:
    """Evidence per cause as text: score, threshold and note."""
    evidence_of = {cause: verdict.evidence.get(cause) for cause in verdict.causes}
    texts = []
    for cause, evidence in evidence_of.items():
        if evidence is None:
            continue
        numbers = [
            f"{name} {value:.3g}"
            for name, value in (("score", evidence.score), ("threshold", evidence.threshold))
            if value is not None
        ]
        texts.append(f"{cause}: {', '.join([*numbers, *filter(None, [evidence.note])])}")
    return "; ".join(texts)


@dataclass(frozen=True)
class Keyframe:
    """A frame with its trust map and verdict level."""

    frame: Frame
    trust_map: Map | None
    level: Level


@dataclass
class VerdictTimeline:
    """Levels, channel ratios and changes of an episode's verdicts over time."""

    levels: list[int] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    """Channel -> score / threshold per frame; channels without any ratio are left out."""
    changes: list[tuple[int, str]] = field(default_factory=list)
    """Frame and new verdict text at each change of level or causes."""
    undrawn: set[str] = field(default_factory=set)
    """Channels with a score but no threshold above 0."""
    first_alarm: int | None = None
    reasons: str = ""
    """Evidence for the first alarm."""
    last: Verdict | None = None

    def add(self, verdict: Verdict) -> None:
        """Add the next verdict."""
        t = len(self.levels)
        if differs(verdict, self.last):
            self.changes.append((t, verdict_text(verdict)))
        if verdict.level > Level.TRUST and self.first_alarm is None:
            self.first_alarm, self.reasons = t, evidence_text(verdict)
        self.levels.append(int(verdict.level))
        self.last = verdict
        ratios = {name: ratio(evidence) for name, evidence in verdict.evidence.items()}
        self.undrawn |= {
            name for name, value in ratios.items()
            if np.isnan(value) and verdict.evidence[name].score is not None
        }  # fmt: skip
        for name in ratios:
            if name not in self.ratios and not np.isnan(ratios[name]):
                self.ratios[name] = [float("nan")] * t
        for name, values in self.ratios.items():
            values.append(ratios.get(name, float("nan")))


class KeyframeChoice:
    """Choice of key frames: first, last, around the first alarm, and evenly spaced in between."""

    def __init__(self) -> None:
        self._spread: dict[int, Keyframe] = {}
        self._stride = 1
        self._pinned: dict[int, Keyframe] = {}
        self._last: tuple[int, Keyframe] | None = None
        self._alarm: int | None = None

    def add(self, t: int, keyframe: Keyframe) -> None:
        """Add the next frame; the spacing doubles when too many frames are held."""
        if self._alarm is None and keyframe.level > Level.TRUST:
            self._alarm = t
            self._pinned.update([self._last] if self._last else [])
        if t == 0 or (self._alarm is not None and t <= self._alarm + 1):
            self._pinned[t] = keyframe
        if t % self._stride == 0:
            self._spread[t] = keyframe
        if len(self._spread) > MAX_SPREAD:
            self._stride *= 2
            self._spread = {t: m for t, m in self._spread.items() if t % self._stride == 0}
        self._last = (t, keyframe)

    def chosen(self, number: int) -> dict[int, Keyframe]:
        """Key frames by frame number: `number`, but at least `MIN_CHOSEN`, as far as they exist."""
        assert self._last is not None
        chosen = dict([*self._pinned.items(), self._last])
        kept = np.array(list(self._spread))
        for t in between(sorted(chosen), number - len(chosen)):
            nearest = int(kept[np.abs(kept - t).argmin()])
            chosen[nearest] = self._spread[nearest]
        return dict(sorted(chosen.items()))


def between(points: Sequence[int], number: int) -> list[float]:
    """Up to `number` further points, at least 1 apart, that minimise the largest gap.

    >>> between([0, 8, 9, 12], 4)
    [2.0, 4.0, 6.0, 10.5]
    """
    gaps, parts = np.diff(points), np.ones(len(points) - 1, dtype=int)
    for _ in range(number if len(gaps) else 0):
        widest = np.argmax(gaps / parts)
        if gaps[widest] <= parts[widest]:
            break
        parts[widest] += 1
    return [
        float(start + gap * part / parts_here)
        for start, gap, parts_here in zip(points[:-1], gaps, parts, strict=True)
        for part in range(1, parts_here)
    ]
