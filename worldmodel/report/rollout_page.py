"""What a report shows of a rollout log: its origin, verdicts, calibration, accuracy, films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from worldmodel.calibration.features import MONITOR_EPSILON
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.monitors.heatmaps import overlay
from worldmodel.monitors.reliability.measures import ReliabilityBins
from worldmodel.monitors.verdict import Level
from worldmodel.report.figures import (
    ReliabilityCurve,
    confidence_scale,
    level_timeline,
    lines,
    reliability_diagram,
)
from worldmodel.report.html import Block, Figure, Section, Table, Text, Video
from worldmodel.rollouts.log import LoggedRollout, read_rollouts
from worldmodel.rollouts.open_loop import EPSILONS
from worldmodel.rollouts.quality import psnr_table
from worldmodel.rollouts.reliability import HORIZONS, calibration_table, count_reliability
from worldmodel.runtime.watch import VERDICT, WatchSummary, summarize_watch

MAX_FILMS = 8
MAX_TIMELINES = 40
"""Rollouts drawn; the tables hold them all."""


def log_sections(log: RolloutLog) -> list[Section]:
    """The sections of a log's report.

    Raises:
        ValueError: if the log holds no step yet, or was not written by `imagine` or `watch`.
    """
    rollouts = readable_rollouts(log)
    rate_hz = log.attributes["rate_hz"]
    sections = [Section("Where it comes from", [provenance(log.attributes, rollouts)])]
    if "level" in rollouts[0].signals:
        sections.append(Section("Verdicts", verdict_blocks(rollouts, rate_hz)))
    if any(rollout.horizon.any() for rollout in rollouts):
        sections.append(Section("Calibration", calibration_blocks(rollouts, log.attributes)))
        sections.append(Section("Accuracy", accuracy_blocks(rollouts)))
    return [*sections, Section("Films", film_blocks(rollouts, rate_hz))]


def readable_rollouts(log: RolloutLog) -> list[LoggedRollout]:
    """The rollouts of a log that can be shown.

    Raises:
        ValueError: if the log holds no step yet, or was not written by `imagine` or `watch`.
    """
    rollouts = read_rollouts(log)
    if not rollouts:
        raise ValueError(f"{log.path} holds no step of any rollout yet: nothing to report.")
    if log.attributes.get("epsilons") != list(EPSILONS) or "frame" not in rollouts[0].signals:
        raise ValueError(
            f"{log.path} is no log of `worldmodel imagine` or `watch` of this version; write it "
            "again."
        )
    return rollouts


def provenance(attributes: Mapping[str, Any], rollouts: Sequence[LoggedRollout]) -> Table:
    """Every attribute of the log, and how many rollouts it holds."""
    hidden = ("worldmodel_form", "format_version")
    facts = {name: value for name, value in attributes.items() if name not in hidden}
    cut_off = sum(not rollout.is_closed for rollout in rollouts)
    facts["rollouts"] = f"{len(rollouts)}, of which {cut_off} cut off or still running"
    return Table(
        caption="The run that wrote the log; epsilons: error levels in latent standard deviations.",
        columns=["what", "value"],
        rows=[(name.replace("_", " "), as_words(value)) for name, value in facts.items()],
    )


def as_words(value: object) -> str:
    """A JSON value as a person would write it.

    >>> as_words(["wrist", "left"]), as_words(None), as_words(5.0)
    ('wrist, left', 'none', '5.0')
    """
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def summary_of(rollout: LoggedRollout) -> WatchSummary:
    """The verdicts of a watched rollout, summed up."""
    return summarize_watch(**{name: rollout.signals[name].tolist() for name in VERDICT})


def length_of(rollout: LoggedRollout) -> str:
    """How many frames there are, and of how many if the rollout was cut off."""
    if rollout.is_closed:
        return str(len(rollout))
    return f"{len(rollout)} of {rollout.attributes['num_frames']}"


def verdict_blocks(rollouts: Sequence[LoggedRollout], rate_hz: float) -> list[Block]:
    """One line per rollout, and the levels over time."""
    rows = []
    for rollout in rollouts:
        s = summary_of(rollout)
        alarm = (
            "-" if s.first_alarm is None else f"{s.first_alarm} ({s.first_alarm / rate_hz:.1f} s)"
        )
        rows.append(
            (
                rollout.name,
                length_of(rollout),
                alarm,
                s.level.name.lower(),
                ", ".join(s.causes) or "-",
            )
        )
    shown = rollouts[:MAX_TIMELINES]
    levels = {
        rollout.name: np.array([Level[str(name).upper()] for name in rollout.signals["level"]])
        for rollout in shown
    }
    alarms = sum(row[2] != "-" for row in rows)
    timeline = Figure(
        drawing=level_timeline(
            levels, rate_hz=rate_hz, names=[level.name.lower() for level in Level]
        ),
        alt=f"{alarms} of {len(rows)} rollouts rise above the level trust.",
        caption=f"The monitor's level over time; the first {len(shown)} of {len(rows)} rollouts.",
    )
    table = Table(
        caption="First alarm: frame, and seconds after the first frame; level: the highest "
        "reached; causes: of the first alarm.",
        columns=["rollout", "frames", "first alarm", "level", "causes"],
        rows=rows,
    )
    return [table, timeline]


def reliability_curve(label: str, bins: ReliabilityBins) -> ReliabilityCurve:
    """Pooled sums as a curve to draw."""
    count = np.maximum(bins.count, 1)
    return ReliabilityCurve(
        label=label,
        stated=bins.confidence / count,
        observed=bins.correct / count,
        count=bins.count.astype(np.int64),
    )


def calibration_blocks(
    rollouts: Sequence[LoggedRollout], attributes: Mapping[str, Any]
) -> list[Block]:
    """Stated against observed frequency, at a few horizons."""
    table = calibration_table(rollouts)
    names = [rollout.name for rollout in rollouts]
    reliability = count_reliability(rollouts, names=names, horizons=list(table))
    curves = [reliability_curve(f"horizon {h}", reliability.bins(horizon=h)) for h in table]
    rows = [
        (str(h), s.num_episodes, s.ece, "{:.3f} to {:.3f}".format(*s.ece_interval),
         s.per_video_ece, s.mce, s.brier)
        for h, s in table.items()
    ]  # fmt: skip
    return [
        Figure(
            drawing=reliability_diagram(curves),
            alt="; ".join(f"horizon {h}: pooled ECE {s.ece:.3f}" for h, s in table.items()) + ".",
            caption=f"Confidence {attributes['confidence']}: of all statements made with some "
            "confidence, the share that came true, all error levels together. On the diagonal, 0.9 "
            "means nine times in ten.",
        ),
        Table(
            caption="Pooled ECE: gap over all forecasts, with its 95% interval over redrawn "
            "episodes. C3-style: mean of every episode's own gap, above 0 even for a perfect "
            "forecaster. MCE: largest gap.",
            columns=[
                "horizon",
                "episodes",
                "pooled ECE",
                "interval",
                "C3-style ECE",
                "MCE",
                "Brier",
            ],
            rows=rows,
        ),
    ]


def accuracy_blocks(rollouts: Sequence[LoggedRollout]) -> list[Block]:
    """PSNR over the horizon, beside that of the last real frame."""
    table = psnr_table(rollouts, range(1, max(int(r.horizon.max()) for r in rollouts) + 1))
    x = np.array(list(table), dtype=np.float64)
    imagined = np.array([row.imagined_db for row in table.values()])
    copied = np.array([row.copy_db for row in table.values()])
    gain = [f"{row.gain_db:+.1f} dB at horizon {h}" for h, row in table.items() if h in HORIZONS]
    return [
        Figure(
            drawing=lines(
                {"imagined": (x, imagined), "last real frame, shown again": (x, copied)},
                x_label="horizon (frames)",
                y_label="PSNR (dB)",
            ),
            alt=f"Imagined frames against the last real frame: {', '.join(gain)}.",
            caption=f"Mean over {table[1].num_episodes} rollouts of each one's own PSNR; fewer "
            "where not all reach that far. Above the copy, imagination adds something.",
        )
    ]


def film_blocks(rollouts: Sequence[LoggedRollout], rate_hz: float) -> list[Block]:
    """Real frames, imagined ones and confidence side by side; rollouts with an alarm first."""
    ordered = sorted(rollouts, key=lambda rollout: not has_alarm(rollout))
    blocks: list[Block] = [
        Text(
            f"{min(len(rollouts), MAX_FILMS)} of {len(rollouts)} rollouts, those with an alarm "
            "first. Frames that were not imagined count as certain. The monitor's trust is the "
            "least that any of its channels grants."
        ),
        Figure(
            drawing=confidence_scale(
                f"confidence that the error is at most {MONITOR_EPSILON} latent standard deviations"
            ),
            alt="From dark blue, 0, to yellow, 1.",
            caption="Colours of confidence, and of trust.",
        ),
    ]
    return [*blocks, *(film(rollout, rate_hz) for rollout in ordered[:MAX_FILMS])]


def has_alarm(rollout: LoggedRollout) -> bool:
    """Whether the monitor watched the rollout and raised an alarm."""
    return "level" in rollout.signals and summary_of(rollout).first_alarm is not None


def film(rollout: LoggedRollout, rate_hz: float) -> Video:
    """One rollout, all cameras side by side within each panel."""
    confidence = rollout.confidence[..., EPSILONS.index(MONITOR_EPSILON)].float().numpy()
    panels = {
        "real": beside(rollout.frames),
        "imagined": beside(rollout.imagined),
        "confidence": heat(rollout.imagined, confidence),
    }
    if "trust_map" in rollout.signals:
        trust = np.nan_to_num(rollout.signals["trust_map"], nan=0.0)  # after a fault: no trust
        panels["monitor's trust"] = heat(rollout.frames, trust[:, :, None])
    caption = f"{rollout.name}: {rollout.attributes['instruction'] or 'no instruction'}"
    if has_alarm(rollout):
        s = summary_of(rollout)
        caption += f". Alarm at frame {s.first_alarm}: {', '.join(s.causes)}"
    if not rollout.is_closed:
        caption += f". Cut off: {length_of(rollout)} frames"
    return Video(panels=panels, rate_hz=rate_hz, caption=f"{caption}.")


def beside(
    frames: UInt8[np.ndarray, "time view height width 3"],
) -> UInt8[np.ndarray, "time height columns 3"]:
    """All views of a frame in one row."""
    return rearrange(frames, "t v h w c -> t h (v w) c")


def heat(
    frames: UInt8[np.ndarray, "time view height width 3"],
    confidence: Float[np.ndarray, "time view channel h w"],
) -> UInt8[np.ndarray, "time height columns 3"]:
    """Confidence over the frames."""
    views = [
        [overlay(*pair) for pair in zip(*moment, strict=True)]
        for moment in zip(frames, confidence, strict=True)
    ]
    return beside(np.array(views))
