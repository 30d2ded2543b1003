"""Calibration error of a perfect forecaster when videos have a hidden random effect.

    python -m benchmarks.calibration.hidden_video_effect

Draws docs/figures/hidden_video_effect.svg and prints its values, with the versions used. Takes
seconds on one CPU core.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import ndtr

from benchmarks.provenance import git_commit, processor, today, versions
from worldmodel.monitors.reliability.measures import (
    ReliabilityBins,
    bin_rows,
    expected_calibration_error,
    per_video_calibration_error,
)
from worldmodel.report.figures import COLORS, finish

FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "hidden_video_effect.svg"
NUM_VIDEOS = 110
"""Same number as in C3's published figures."""
NUM_FORECASTS = 2000
"""Subpatches per video."""
EFFECT_SD = 0.3
"""Standard deviation of the hidden effect; the visible signal has standard deviation 1."""
NUM_BINS = 15
SEEDS = range(20)
DRAWN_SEED = 7
"""Seed with errors near the medians over seeds."""


def simulate(
    rng: np.random.Generator,
    *,
    num_videos: int = NUM_VIDEOS,
    num_forecasts: int = NUM_FORECASTS,
    effect_sd: float = EFFECT_SD,
) -> tuple[Float64[np.ndarray, "video forecast"], Bool[np.ndarray, "video forecast"]]:
    """Forecasts and outcomes when the forecaster knows everything but a per-video effect.

    An outcome is true with probability Φ(x + effect). The forecaster sees x, standard normal per
    subpatch, but not the effect, normal with `effect_sd` and constant within a video. It predicts
    Φ(x / √(1 + effect_sd²)), the probability given x, and is therefore perfectly calibrated over
    the population of videos.
    """
    x = rng.normal(size=(num_videos, num_forecasts))
    effect = rng.normal(0.0, effect_sd, (num_videos, 1))
    return ndtr(x / np.sqrt(1 + effect_sd**2)), rng.random(x.shape) < ndtr(x + effect)


def errors(bins: ReliabilityBins) -> tuple[float, float]:
    """C3-style and pooled expected calibration error."""
    return per_video_calibration_error(bins), float(expected_calibration_error(bins.pooled()))


def draw_curves(axes: Axes, bins: ReliabilityBins) -> None:
    """Draw reliability curves of single videos and of all videos pooled."""
    axes.plot([0, 1], [0, 1], color="#767676", linewidth=1, linestyle="--")
    for video in range(30):
        full = bins.count[video] >= 30
        confidence, frequency = (
            total[video][full] / bins.count[video][full]
            for total in (bins.confidence, bins.correct)
        )
        label = "one video (30 of 110)" if video == 0 else None
        axes.plot(confidence, frequency, color=COLORS[1], linewidth=0.8, alpha=0.45, label=label)
    pooled = bins.pooled()
    axes.plot(
        pooled.confidence / pooled.count,
        pooled.correct / pooled.count,
        color=COLORS[0],
        linewidth=2.5,
        marker="o",
        markersize=4,
        label="all 110 videos pooled",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="confidence", ylabel="observed frequency")
    axes.legend(frameon=False, loc="upper left")


def draw_growth(axes: Axes, counts: list[int], table: Float64[np.ndarray, "count seed 2"]) -> None:
    """Draw both errors over the number of videos: median and 90% band over seeds."""
    for column, name, color, marker in (
        (0, "C3-style", COLORS[1], "s"),
        (1, "pooled", COLORS[0], "o"),
    ):
        low, middle, high = np.quantile(table[:, :, column], [0.05, 0.5, 0.95], axis=1)
        axes.fill_between(counts, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(counts, middle, color=color, marker=marker, markersize=5, label=f"{name} ECE")
    axes.set(xscale="log", ylim=(0, 0.1), xlabel="videos", ylabel="calibration error")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="center right")


def main() -> None:
    """Measure, print and draw."""
    counts = [14, 28, 55, 110, 220, 440, 880]
    table = np.empty((len(counts), len(SEEDS), 2))
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        bins = bin_rows(*simulate(rng, num_videos=counts[-1]), num_bins=NUM_BINS)
        for index, count in enumerate(counts):
            table[index, seed] = errors(ReliabilityBins(bins.sums[:count]))
    for count, row in zip(counts, table, strict=True):
        print(count, "videos: C3-style, pooled", *np.median(row, axis=0).round(4))
    drawn = bin_rows(*simulate(np.random.default_rng(DRAWN_SEED)), num_bins=NUM_BINS)
    print(f"drawn, seed {DRAWN_SEED}:", *np.round(errors(drawn), 4))
    print(f"{processor()}; {versions('numpy', 'scipy')}; commit {git_commit()}; {today()}.")

    mpl.rcParams["svg.hashsalt"] = "hidden video effect"  # makes the file reproducible
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(left, drawn)
    draw_growth(right, counts, table)
    finish(left, right)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
