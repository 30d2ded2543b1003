"""What is kept of a watched episode to show it: verdicts in numbers and words, and a few frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from worldmodel.monitors.verdict import Evidence, Level, Verdict

Frame = UInt8[np.ndarray, "view height width 3"]
Map = Float[np.ndarray, "*view h w"]

MIN_CHOSEN = 5
"""The first frame, the last, and those before, at and after the first alarm."""
MAX_SPREAD = 48
"""Frames kept, evenly spread, to choose the others from."""


def ratio(evidence: Evidence) -> float:
    """The score in thresholds; NaN if there is no finite score, or no threshold above 0."""
    score, threshold = evidence.score, evidence.threshold
    if score is None or threshold is None or not np.isfinite(score) or not 0 < threshold < np.inf:
        return float("nan")
    return score / threshold


def said(verdict: Verdict) -> str:
    """The level and its causes in words.

    >>> said(Verdict(Level.STOP, ("appearance", "held")))
    'stop: appearance, held'
    """
    return ": ".join(filter(None, (verdict.level.name.lower(), ", ".join(verdict.causes))))


def differs(verdict: Verdict, before: Verdict | None) -> bool:
    """Whether the level or the causes changed, whatever their order."""
    return before is None or (verdict.level, {*verdict.causes}) != (before.level, {*before.causes})


def reasons(verdict: Verdict) -> str:
    """The evidence for each cause: its score and threshold, and its note."""
    found = {cause: verdict.evidence.get(cause) for cause in verdict.causes}
    texts = []
    for cause, evidence in found.items():
        if evidence is None:
            continue
        figures = [
            f"{name} {value:.3g}"
            for name, value in (("score", evidence.score), ("threshold", evidence.threshold))
            if value is not None
        ]
        texts.append(f"{cause}: {', '.join([*figures, *filter(None, [evidence.note])])}")
    return "; ".join(texts)


@dataclass(frozen=True)
class Keyframe:
    """What is shown of one frame."""

    frame: Frame
    trust_map: Map | None
    level: Level


@dataclass
class VerdictTimeline:
    """What the verdicts said over time, in numbers and words."""

    levels: list[int] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    """Channel -> score in thresholds per frame; channels that never had one are left out."""
    changes: list[tuple[int, str]] = field(default_factory=list)
    """Frames at which level or causes changed, and to what."""
    undrawn: set[str] = field(default_factory=set)
    """Channels with a score and without a threshold above 0."""
    first_alarm: int | None = None
    reasons: str = ""
    """Of the first alarm."""
    last: Verdict | None = None

    def add(self, verdict: Verdict) -> None:
        """Keep what is drawn of the next verdict."""
        t = len(self.levels)
        if differs(verdict, self.last):
            self.changes.append((t, said(verdict)))
        if verdict.level > Level.TRUST and self.first_alarm is None:
            self.first_alarm, self.reasons = t, reasons(verdict)
        self.levels.append(int(verdict.level))
        self.last = verdict
        found = {name: ratio(evidence) for name, evidence in verdict.evidence.items()}
        self.undrawn |= {
            name for name, value in found.items()
            if np.isnan(value) and verdict.evidence[name].score is not None
        }  # fmt: skip
        for name in found:
            if name not in self.ratios and not np.isnan(found[name]):
                self.ratios[name] = [float("nan")] * t
        for name, values in self.ratios.items():
            values.append(found.get(name, float("nan")))


class KeyframeChoice:
    """Keeps the first frame, those around the first alarm, the last, and some evenly between."""

    def __init__(self) -> None:
        self._spread: dict[int, Keyframe] = {}
        self._stride = 1
        self._pinned: dict[int, Keyframe] = {}
        self._last: tuple[int, Keyframe] | None = None
        self._alarm: int | None = None

    def add(self, t: int, moment: Keyframe) -> None:
        """Take the next frame; one is forgotten whenever too many are kept."""
        if self._alarm is None and moment.level > Level.TRUST:
            self._alarm = t
            self._pinned.update([self._last] if self._last else [])
        if t == 0 or (self._alarm is not None and t <= self._alarm + 1):
            self._pinned[t] = moment
        if t % self._stride == 0:
            self._spread[t] = moment
        if len(self._spread) > MAX_SPREAD:
            self._stride *= 2
            self._spread = {t: m for t, m in self._spread.items() if t % self._stride == 0}
        self._last = (t, moment)

    def chosen(self, number: int) -> dict[int, Keyframe]:
        """So many moments by frame, at least `MIN_CHOSEN`; fewer if there are not so many."""
        assert self._last is not None
        chosen = dict([*self._pinned.items(), self._last])
        kept = np.array(list(self._spread))
        for t in between(sorted(chosen), number - len(chosen)):
            nearest = int(kept[np.abs(kept - t).argmin()])
            chosen[nearest] = self._spread[nearest]
        return dict(sorted(chosen.items()))


def between(points: Sequence[int], number: int) -> list[float]:
    """So many further points, that the largest gap becomes as small as it can; none closer than 1.

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
