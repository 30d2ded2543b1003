"""Why the monitor raised an alarm: typed causes, and sentences that a person can read."""

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
    "action": ("action",),
    "looks": LOOKS,
    "surprise": ("surprise",),
    "confidence": ("confidence",),
}
"""What an alarm is about, most telling first -> its signals. An odd action explains that the arm
looks odd, an odd picture that the model is wrong, and both that it doubts itself."""
TOGETHER = 2
"""Frames within which groups count as having come at once; of others the earlier one leads."""
EVERYWHERE = ("camera", "lighting", "background")
"""Causes that may break claims all over the picture before its look alone is an alarm."""
SURE = 0.65
"""Probability from which one of these is named behind a broken claim."""
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

Frame = UInt8[np.ndarray, "*view height width 3"]


class Attribution:
    """Names what an alarm is about, from its beginning until all has been calm for a while."""

    def __init__(
        self, alarm_rule: AlarmRule, causes: CauseModel | None, cameras: Sequence[str]
    ) -> None:
        self.alarm_rule, self.cameras = alarm_rule, tuple(cameras)
        self.causes = copy.copy(causes)
        self.reset()

    def reset(self) -> None:
        """Forget the alarm: a new episode starts."""
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
        """Causes of this frame's alarm, the leading one first, and evidence for them; none if calm.

        Evidence of a signal above its threshold says what was found, in words.
        """
        standard = {name: float(s[0]) for name, s in self.alarm_rule.standardised(scores).items()}
        limit = self.alarm_rule.limits[Level.NOTICE]
        found = [name for name, value in standard.items() if value > limit]
        self._step += 1
        if not found:
            if self._step - self._calm_since > self.alarm_rule.config.calm_steps and self._began:
                self._forget_alarm()
            return (), {}
        self._calm_since = self._step
        groups = [group for group, names in GROUPS.items() if set(names) & set(found)]
        evidence = {name: self._sentence(name, signals, scores) for name in found}
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
        """Groups that came with the first are in the order of `GROUPS`, later ones by time."""
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
        """A look that may have broken a claim though it is no alarm itself, and evidence for it."""
        if self.causes is None:
            return None
        name, found = self._look(frame, self.causes)
        return (name, found) if name in EVERYWHERE and (found.score or 0.0) >= SURE else None

    def _look(self, frame: Frame, causes: CauseModel) -> tuple[str, Evidence]:
        """What has changed in the picture since the alarm began."""
        causes.observe(frame.reshape(-1, *frame.shape[-3:]))
        name, chance = causes.name()
        where = causes.where()
        place = "" if where is None else f", most of all {self._place(*where)}"
        note = f"{name.replace('_', ' ')} is the likeliest kind of change{place}."
        if name == UNKNOWN:
            note = f"no known kind of change fits{place}."
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
        places = channels.placed(signals).places
        if name == "region" and places is not None:
            return f"{self._peak(places[0])} is unlike the {n} familiar episodes"
        if name == "colour" and channels.colour and signals.frames is not None:
            pixels = channels.colour.pixel_scores(signals.frames[:1])[0]
            return f"{self._peak(pixels)} has colours that the {n} familiar episodes lack"
        if name == "action":
            found = (AXES[axis % len(AXES)] for axis in self._outside(signals))
            axes = ", ".join(dict.fromkeys(found))
            odd = f"lies outside their range on {axes}" if axes else "is far from any of theirs"
            return f"after the one before it, the action {odd} ({n} familiar episodes)"
        return FINDINGS[name].format(n=n)

    def _peak(self, places: Float64[np.ndarray, "*view h w"]) -> str:
        """In words: the third of which view holds the largest values."""
        views = places.reshape(-1, *places.shape[-2:])
        view = int(views.max(axis=(1, 2)).argmax())
        return self._place(view, region(views[view] / max(float(views[view].max()), 1e-12)))

    def _place(self, view: int, where: str) -> str:
        camera = self.cameras[view] if view < len(self.cameras) else f"view {view}"
        return f"{where} of {camera}"


FINDINGS: Mapping[str, str] = {
    "appearance": "the frame as a whole is unlike the {n} familiar episodes",
    "confidence": "the model trusts its prediction less than it usually does so far ahead",
    "surprise": "what came differs from what the model claimed by more than is usual so far ahead",
}
"""Signal -> what is wrong, in words."""
