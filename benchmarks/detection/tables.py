"""Tables of the detection benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.detection.run import (
    ACTIONS,
    LOOKS,
    SETTLED,
    Cell,
    Watched,
    first_cause,
    highest_level,
    main_cause,
    settled_cause,
)
from worldmodel.calibration.calibrated import WATCH_HORIZON
from worldmodel.evaluation.statistics import wilson_interval
from worldmodel.monitors.alarm_rule import AlarmRule, MonitorConfig
from worldmodel.monitors.channels.channel_set import SIGNALS, SMOOTHED
from worldmodel.monitors.metrics.detection import DetectionSummary, auroc, summarize_detection
from worldmodel.monitors.verdict import Level
from worldmodel.report.html import Table

Results = Mapping[Cell, Sequence[Watched]]

STRONG = (2, 3)
"""Severities that count in the tables of causes."""
SEEN = WATCH_HORIZON + SMOOTHED["surprise"] + MonitorConfig.calm_steps - 1
"""Frames after a change until all predictions and held levels are from after it."""
WINDOWS = (
    ("all, shifted from the first one on", False, 0),
    ("from a change in mid-episode on", True, 0),
    (f"from {SEEN} frames after it on", True, SEEN),
)
"""Name, whether the later onset is meant, and frames skipped after the onset."""
NO_FACTOR = ("unknown", "low_confidence", "model_disagreement")
"""Causes about the model's predictions that name no factor."""
KINDS = {
    "looks": "scene",
    "wiring": "fault behind the policy",
    "policy": "fault of the policy",
}


def tables(results: Results, alarm_rule: AlarmRule) -> list[Table]:
    """All tables, in reading order."""
    return [
        detection(results, alarm_rule),
        weakest(results, alarm_rule),
        pooled(results),
        by_signal(results),
        false_alarms(results),
        causes(results, first_cause, "in the first frame of the alarm"),
        causes(results, settled_cause, f"{SETTLED} frames into the alarm"),
        causes(results, main_cause, "in most frames of the alarm"),
        harmless(results),
    ]


def nominal_of(results: Results) -> Sequence[Watched]:
    """Nominal episodes."""
    return results[Cell(kind="nominal", name="nominal")]


def shifted_cells(results: Results) -> Iterator[tuple[Cell, Sequence[Watched]]]:
    """Cells of shifts and faults, sorted by kind, name, onset and severity."""
    order = [*LOOKS, *ACTIONS]
    chosen = [cell for cell in results if cell.kind in KINDS]
    for cell in sorted(
        chosen,
        key=lambda c: (list(KINDS).index(c.kind), order.index(c.name), c.onset, c.severity),
    ):
        yield cell, results[cell]


def detection(results: Results, alarm_rule: AlarmRule) -> Table:
    """Table of every shift against nominal episodes."""
    calm = [row.as_episode(alarm_rule) for row in nominal_of(results)]
    rows = []
    for cell, watched in shifted_cells(results):
        odd = [row.as_episode(alarm_rule) for row in watched]
        d = summarize_detection(calm, odd, onset=cell.onset)
        delay = "-" if d.median_delay is None else f"{d.median_delay:g}"
        rows.append((
            f"{KINDS[cell.kind]}: {cell.name}", str(cell.severity), str(cell.onset),
            interval(d.auroc, *d.auroc_interval), f"{d.aupr:.2f}", f"{d.fpr95:.2f}",
            interval(d.detected_rate, *d.detected_interval), delay,
        ))  # fmt: skip
    n, m = len(calm), max(len(w) for _, w in shifted_cells(results))
    return Table(
        caption=f"Detection: {m} episodes per row against {n} nominal ones (base rate "
        f"{m / (n + m):.2f}), from the onset frame on. Every episode of a row has its own scene, "
        "and no two rows share one, except that the two kinds of a fault show the same episodes. "
        "AUROC of the episode's largest alarm score, "
        "with 95% intervals; AUPR: average precision; detected: share with any alarm, with "
        "thresholds from nominal calibration episodes alone, 95% Wilson interval; delay: median "
        "frames from onset to alarm. Fault behind the policy: the robot executes another action "
        "than the policy's, which the monitor sees.",
        columns=("shift", "severity", "onset", "AUROC", "AUPR", "FPR@95", "detected", "delay"),
        rows=rows,
    )


