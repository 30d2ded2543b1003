"""Table and figures of the comparison of confidence methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.calibration.measures import HORIZONS, CalibrationRow, IntervalEstimate
from benchmarks.calibration.methods import MethodResult
from worldmodel.report.format import with_interval
from worldmodel.report.html import Table
from worldmodel.rollouts.quality import CopyGain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00")
"""Two colours of Okabe and Ito's palette, distinguishable with colour blindness."""


def table(results: Sequence[MethodResult]) -> Table:
    """Table of every method on every group."""
    rows = [
        [
            row.method,
            row.group,
            row.num_episodes,
            *(cell(f) for f in (row.ece, row.per_video_ece, row.mce, row.brier, row.brier_skill)),
            *(cell(f) for f in (row.pi, row.ause)),
            f"{result.cost:.2f}",
        ]
        for result in results
        for row in result.rows
    ]
    caption = (
        f"Confidence at horizons {', '.join(map(str, HORIZONS))} as far as episodes reach, with "
        "95% bootstrap intervals over episodes. ECE: pooled expected calibration error. C3-style: "
        "mean of per-episode errors. MCE: largest gap of a bin with at least 0.1% of the "
        "forecasts. Skill: relative to the base rate. Pi: Shepherd's correlation of confidence and "
        "error. AUSE: area under the sparsification error curve. Cost: CPU time in units of one "
        "rollout, which is included."
    )
    columns = ["method", "episodes", "n", "ECE", "C3-style ECE", "MCE", "Brier", "skill", "pi"]
    return Table(caption=caption, columns=[*columns, "AUSE", "cost"], rows=rows)


def gain_table(gains: Mapping[str, CopyGain]) -> Table:
    """Gain of the pictures over copying the last frame: the same for every method."""
    return Table(
        caption="PSNR of imagined frames minus that of the last real frame, in dB, mean over the "
        f"frames at horizons {', '.join(map(str, HORIZONS))}, with 95% bootstrap intervals over "
        "episodes, each of which has its own scene. Below 0, the pictures are worse than a copy, "
        "however well calibrated their confidence is.",
        columns=["episodes", "n", "gain over copy (dB)"],
        rows=[
            (name, gain.num_episodes, with_interval(gain.gain_db, gain.interval, "+.1f"))
            for name, gain in gains.items()
        ],
    )


def cell(figure: IntervalEstimate) -> str | None:
    """Value and its interval; None if it is undefined."""
    return None if math.isnan(figure.value) else str(figure)


def draw(results: Sequence[MethodResult], groups: Sequence[str], folder: Path) -> list[Path]:
    """Draw `errors.png` (all methods) and `reliability.png` (the first method) for the groups."""
    from matplotlib.figure import Figure as Canvas

    files = [folder / "errors.png", folder / "reliability.png"]
    canvas = Canvas(figsize=(9, 1 + 0.26 * len(results)), layout="constrained")
    _errors(canvas.subplots(), results, groups)
    canvas.savefig(files[0], dpi=130)
    canvas = Canvas(figsize=(4.5, 4.5), layout="constrained")
    _reliability(canvas.subplots(), results[0], groups)
    canvas.savefig(files[1], dpi=130)
    return files


def _of_group(result: MethodResult, group: str) -> CalibrationRow:
    return next(row for row in result.rows if row.group == group)


def _errors(axes: Axes, results: Sequence[MethodResult], groups: Sequence[str]) -> None:
    """Draw the pooled calibration error of every method with its interval."""
    for number, (group, colour) in enumerate(zip(groups, COLOURS, strict=False)):
        figures = [_of_group(result, group).ece for result in results]
        heights = [row + 0.3 * (number - 0.5) for row in range(len(results))]
        axes.hlines(heights, [f.low for f in figures], [f.high for f in figures], color=colour)
        axes.plot([f.value for f in figures], heights, "o", color=colour, label=group, markersize=4)
    axes.set_yticks(range(len(results)), [result.method for result in results], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("pooled expected calibration error, 95% interval over episodes")
    axes.legend(frameon=False)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _reliability(axes: Axes, result: MethodResult, groups: Sequence[str]) -> None:
    """Draw the reliability diagram of one method."""
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    for group, colour in zip(groups, COLOURS, strict=False):
        row = _of_group(result, group)
        points = [
            (confidence, observed)
            for confidence, observed in zip(row.stated, row.observed, strict=True)
            if confidence is not None and observed is not None
        ]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=group, markersize=4)
    axes.set_aspect("equal")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("observed frequency")
    axes.set_title(result.method, fontsize=9)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
