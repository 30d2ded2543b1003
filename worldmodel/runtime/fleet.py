"""Drift test of a fleet: alarm scores of its episodes against those of the calibration set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.monitors.guarantees.drift import FleetDrift
from worldmodel.runtime.watch import SCORE


def largest_alarm_score(alarm_rule: AlarmRule, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Largest alarm score of an episode from its `verdict_signals`; None: no channel ran.

    Frames beyond the length of the longest calibration episode are ignored, because a maximum over
    more frames is higher by chance.
    """
    compared = rows[: alarm_rule.max_frames_]
    scores = {
        name: np.array([row[SCORE + name] for row in compared])
        for name in alarm_rule.channels_.names
    }
    largest = float(alarm_rule.alarm_score(scores).max())
    return largest if np.isfinite(largest) else None


@dataclass(frozen=True, kw_only=True)
class DriftSummary:
    """Result of `FleetDrift` on watched episodes, in their order."""

    alpha: float
    """Probability of ever reporting drift where there is none."""
    capital: float
    """Evidence of drift (capital of the test, 1 at the start); 1 / alpha reports drift."""
    num_episodes: int
    """Tested episodes; the test ends when it reports drift."""
    num_left_out: int
    """Skipped episodes, in which no channel had a score."""
    found_after: str | None
    """Episode at which drift was reported; None: no drift."""

    def sentence(self) -> str:
        """One sentence for people."""
        figures = f"evidence {self.capital:.3g}, alarm at {1 / self.alpha:.3g}"
        figures += f", alpha {self.alpha:.3g}"
        if self.num_left_out:
            figures += f"; {self.num_left_out} without a score skipped"
        if self.found_after is None:
            return f"Fleet drift: not detected in {self.num_episodes} episodes ({figures})."
        return (
            f"Fleet drift: detected after {self.num_episodes} episodes, at {self.found_after} "
            f"({figures}): the calibration is stale for this fleet; calibrate again."
        )


NOT_TESTED = (
    "Fleet drift: not tested, because this monitor has no alarm scores of its calibration set; "
    "calibrate it again."
)
"""Sentence for people if `fleet_drift` returns None."""


def fleet_drift(
    alarm_rule: AlarmRule, alarm_scores: Mapping[str, float | None]
) -> DriftSummary | None:
    """Test for drift, given the `largest_alarm_score` of each episode.

    None for an old monitor, which has no alarm scores of its calibration set. The test has the
    alpha of any alarm in a nominal episode.
    """
    if alarm_rule.maxima_ is None:
        return None
    drift = FleetDrift(alarm_rule.config.alpha_notice).fit(alarm_rule.maxima_)
    left_out, found_after = 0, None
    for name, alarm_score in alarm_scores.items():
        if alarm_score is None:
            left_out += 1
        elif drift.update(alarm_score):
            found_after = name
            break
    return DriftSummary(
        alpha=drift.alpha,
        capital=drift.capital_,
        num_episodes=drift.num_episodes_,
        num_left_out=left_out,
        found_after=found_after,
    )