def weakest(results: Results, alarm_rule: AlarmRule) -> Table:
    """Table of the lowest AUROC over the onsets, per shift and severity."""
    calm = [row.as_episode(alarm_rule) for row in nominal_of(results)]
    cells: dict[tuple[str, str], dict[int, list[DetectionSummary]]] = {}
    for cell, watched in shifted_cells(results):
        odd = [row.as_episode(alarm_rule) for row in watched]
        by_severity = cells.setdefault((cell.kind, cell.name), {})
        summary = summarize_detection(calm, odd, onset=cell.onset)
        by_severity.setdefault(cell.severity, []).append(summary)
    severities = sorted({severity for by_severity in cells.values() for severity in by_severity})

    def lowest(summaries: Sequence[DetectionSummary]) -> str:
        d = min(summaries, key=lambda summary: summary.auroc)
        mark = " (chance)" if d.auroc_interval[0] <= 0.5 <= d.auroc_interval[1] else ""
        return interval(d.auroc, *d.auroc_interval) + mark

    return Table(
        caption="Weakest cells: lowest AUROC over the onsets, with the 95% interval of that cell. "
        "Chance: the interval contains 0.5. The object row rests on noise-free rendering: the "
        "colour signal alone detects changed objects (table of single signals).",
        columns=("shift", *(f"severity {severity}" for severity in severities)),
        rows=[
            (
                f"{KINDS[kind]}: {name}",
                *(lowest(found[s]) if s in found else "-" for s in severities),
            )
            for (kind, name), found in cells.items()
        ],
    )


def pooled(results: Results) -> Table:
    """Table of detection pooled over onsets and the two stronger severities."""
    groups: dict[tuple[str, str], list[tuple[int, Watched]]] = {}
    for cell, watched in shifted_cells(results):
        if cell.severity in STRONG:
            groups.setdefault((cell.kind, cell.name), []).extend((cell.onset, r) for r in watched)
    rows = []
    for (kind, name), odd in groups.items():
        alarms = [np.flatnonzero(np.array(row.levels[onset:])) for onset, row in odd]
        delays = [frames[0] for frames in alarms if len(frames)]
        middle, late = np.quantile(delays, [0.5, 0.9]) if delays else (np.nan, np.nan)
        cells = (rate(len(delays), len(odd)), f"{middle:g}", f"{late:.3g}")
        rows.append((f"{KINDS[kind]}: {name}", str(len(odd)), *cells))
    return Table(
        caption="Severities 2 and 3 and both onsets pooled, n episodes in n scenes: detected share "
        "with 95% Wilson interval; frames from onset to alarm, median and 0.9 quantile.",
        columns=("shift", "n", "detected", "delay, median", "delay, 0.9 quantile"),
        rows=rows,
    )


def by_signal(results: Results) -> Table:
    """Table of single signals, at the two stronger severities."""
    calm = nominal_of(results)
    rows = []
    groups: dict[tuple[str, str], list[tuple[Cell, Watched]]] = {}
    for cell, watched in shifted_cells(results):
        if cell.severity in STRONG:
            groups.setdefault((cell.kind, cell.name), []).extend((cell, row) for row in watched)
    for (kind, name), odd in groups.items():
        cells = []
        for signal in SIGNALS:
            scores = np.array([largest(row, signal, cell.onset) for cell, row in odd])
            onsets = [cell.onset for cell, _ in odd]
            base = np.array([largest(row, signal, onset) for row in calm for onset in set(onsets)])
            both = np.isfinite(scores).all() and np.isfinite(base).all()
            cells.append(f"{auroc(base, scores):.2f}" if both else "-")
        rows.append((f"{KINDS[kind]}: {name}", str(len(odd)), *cells))
    return Table(
        caption="AUROC of single signals (largest score of an episode), severities 2 and 3 and "
        "both onsets pooled.",
        columns=("shift", "n", *SIGNALS),
        rows=rows,
    )


def largest(row: Watched, signal: str, onset: int) -> float:
    """Largest score of a signal from the onset on."""
    scores = np.array(row.scores[signal][onset:])
    return float(np.nanmax(scores)) if np.isfinite(scores).any() else float("nan")


