"""Drift test of a fleet: alarm scores of its episodes against those of the calibration set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from worldmodel.monitors.alarm_rule import AlarmRule
from worldmodel.monitors.guarantees.drift import FleetDrift, block_means
from worldmodel.monitors.guarantees.episode_threshold import episodes_needed
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
    block: int
    """Consecutive episodes per tested score; 1: every episode is tested by itself."""
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
            result = f"not detected in {self.num_episodes} episodes ({figures})."
        else:
            result = (
                f"detected after {self.num_episodes} episodes, at {self.found_after} ({figures}): "
                "the calibration is stale for this fleet; calibrate again."
            )
        return f"Fleet drift: {result} {self.condition()}"

    def condition(self) -> str:
        """Condition under which alpha holds, as one sentence."""
        if self.block > 1:
            return (
                f"Alpha holds if blocks of {self.block} consecutive episodes are exchangeable with "
                "those of the calibration."
            )
        return (
            "Alpha holds if episodes are exchangeable with those of the calibration: same robots, "
            "and no dependence between neighbours in time; else use --drift-block."
        )


NOT_TESTED = (
    "Fleet drift: not tested, because this monitor has no alarm scores of its calibration set; "
    "calibrate it again."
)
"""Sentence for people if `fleet_drift` returns None."""


def check_block(alarm_rule: AlarmRule, block: int) -> None:
    """Raise unless the calibration episodes fill enough blocks of `block` for the drift test."""
    if block < 1:
        raise ValueError(f"`--drift-block` must be at least 1 episode, got {block}.")
    needed = episodes_needed(alarm_rule.config.alpha_notice)
    if alarm_rule.maxima_ is not None and (found := len(alarm_rule.maxima_) // block) < needed:
        raise ValueError(
            f"`--drift-block` {block} leaves {found} blocks of the {len(alarm_rule.maxima_)} "
            f"calibration episodes, but the test needs {needed}; use smaller blocks or calibrate "
            "on more episodes."
        )


def fleet_drift(
    alarm_rule: AlarmRule, alarm_scores: Mapping[str, float | None], *, block: int = 1
) -> DriftSummary | None:
    """Test for drift, given the `largest_alarm_score` of each episode.

    None for an old monitor, which has no alarm scores of its calibration set. The test has the
    alpha of any alarm in a nominal episode. With `block` above 1, it compares means of so many
    consecutive episodes; an incomplete last block is not tested.
    """
    if alarm_rule.maxima_ is None:
        return None
    check_block(alarm_rule, block)
    scored = {name: score for name, score in alarm_scores.items() if score is not None}
    drift = FleetDrift(alarm_rule.config.alpha_notice).fit(consecutive(alarm_rule.maxima_, block))
    names = list(scored)
    found = (drift.update(score) for score in consecutive(np.array(list(scored.values())), block))
    number = next((i for i, is_found in enumerate(found, 1) if is_found), None)
    last = None if number is None else names[block * number - 1]
    before = list(alarm_scores.values())[: list(alarm_scores).index(last) if last else None]
    return DriftSummary(
        alpha=drift.alpha,
        capital=drift.capital_,
        num_episodes=block * drift.num_episodes_,
        num_left_out=before.count(None),
        found_after=last,
        block=block,
    )


def consecutive(scores: Float[np.ndarray, " episode"], block: int) -> Float64[np.ndarray, " block"]:
    """Means of `block` consecutive episodes each."""
    return block_means(scores, [i // block for i in range(len(scores))], size=block)
