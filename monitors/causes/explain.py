"""Explanation of alarms: named causes, and evidence sentences for people."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, UInt8

from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.monitors.causes.classifier import LIKELY, UNKNOWN, CauseModel, region
from worldmodel.monitors.channels.channel_set import LOOKS, Scores
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.verdict import Evidence, Level

GROUPS = {
    "action": ("action", "action_range"),
    "looks": LOOKS,
    "surprise": ("surprise",),
    "confidence": ("confidence",),
}
"""Group of causes -> its signals, in order of precedence. An unfamiliar action explains an
unfamiliar picture, either explains a wrong prediction, and each explains low confidence."""
TOGETHER = 2
"""Groups that start within this many frames count as simultaneous; otherwise the earlier leads."""
EVERYWHERE = ("camera", "lighting", "background")
"""Causes that may break predictions before the frame's look alone raises an alarm."""
SURE = 0.65
"""Smallest probability at which one of `EVERYWHERE` is named for a wrong prediction."""
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

Frame = UInt8[np.ndarray, "*view height width 3"]


class Attribution:
    """Names the causes of an alarm, from its start until the level has fallen again."""

    def __init__(
        self, alarm_rule: AlarmRule, causes: CauseModel | None, cameras: Sequence[str]
    ) -> None:
        self.alarm_rule, self.cameras = alarm_rule, tuple(cameras)
        self.causes = copy.copy(causes)
        self.reset()

    def reset(self) -> None:
        """Start a new episode."""
        self._step = 0
        self._calm_since = 0
        self._began: dict[str, int] = {}
        if self.causes is not None:
            self.causes.reset()

    def explain(
        self,
        frame: Frame,
        signals: EpisodeSignals,
        scores: Scores,
    ) -> tuple[tuple[str, ...], dict[str, Evidence]]:
        """Causes of this frame's alarm, the leading one first, and their evidence; none if calm.

        The evidence of each signal above its threshold holds a sentence.
        """
        standard = {name: float(s[0]) for name, s in self.alarm_rule.standardised(scores).items()}
        limit = self.alarm_rule.limits[Level.NOTICE]
        raised = [name for name, value in standard.items() if value > limit]
        self._step += 1
        if not raised:
            if self._step - self._calm_since > self.alarm_rule.config.calm_steps and self._began:
                self._forget_alarm()
            return (), {}
        self._calm_since = self._step
        groups = [group for group, names in GROUPS.items() if set(names) & set(raised)]
        evidence = {name: self._sentence(name, signals, scores) for name in raised}
        named: dict[str, str] = {}
        if "surprise" in groups and "looks" not in groups and (look := self._behind(frame)):
            groups, (named["looks"], evidence["cause"]) = ["looks", *groups], look
        for group in groups:
            self._began.setdefault(group, self._step)
        named |= {g: self._name(g, frame, signals, evidence) for g in groups if g not in named}
        return tuple(named[group] for group in sorted(groups, key=self._rank)), evidence

    def _forget_alarm(self) -> None:
        self._began = {}
        if self.causes is not None:
            self.causes.reset()

    def _rank(self, group: str) -> tuple[int, int]:
        """Sort key: groups simultaneous with the first by `GROUPS`, later ones by start."""
        late = self._began[group] - min(self._began.values())
        return max(0, late - TOGETHER), list(GROUPS).index(group)

    def _name(
        self,
        group: str,
        frame: Frame,
        signals: EpisodeSignals,
        evidence: dict[str, Evidence],
    ) -> str:
        if group == "looks":
            if self.causes is None:
                return "appearance"
            name, evidence["cause"] = self._look(frame, self.causes)
            return name
        if group == "action":
            return "action_out_of_range" if self._outside(signals) else "action_unfamiliar"
        if group == "confidence":
            return "low_confidence"
        looks, errors = (self._began.get(name, np.inf) for name in ("looks", "surprise"))
        return "model_disagreement" if looks <= errors + TOGETHER else "action_ignored"

    def _behind(self, frame: Frame) -> tuple[str, Evidence] | None:
        """Change of look that may explain a wrong prediction without an alarm of its own."""
        if self.causes is None:
            return None
        name, found = self._look(frame, self.causes)
        return (name, found) if name in EVERYWHERE and (found.score or 0.0) >= SURE else None

    def _look(self, frame: Frame, causes: CauseModel) -> tuple[str, Evidence]:
        """Named change of the picture since the alarm began, and its evidence."""
        causes.observe(frame.reshape(-1, *frame.shape[-3:]))
        name, chance = causes.name()
        where = causes.where()
        place = "" if where is None else f", strongest in {self._place(*where)}"
        note = f"{name.replace('_', ' ')} is the most likely kind of change{place}."
        if name == UNKNOWN:
            note = f"the change matches no known kind{place}."
        return name, Evidence(chance, LIKELY, note)

    def _outside(self, signals: EpisodeSignals) -> list[int]:
        channel = self.alarm_rule.channels_.action
        if channel is None or signals.actions is None:
            return []
        return channel.out_of_range(signals.actions[0, -1])

    def _sentence(self, name: str, signals: EpisodeSignals, scores: Scores) -> Evidence:
        score, threshold = float(scores[name][0]), self.alarm_rule.threshold(name)
        numbers = f"score {score:.3g}, threshold {threshold:.3g}."
        note = f"{self._finding(name, signals)}; {numbers}"
        return Evidence(score, threshold, note)

    def _finding(self, name: str, signals: EpisodeSignals) -> str:
        channels, n = self.alarm_rule.channels_, self.alarm_rule.num_reference_
        places = channels.derived(signals).places
        if name == "region" and places is not None:
            return f"{self._peak(places[0])} differs from the {n} reference episodes"
        if name == "colour" and channels.colour and signals.frames is not None:
            pixels = channels.colour.pixel_scores(signals.frames[:1])[0]
            return f"{self._peak(pixels)} has colours missing from the {n} reference episodes"
        if name in GROUPS["action"]:
            outside = (AXES[axis % len(AXES)] for axis in self._outside(signals))
            axes = ", ".join(dict.fromkeys(outside))
            if axes:
                return f"the action is outside the range of the {n} reference episodes on {axes}"
            return f"the last actions are far from any in the {n} reference episodes"
        return FINDINGS[name].format(n=n)

    def _peak(self, places: Float64[np.ndarray, "*view h w"]) -> str:
        """Third and view with the largest values, in words."""
        views = places.reshape(-1, *places.shape[-2:])
        view = int(views.max(axis=(1, 2)).argmax())
        return self._place(view, region(views[view] / max(float(views[view].max()), 1e-12)))

    def _place(self, view: int, where: str) -> str:
        camera = self.cameras[view] if view < len(self.cameras) else f"view {view}"
        return f"{where} of {camera}"


FINDINGS: Mapping[str, str] = {
    "appearance": "the frame as a whole differs from the {n} reference episodes",
    "missing_colour": "a colour that the {n} reference episodes show has not been seen lately",
    "confidence": "the model's confidence is lower than usual at this horizon",
    "surprise": "the prediction error is larger than usual at this horizon",
}
"""Signal -> evidence sentence."""
