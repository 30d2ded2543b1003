"""Tables and report sections of `worldmodel demo`."""

from __future__ import annotations

import numpy as np

from worldmodel.calibration.calibrated import Calibration
from worldmodel.calibration.features import MONITOR_EPSILON, confidence_maps
from worldmodel.demo import DemoResult, Group
from worldmodel.envs.factors import NOMINAL, SEVERITIES, SHIFTS
from worldmodel.model import WorldModel
from worldmodel.monitors.heatmaps import overlay
from worldmodel.monitors.reliability.counts import Reliability
from worldmodel.report.figures import policy_scatter, reliability_diagram, score_distributions
from worldmodel.report.format import CALIBRATION_NOTE, reliability_table, seconds, with_interval
from worldmodel.report.html import Block, Figure, Section, Table, Text, Video
from worldmodel.report.policy_tables import agreement_table, policy_table
from worldmodel.rollouts.picture_kinds import KINDS
from worldmodel.rollouts.pictures import pictures

MAX_SCORE = 40.0
"""Alarm scores are clipped here in the figure."""


def quality_table(result: DemoResult) -> Table:
    """PSNR of imagined frames and of the two baselines: copy last frame, shuffled actions."""
    return Table(
        caption=f"Imagined frames on {result.quality[0].num_episodes} nominal episodes: mean PSNR "
        f"in dB of pictures {KINDS[result.config.pictures]}, with 95% intervals over episodes. "
        "Baselines: copy last frame; shuffled actions (a rollout under the actions of another "
        "episode).",
        columns=("frames ahead", "imagined", "copy last frame", "shuffled actions",
                 "gain over copy", "gain over shuffled"),
        rows=[
            (str(r.step), f"{r.imagined:.2f}", f"{r.copied:.2f}", f"{r.shuffled:.2f}",
             with_interval(r.gain[0], r.gain[1:]),
             with_interval(r.loss_when_shuffled[0], r.loss_when_shuffled[1:]))
            for r in result.quality
        ],
    )  # fmt: skip


def monitor_table(result: DemoResult, rate_hz: float) -> Table:
    """Detection of shifted episodes among nominal ones, per factor and severity."""
    rows = []
    for factor in SHIFTS:
        for severity in SEVERITIES:
            d = result.detection[factor, severity]
            rows.append((
                factor, str(severity), str(d.num_shifted),
                with_interval(d.auroc, d.auroc_interval), f"{d.fpr95:.2f}",
                with_interval(d.detected_rate, d.detected_interval),
                seconds(d.median_delay, rate_hz),
            ))  # fmt: skip
    return Table(
        caption="Monitor: shifted episodes against nominal ones. Alarm rate: share of episodes "
        "with any alarm, with a 95% Wilson interval. Delay: median time to the first alarm.",
        columns=("factor", "severity", "episodes", "AUROC", "FPR@95", "alarm rate", "delay (s)"),
        rows=rows,
    )


def false_alarms(result: DemoResult) -> str:
    """Number of nominal episodes with an alarm, as a sentence."""
    watched = result.groups[NOMINAL, 0].watched
    alarms = sum(bool(episode.levels.any()) for episode in watched)
    return f"False alarms on nominal episodes: {alarms} of {len(watched)}."


def tables(result: DemoResult, rate_hz: float) -> list[Table]:
    """All tables, in the order of the report."""
    return [
        quality_table(result),
        reliability_table(
            result.calibration,
            result.gains,
            heading="forecasts",
            caption="Calibration of the confidence at horizons 1, 4, 8 and 16. The confidence is "
            "recalibrated where a rollout starts from a frame that looks familiar to the monitor. "
            f"Every episode has its own scene. {CALIBRATION_NOTE}",
        ),
        monitor_table(result, rate_hz),
        policy_table(result.evaluation),
        agreement_table(result.evaluation),
    ]