def false_alarms(results: Results) -> Table:
    """Table of false alarms on nominal episodes and benign changes."""
    rows = []
    for cell, watched in results.items():
        if cell.kind not in ("nominal", "benign"):
            continue
        n = len(watched)
        levels = [highest_level(row, 0) for row in watched]
        rows.append((
            "new nominal scenes" if cell.kind == "nominal" else f"policy {cell.name}", str(n),
            *(rate(sum(level >= limit for level in levels), n) for limit in list(Level)[1:]),
        ))  # fmt: skip
    return Table(
        caption="Benign change: share of episodes that ever reach a level, 95% Wilson intervals. "
        "Scenes, object positions and camera poses are new samples of the training distribution; "
        "each policy is one of the training mixture.",
        columns=("episodes", "n", "notice or more", "degrade or more", "stop"),
        rows=rows,
    )


def causes(results: Results, find_cause: Callable[[Watched, int], str | None], when: str) -> Table:
    """Confusion table of causes over detected episodes, severities 2 and 3."""
    counts: dict[str, dict[str, int]] = {}
    for cell, watched in shifted_cells(results):
        if cell.severity not in STRONG:
            continue
        truth = f"{KINDS[cell.kind]}: {cell.name}"
        for row in watched:
            cause = find_cause(row, cell.onset)
            if cause is not None:
                line = counts.setdefault(truth, {})
                line[cause] = line.get(cause, 0) + 1
    columns = sorted({cause for line in counts.values() for cause in line})
    rows = []
    totals: dict[str, np.ndarray] = {}
    for truth, line in counts.items():
        n, good = sum(line.values()), sum(line.get(c, 0) for c in right_causes(truth))
        other = n - good - sum(line.get(c, 0) for c in NO_FACTOR)
        kind = truth.partition(": ")[0]
        totals[kind] = np.add(totals.get(kind, 0), (n, good, other))
        cells = (str(line.get(cause, "")) for cause in columns)
        rows.append((truth, str(n), *cells, rate(good, n), rate(other, n)))
    # No total over both kinds of a fault: they show the same episodes.
    for kind, (n, good, other) in ((k, sums.tolist()) for k, sums in totals.items()):
        rows.append((f"{kind}: all", str(n), *("" for _ in columns), rate(good, n), rate(other, n)))
    return Table(
        caption=f"First cause {when}, severities 2 and 3, both onsets, detected episodes. Right "
        f"cause, and another factor ({', '.join(NO_FACTOR)} name none), with 95% Wilson "
        "intervals.",
        columns=("shift", "n", *columns, "right", "another factor"),
        rows=rows,
    )


def right_causes(truth: str) -> tuple[str, ...]:
    """Right causes for a row of the table."""
    kind, _, name = truth.partition(": ")
    if kind == KINDS["looks"]:
        return (name,)
    actions = ("action_out_of_range", "action_unfamiliar")
    return actions if kind == KINDS["policy"] else (*actions, "action_ignored")


def harmless(results: Results) -> Table:
    """Table of scene shifts by the model's error and the highest level."""
    calm = nominal_of(results)
    looks = [(cell, rows) for cell, rows in shifted_cells(results) if cell.kind == "looks"]
    table = []
    for when, later, wait in WINDOWS:
        levels_by_error: dict[str, list[int]] = {"usual": [], "high": []}
        for cell, watched in looks:
            start = cell.onset + wait
            if (cell.onset > 0) != later or start >= len(watched[0].levels):
                continue
            usual = np.quantile([row.model_error(start) for row in calm], 0.95)
            for row in watched:
                error = "usual" if row.model_error(start) <= usual else "high"
                levels_by_error[error].append(highest_level(row, start))
        for error, levels in levels_by_error.items():
            n, at = len(levels), [levels.count(limit) for limit in Level]
            shares = (f"{count / max(n, 1):.2f}" for count in at)
            table.append((when, error, str(n), *shares, rate(at[0] + at[1], n) if n else "-"))
    return Table(
        caption="Scene shifts, all severities, by the model's error: usual if within the 95th "
        "percentile of nominal episodes over the same frames. Share of episodes by their highest "
        "level. A change in mid-episode invalidates predictions made before it; after "
        f"{SEEN} frames all predictions and held levels are from after the change.",
        columns=(
            *("frames", "model error", "n"),
            *(level.name.lower() for level in Level),
            "notice at most",
        ),
        rows=table,
    )


def interval(value: float, low: float, high: float) -> str:
    """Value and its interval."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def rate(count: int, n: int) -> str:
    """Share and its 95% Wilson interval."""
    share = wilson_interval(count, n)
    return interval(share.value, share.low, share.high)
