"""Matplotlib figures of a report, drawn without global state.

The colours of Okabe and Ito suit colour-blind readers; markers and dashes repeat the distinction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from worldmodel.evaluation.statistics import Proportion
from worldmodel.monitors.heatmaps import palette
from worldmodel.monitors.reliability.measures import ReliabilityBins
from worldmodel.report.point_labels import label_points

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LEVEL_COLORS = ("#E69F00", "#D55E00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
FAR = 10
"""If a score exceeds this many thresholds, the axis is logarithmic above the threshold."""


def reliability_diagram(curves: Mapping[str, ReliabilityBins]) -> Figure:
    """Reliability diagram: observed frequency per bin of confidence; below, the share per bin.

    `curves` maps a label to pooled bins; empty bins are not drawn.
    """
    figure = Figure(figsize=(6, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color="#767676", linewidth=1, label="perfect calibration")
    styles = zip(curves.items(), cycle(COLORS), cycle(MARKERS), cycle(DASHES))
    for (label, bins), color, marker, dash in styles:
        filled = bins.count > 0
        count = bins.count[filled]
        confidence, observed = bins.confidence[filled] / count, bins.correct[filled] / count
        style = {"color": color, "marker": marker, "linestyle": dash, "markersize": 5}
        upper.plot(confidence, observed, label=label, **style)
        lower.plot(confidence, 100 * count / max(count.sum(), 1), **style)
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed frequency")
    lower.set(xlabel="stated confidence", ylabel="share of\nforecasts (%)", ylim=(0, None))
    finish(upper, lower)
    upper.legend(frameon=False, loc="upper left")
    return figure


def policy_scatter(
    names: Sequence[str], imagined: Sequence[Proportion], real: Sequence[Proportion]
) -> Figure:
    """Real against imagined success rate per policy, with Wilson intervals of both."""
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#767676", linewidth=1)
    points = np.array([(i.value, r.value) for i, r in zip(imagined, real, strict=True)])
    across = [[(i.low, r.value), (i.high, r.value)] for i, r in zip(imagined, real, strict=True)]
    along = [[(i.value, r.low), (i.value, r.high)] for i, r in zip(imagined, real, strict=True)]
    whiskers = np.array(across + along)
    axes.add_collection(LineCollection(list(whiskers), colors="#9CC5DC", linewidths=1))
    axes.scatter(*points.T, color=COLORS[0], zorder=3)
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    axes.set(xlabel="imagined success rate", ylabel="true success rate", aspect="equal")
    finish(axes)
    label_points(axes, names, points, whiskers)
    return figure


def score_distributions(
    scores: Mapping[str, Float[np.ndarray, " episode"]], *, threshold: float, x_label: str
) -> Figure:
    """Scores per condition as a row of dots, with the median as a bar and the alarm threshold."""
    figure = Figure(figsize=(7, 0.9 + 0.5 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for row, (values, color) in enumerate(zip(scores.values(), cycle(COLORS))):
        # Deterministic vertical jitter keeps equal scores visible.
        spread = 0.22 * np.sin(2.4 * np.arange(len(values)))
        axes.scatter(values, row + spread, s=16, color=color, alpha=0.65, linewidths=0)
        axes.vlines(np.median(values), row - 0.34, row + 0.34, color="#000000", linewidth=2)
    axes.axvline(threshold, color="#000000", linestyle="--", linewidth=1)
    low, high = (limit([limit(values) for values in scores.values()]) for limit in (np.min, np.max))
    if high > FAR * abs(threshold):
        axes.set_xscale("symlog", linthresh=abs(threshold) or 1.0)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(low - 0.2 * abs(threshold), 1.5 * high)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set(xlabel=x_label, ylim=(len(scores) - 0.5, -0.5))
    axes.annotate(
        "alarm",
        (threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, 3),
        textcoords="offset points",
    )
    finish(axes)
    return figure


def lines(
    curves: Mapping[str, tuple[Float[np.ndarray, " x"], Float[np.ndarray, " x"]]],
    *,
    x_label: str,
    y_label: str,
) -> Figure:
    """Line plot of named curves (x, y)."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (label, (x, y)), color, dash in zip(curves.items(), cycle(COLORS), cycle(DASHES)):
        axes.plot(x, y, label=label, color=color, linestyle=dash)
    axes.set(xlabel=x_label, ylabel=y_label)
    if all(np.equal(x, np.round(x)).all() for x, _ in curves.values()):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes)
    axes.legend(frameon=False)
    return figure


def level_timeline(
    levels: Mapping[str, Int[np.ndarray, " time"]], *, names: Sequence[str], rate_hz: float
) -> Figure:
    """Verdict levels over time, one row per rollout; taller bars are higher levels.

    `names` are the names of the levels, lowest first.
    """
    figure = Figure(figsize=(8, 1.1 + 0.42 * len(levels)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(levels.values()):
        axes.plot([0, len(values) / rate_hz], [row, row], color="#767676", linewidth=1)
        for level, color in zip(range(1, len(names)), cycle(LEVEL_COLORS)):
            start = np.flatnonzero(values == level) / rate_hz
            height = -0.8 * level / (len(names) - 1)  # upwards: the y axis is inverted
            bars = axes.bar(start, height, 1 / rate_hz, bottom=row, align="edge", color=color)
            for bar in bars:  # without an edge, gaps show between adjacent bars
                bar.set(edgecolor=color, linewidth=0.6)
    patches = [Patch(color=c, label=n) for n, c in zip(names[1:], cycle(LEVEL_COLORS))]
    axes.legend(handles=patches, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    axes.set_yticks(range(len(levels)), list(levels))
    axes.set(xlabel="seconds", xlim=(0, None), ylim=(len(levels) - 0.6, -1))
    finish(axes)
    return figure


def confidence_scale(label: str) -> Figure:
    """Colour scale of confidence in heatmaps and overlays."""
    figure = Figure(figsize=(5, 0.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(palette()[None], aspect="auto", extent=(0, 1, 0, 1))
    axes.set(xlabel=label, yticks=())
    return figure


def finish(*all_axes: Axes) -> None:
    """Grid and frame shared by all figures."""
    for axes in all_axes:
        axes.grid(color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