def reliability_figure(reliability: dict[str, Reliability]) -> Figure:
    """Reliability diagram of nominal and shifted episodes."""
    return Figure(
        drawing=reliability_diagram({name: counts.bins() for name, counts in reliability.items()}),
        alt="Observed frequency against stated confidence, nominal and shifted.",
        caption="Reliability of the confidence, pooled over error tolerances and horizons. "
        "On the diagonal, a confidence of 0.9 is right nine times in ten.",
    )


def alarm_score_figure(result: DemoResult, calibration: Calibration) -> Figure:
    """Largest alarm score of every episode, and the alarm threshold."""
    scores = {NOMINAL: np.array([w.alarm_score.max() for w in result.groups[NOMINAL, 0].watched])}
    for factor in SHIFTS:
        for severity in SEVERITIES:
            watched = result.groups[factor, severity].watched
            scores[f"{factor} {severity}"] = np.array([w.alarm_score.max() for w in watched])
    threshold = min(calibration.monitor.alarm_rule_.thresholds_.values())
    clipped = {name: np.minimum(values, MAX_SCORE) for name, values in scores.items()}
    return Figure(
        drawing=score_distributions(
            clipped,
            threshold=threshold,
            x_label=f"largest alarm score of the episode (clipped at {MAX_SCORE:g})",
        ),
        alt="Largest alarm scores of nominal and shifted episodes, and the alarm threshold.",
        caption="One dot per episode, the median as a bar. Right of the dashed line, the monitor "
        "raises an alarm.",
    )


def video(model: WorldModel, group: Group, index: int, caption: str, kind: str) -> Video:
    """Real frames, imagined frames and confidence, side by side."""
    episode, rollout = group.episodes[index], group.shown[index]
    imagined = pictures(model, episode.frames, rollout, kind=kind)[:, 0].numpy()
    confidence = confidence_maps(rollout)[:, 0]
    heatmaps = [overlay(frame, c) for frame, c in zip(imagined, confidence, strict=True)]
    return Video(
        panels={
            "real": episode.frames[:, 0].numpy(),
            "imagined": imagined,
            "confidence": np.stack(heatmaps),
        },
        rate_hz=model.config.rate_hz,
        caption=caption,
    )


def videos(model: WorldModel, calibration: Calibration, result: DemoResult) -> list[Block]:
    """Two nominal episodes, and one of the strongest shift of each factor."""
    blocks: list[Block] = [
        Text(
            "Left: the recorded episode. Middle: an open-loop rollout under the same actions, "
            f"restarted from real frames every {calibration.horizon} frames, its pictures "
            f"{KINDS[result.config.pictures]}. Right: confidence "
            f"that the error is at most {MONITOR_EPSILON} latent standard deviations, from 0 (dark "
            "blue) to 1 (yellow)."
        )
    ]
    nominal, kind = result.groups[NOMINAL, 0], result.config.pictures
    for i in (0, 1):
        blocks.append(video(model, nominal, i, f"Nominal: {nominal.episodes[i].name}", kind))
    for factor in SHIFTS:
        group = result.groups[factor, SEVERITIES[-1]]
        caption = f"Shifted: {factor}, severity {SEVERITIES[-1]}"
        blocks.append(video(model, group, 0, caption, kind))
    return blocks


def sections(model: WorldModel, calibration: Calibration, result: DemoResult) -> list[Section]:
    """Sections of the demo's report."""
    quality, reliability, monitor, policies, agreement = tables(result, model.config.rate_hz)
    evaluation = result.evaluation
    scatter = Figure(
        drawing=policy_scatter(
            [p.name for p in evaluation.policies],
            [p.imagined for p in evaluation.policies],
            [p.true for p in evaluation.policies],
        ),
        alt="True against imagined success rate of every policy.",
        caption="One dot per policy, with 95% Wilson intervals of both success rates.",
    )
    return [
        Section("Imagination", [quality, *videos(model, calibration, result)]),
        Section("Calibration", [reliability, reliability_figure(dict(result.reliability))]),
        Section(
            "Monitor",
            [Text(false_alarms(result)), monitor, alarm_score_figure(result, calibration)],
        ),
        Section("Policies", [policies, agreement, scatter]),
    ]
