"""Report sections of a rollout log: provenance, verdicts, calibration, accuracy, videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from worldmodel.calibration.features import MONITOR_EPSILON
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.monitors.heatmaps import overlay
from worldmodel.monitors.verdict import Level
from worldmodel.report.figures import (
    confidence_scale,
    level_timeline,
    lines,
    reliability_diagram,
)
from worldmodel.report.format import CALIBRATION_NOTE, reliability_table, seconds
from worldmodel.report.html import Block, Figure, Section, Table, Text, Video
from worldmodel.rollouts.log import LoggedRollout, read_rollouts
from worldmodel.rollouts.open_loop import EPSILONS
from worldmodel.rollouts.picture_kinds import DECODED, KINDS
from worldmodel.rollouts.quality import psnr_table
from worldmodel.rollouts.reliability import HORIZONS, calibration_table, count_reliability
from worldmodel.runtime.watch import VERDICT, WatchSummary, summarize_watch

MAX_VIDEOS = 8
MAX_TIMELINES = 40
"""Most rollouts in the videos and in the timeline; the tables list all of them."""


def log_sections(log: RolloutLog) -> list[Section]:
    """Sections of the report of a log.

    Raises:
        ValueError: if the log holds no step yet, or was not written by `imagine` or `watch`.
    """
    rollouts = readable_rollouts(log)
    rate_hz = log.attributes["rate_hz"]
    sections = [Section("Provenance", [provenance(log.attributes, rollouts)])]
    if "level" in rollouts[0].signals:
        sections.append(Section("Verdicts", verdict_blocks(rollouts, rate_hz)))
    if any(rollout.horizon.any() for rollout in rollouts):
        if any(rollout.has_confidence for rollout in rollouts):
            sections.append(Section("Calibration", calibration_blocks(rollouts, log.attributes)))
        sections.append(Section("Accuracy", accuracy_blocks(rollouts, kind_of(log.attributes))))
    return [*sections, Section("Videos", video_blocks(rollouts, rate_hz))]


def readable_rollouts(log: RolloutLog) -> list[LoggedRollout]:
    """Rollouts of a log, checked for what the report needs.

    Raises:
        ValueError: if the log holds no step yet, or was not written by `imagine` or `watch`.
    """
    rollouts = read_rollouts(log)
    if not rollouts:
        raise ValueError(f"{log.path} holds no step of any rollout yet: nothing to report.")
    if log.attributes.get("epsilons") != list(EPSILONS) or "frame" not in rollouts[0].signals:
        raise ValueError(
            f"{log.path} is no log of `worldmodel imagine` or `watch` of this version; run the "
            "command again to write a new one."
        )
    return rollouts


def provenance(attributes: Mapping[str, Any], rollouts: Sequence[LoggedRollout]) -> Table:
    """Attributes of the log, and its number of rollouts."""
    hidden = ("worldmodel_form", "format_version")
    facts = {name: value for name, value in attributes.items() if name not in hidden}
    incomplete = sum(not rollout.is_closed for rollout in rollouts)
    facts["rollouts"] = f"{len(rollouts)} ({incomplete} incomplete)"
    return Table(
        caption="The run that wrote this log. Epsilons: error tolerances of the confidence, in "
        "latent standard deviations.",
        columns=["attribute", "value"],
        rows=[
            (name.replace("_", " ").replace(" hz", " (Hz)"), as_words(value))
            for name, value in facts.items()
        ],
    )


def as_words(value: object) -> str:
    """A JSON value as plain text.

    >>> as_words(["wrist", "left"]), as_words({"num_steps": 4, "eta": 0.5}), as_words(None)
    ('wrist, left', 'num steps 4, eta 0.5', 'none')
    """
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {as_words(v)}" for name, v in value.items())
    return "none" if value is None else str(value)


def summary_of(rollout: LoggedRollout) -> WatchSummary:
    """Summary of the verdicts on a rollout."""
    return summarize_watch(**{name: rollout.signals[name].tolist() for name in VERDICT})


def length_of(rollout: LoggedRollout) -> str:
    """Number of frames; for an incomplete rollout, also the number of its episode."""
    if rollout.is_closed:
        return str(len(rollout))
    return f"{len(rollout)} of {rollout.attributes['num_frames']}"


def verdict_blocks(rollouts: Sequence[LoggedRollout], rate_hz: float) -> list[Block]:
    """Table of one row per rollout, and the levels over time."""
    rows = []
    for rollout in rollouts:
        s = summary_of(rollout)
        first = s.first_alarm
        alarm = "-" if first is None else f"{first} ({seconds(first, rate_hz)} s)"
        rows.append(
            (
                rollout.name,
                length_of(rollout),
                alarm,
                s.level.name.lower(),
                ", ".join(s.causes) or "-",
            )
        )
    drawn = rollouts[:MAX_TIMELINES]
    levels = {
        rollout.name: np.array([Level[str(name).upper()] for name in rollout.signals["level"]])
        for rollout in drawn
    }
    alarms = sum(row[2] != "-" for row in rows)
    timeline = Figure(
        drawing=level_timeline(
            levels, rate_hz=rate_hz, names=[level.name.lower() for level in Level]
        ),
        alt=f"{alarms} of {len(rows)} rollouts rise above the level trust.",
        caption="Verdict level over time"
        + (f"; the first {len(drawn)} of {len(rows)} rollouts." if len(drawn) < len(rows) else "."),
    )
    table = Table(
        caption="First alarm: frame and time since the first frame. Level: highest level of the "
        "rollout. Causes: those of the first alarm.",
        columns=["rollout", "frames", "first alarm", "level", "causes"],
        rows=rows,
    )
    return [table, timeline]


def calibration_blocks(
    rollouts: Sequence[LoggedRollout], attributes: Mapping[str, Any]
) -> list[Block]:
    """Reliability diagram and calibration table, per horizon."""
    summaries = calibration_table(rollouts)
    psnr = psnr_table(rollouts, list(summaries))
    names = [rollout.name for rollout in rollouts]
    reliability = count_reliability(rollouts, names=names, horizons=list(summaries))
    curves = {f"horizon {h}": reliability.bins(horizon=h) for h in summaries}
    return [
        Figure(
            drawing=reliability_diagram(curves),
            alt="; ".join(f"horizon {h}: pooled ECE {s.ece:.3f}" for h, s in summaries.items())
            + ".",
            caption=f"Reliability of the confidence, {attributes['confidence']}, pooled over "
            "error tolerances. On the diagonal, a confidence of 0.9 is right nine times in ten.",
        ),
        reliability_table(
            {str(h): summary for h, summary in summaries.items()},
            {str(h): row.gain for h, row in psnr.items()},
            heading="horizon",
            caption=f"{CALIBRATION_NOTE} Pictures: {KINDS[kind_of(attributes)]}.",
        ),
    ]


def kind_of(attributes: Mapping[str, Any]) -> str:
    """Kind of the pictures in a log; logs of before 0.2 hold decoded ones and do not say so."""
    return str(attributes.get("pictures", DECODED))


def accuracy_blocks(rollouts: Sequence[LoggedRollout], kind: str) -> list[Block]:
    """PSNR over the horizon, against the baseline that repeats the last real frame."""
    table = psnr_table(rollouts, range(1, max(int(r.horizon.max()) for r in rollouts) + 1))
    x = np.array(list(table), dtype=np.float64)
    imagined = np.array([row.imagined_db for row in table.values()])
    copied = np.array([row.copy_db for row in table.values()])
    gain = [f"{row.gain_db:+.1f} dB at horizon {h}" for h, row in table.items() if h in HORIZONS]
    return [
        Figure(
            drawing=lines(
                {f"imagined, {kind}": (x, imagined), "baseline: copy last frame": (x, copied)},
                x_label="horizon (frames)",
                y_label="PSNR (dB)",
            ),
            alt=f"Gain of imagined frames over the last real frame: {', '.join(gain)}.",
            caption=f"Mean PSNR per rollout, of pictures {KINDS[kind]}, over "
            f"{table[1].num_episodes} rollouts; over fewer at horizons that not every rollout "
            "reaches. Above the dashed line, the model beats repeating the last frame.",
        )
    ]


def video_blocks(rollouts: Sequence[LoggedRollout], rate_hz: float) -> list[Block]:
    """Videos of real frames, imagined frames and confidence; rollouts with an alarm first."""
    ordered = sorted(rollouts, key=lambda rollout: not has_alarm(rollout))
    blocks: list[Block] = [
        Text(
            f"{min(len(rollouts), MAX_VIDEOS)} of {len(rollouts)} rollouts, those with an alarm "
            "first. Context frames are shown as confidence 1. The monitor's trust is the minimum "
            "over its channels."
        ),
        Figure(
            drawing=confidence_scale(
                f"confidence that the error is at most {MONITOR_EPSILON} latent standard deviations"
            ),
            alt="Colour scale from 0 (dark blue) to 1 (yellow).",
            caption="Colour scale of confidence and of trust.",
        ),
    ]
    return [*blocks, *(rollout_video(rollout, rate_hz) for rollout in ordered[:MAX_VIDEOS])]


def has_alarm(rollout: LoggedRollout) -> bool:
    """Whether the monitor raised an alarm in the rollout."""
    return "level" in rollout.signals and summary_of(rollout).first_alarm is not None


def rollout_video(rollout: LoggedRollout, rate_hz: float) -> Video:
    """Video of one rollout; each panel holds all cameras side by side."""
    confidence = rollout.confidence[..., EPSILONS.index(MONITOR_EPSILON)].float().numpy()
    panels = {"real": camera_row(rollout.frames), "imagined": camera_row(rollout.imagined)}
    if rollout.has_confidence:
        panels["confidence"] = heat(rollout.imagined, confidence)
    if "trust_map" in rollout.signals:
        trust = np.nan_to_num(
            rollout.signals["trust_map"], nan=0.0
        )  # no map after a fault: trust 0
        panels["monitor's trust"] = heat(rollout.frames, trust[:, :, None])
    caption = f"{rollout.name}: {rollout.attributes['instruction'] or 'no instruction'}"
    if has_alarm(rollout):
        s = summary_of(rollout)
        caption += f". Alarm at frame {s.first_alarm}: {', '.join(s.causes)}"
    if not rollout.is_closed:
        caption += f". Incomplete: {length_of(rollout)} frames"
    return Video(panels=panels, rate_hz=rate_hz, caption=f"{caption}.")


def camera_row(
    frames: UInt8[np.ndarray, "time view height width 3"],
) -> UInt8[np.ndarray, "time height columns 3"]:
    """Frames of all cameras in one row."""
    return rearrange(frames, "t v h w c -> t h (v w) c")


def heat(
    frames: UInt8[np.ndarray, "time view height width 3"],
    confidence: Float[np.ndarray, "time view channel h w"],
) -> UInt8[np.ndarray, "time height columns 3"]:
    """Confidence drawn over the frames."""
    views = [
        [overlay(*pair) for pair in zip(*step, strict=True)]
        for step in zip(frames, confidence, strict=True)
    ]
    return camera_row(np.array(views))
