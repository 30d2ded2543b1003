"""Number formatting of tables, captions and pictures, and the table of calibration measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worldmodel.monitors.reliability.counts import CalibrationSummary
from worldmodel.report.html import Table
from worldmodel.rollouts.quality import CopyGain

CALIBRATION_NOTE = (
    "Pooled ECE: expected calibration error over all forecasts, with a 95% interval over resampled "
    "episodes. C3-style ECE: mean of each episode's own error, above 0 even for a perfectly "
    "calibrated forecaster. MCE: largest gap between confidence and observed frequency. Brier "
    "skill: improvement over always forecasting the base rate. Gain over copy: PSNR of the "
    "pictures minus that of the last real frame; below 0, the pictures are worse than a "
    "copy, however well calibrated their confidence is."
)


def with_interval(value: float, interval: Sequence[float] | None, spec: str = ".2f") -> str:
    """A number and its interval; the number alone if there is no interval.

    >>> with_interval(-1.0, (-2.0, 0.5), "+.1f"), with_interval(0.25, None)
    ('-1.0 [-2.0, +0.5]', '0.25')
    """
    if interval is None:
        return format(value, spec)
    low, high = (format(end, spec) for end in interval)
    return f"{value:{spec}} [{low}, {high}]"


def seconds(num_frames: int | float | None, rate_hz: float) -> str:
    """A duration in seconds; a dash for None.

    >>> seconds(6, 5.0), seconds(None, 5.0)
    ('1.2', '-')
    """
    return "-" if num_frames is None else f"{num_frames / rate_hz:.1f}"


def reliability_table(
    summaries: Mapping[str, CalibrationSummary],
    gains: Mapping[str, CopyGain],
    *,
    heading: str,
    caption: str,
) -> Table:
    """Calibration measures per row, beside the gain of the pictures over copying the last frame.

    `gains` has the names of `summaries`; `heading` names the first column.
    """
    return Table(
        caption=caption,
        columns=(
            heading, "episodes", "pooled ECE", "gain over copy (dB)", "C3-style ECE", "MCE",
            "Brier", "Brier skill",
        ),
        rows=[
            (name, s.num_episodes, with_interval(s.ece, s.ece_interval, ".3f"),
             with_interval(gains[name].gain_db, gains[name].interval, "+.1f"), s.per_video_ece,
             s.mce, s.brier, f"{s.brier_skill:.2f}")
            for name, s in summaries.items()
        ],
    )  # fmt: skip
