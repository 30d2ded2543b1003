"""Whether the episodes of a fleet still score like those that its monitor was calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.monitors.guarantees.drift import FleetDrift
from worldmodel.runtime.watch import SCORE


def largest_alarm_score(alarm_rule: AlarmRule, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """An episode's score as calibration took it, from its `verdict_signals`; None: nothing ran.

    Frames beyond the longest calibration episode do not count: the more frames, the higher a
    largest score is by chance alone.
    """
    seen = rows[: alarm_rule.max_frames_]
    scores = {
        name: np.array([row[SCORE + name] for row in seen]) for name in alarm_rule.channels_.names
    }
    largest = float(alarm_rule.alarm_score(scores).max())
    return largest if np.isfinite(largest) else None


@dataclass(frozen=True, kw_only=True)
class DriftSummary:
    """What `FleetDrift` made of watched episodes, in their order."""

    alpha: float
    """Chance that drift is ever found where there is none."""
    capital: float
    """Evidence of drift: what a capital of 1 has become; 1 / alpha is enough."""
    num_episodes: int
    """Episodes that were looked at: none after drift was found."""
    num_left_out: int
    """Episodes, up to there, in which no channel gave a score."""
    found_after: str | None
    """Episode after which drift was found; None: it was not."""

    def sentence(self) -> str:
        """For people."""
        figures = f"capital {self.capital:.3g} of {1 / self.alpha:.3g}, alpha {self.alpha:.3g}"
        if self.num_left_out:
            figures += f"; {self.num_left_out} without a score left out"
        if self.found_after is None:
            return f"Drift of the fleet: not found in {self.num_episodes} episodes ({figures})."
        return (
            f"Drift of the fleet: found after episode {self.num_episodes}, {self.found_after} "
            f"({figures}): the calibration is stale for this fleet; calibrate again."
        )


NOT_TESTED = (
    "Drift of the fleet: not tested, for this monitor keeps no scores of its calibration episodes; "
    "calibrate it again."
)
"""What there is to say where `fleet_drift` gives None."""


def fleet_drift(
    alarm_rule: AlarmRule, alarm_scores: Mapping[str, float | None]
) -> DriftSummary | None:
    """Test episode by episode, given the `largest_alarm_score` of each; None for too old a monitor.

    alpha is that of any alarm in a nominal episode.
    """
    if alarm_rule.maxima_ is None:
        return None
    drift = FleetDrift(alarm_rule.config.alpha_notice).fit(alarm_rule.maxima_)
    left_out, found_after = 0, None
    for name, surprise in alarm_scores.items():
        if surprise is None:
            left_out += 1
        elif drift.update(surprise):
            found_after = name
            break
    return DriftSummary(
        alpha=drift.alpha,
        capital=drift.capital_,
        num_episodes=drift.num_episodes_,
        num_left_out=left_out,
        found_after=found_after,
    )
