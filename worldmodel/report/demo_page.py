"""What the demo shows: tables for the terminal and the sections of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldmodel.calibration.calibrated import Calibration
from worldmodel.calibration.features import MONITOR_EPSILON, confidence_maps
from worldmodel.demo import DemoResult, Group
from worldmodel.envs.factors import NOMINAL, SEVERITIES, SHIFTS
from worldmodel.model import WorldModel
from worldmodel.monitors.heatmaps import overlay
from worldmodel.monitors.reliability.counts import CalibrationSummary, Reliability
from worldmodel.report.figures import (
    ReliabilityCurve,
    policy_scatter,
    reliability_diagram,
    score_distributions,
)
from worldmodel.report.html import Block, Figure, Section, Table, Text, Video
from worldmodel.report.policy_tables import agreement_table, policy_table


def plus_minus(values: tuple[float, float, float]) -> str:
    """A mean and its interval.

    >>> plus_minus((4.21, 3.9, 4.5))
    '4.21 [3.90, 4.50]'
    """
    mean, low, high = values
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def quality_table(result: DemoResult) -> Table:
    """Imagined frames against the two dumb predictors."""
    n = result.quality[0].num_episodes
    return Table(
        caption=f"Imagined pictures on nominal episodes: mean PSNR in dB over n = {n} episodes, "
        "with 95% intervals over episodes.",
        columns=("frames ahead", "imagined", "last frame copied", "other actions",
                 "gain over copy", "loss with other actions"),
        rows=[
            (str(r.step), f"{r.imagined:.2f}", f"{r.copied:.2f}", f"{r.shuffled:.2f}",
             plus_minus(r.gain), plus_minus(r.loss_when_shuffled))
            for r in result.quality
        ],
    )  # fmt: skip


def calibration_table(result: DemoResult) -> Table:
    """Stated against observed confidence."""

    def row(name: str, s: CalibrationSummary) -> Sequence[str]:
        return (
            name, str(s.num_episodes), plus_minus_3((s.ece, *s.ece_interval)),
            f"{s.per_video_ece:.3f}", f"{s.mce:.3f}", f"{s.brier:.3f}", f"{s.brier_skill:.2f}",
        )  # fmt: skip

    return Table(
        caption="Calibration of the stated confidence at horizons 1, 4, 8 and 16. ECE: expected "
        "calibration error over all forecasts, with its 95% interval over episodes; C3-style: "
        "mean of every episode's own error; MCE: largest gap; skill: against stating the base "
        "rate.",
        columns=("episodes", "n", "ECE", "C3-style ECE", "MCE", "Brier", "Brier skill"),
        rows=[row(name, summary) for name, summary in result.calibration.items()],
    )


def plus_minus_3(values: tuple[float, float, float]) -> str:
    """A small mean and its interval, three decimals."""
    mean, low, high = values
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def monitor_table(result: DemoResult, rate_hz: float) -> Table:
    """Shifted against nominal episodes, per factor and severity."""
    rows = []
    for factor in SHIFTS:
        for severity in SEVERITIES:
            d = result.detection[factor, severity]
            delay = "-" if d.median_delay is None else f"{d.median_delay / rate_hz:.1f}"
            low, high = d.detected_interval
            rows.append((
                factor, str(severity), str(d.num_shifted),
                plus_minus((d.auroc, *d.auroc_interval)), f"{d.fpr95:.2f}",
                f"{d.detected_rate:.2f} [{low:.2f}, {high:.2f}]", delay,
            ))  # fmt: skip
    return Table(
        caption="The monitor on shifted episodes against nominal ones. Alarm rate: share of "
        "episodes with any alarm, 95% Wilson interval. Delay: median time to the first alarm.",
        columns=("factor", "severity", "n", "AUROC", "FPR@95", "alarm rate", "delay (s)"),
        rows=rows,
    )


def false_alarms(result: DemoResult) -> str:
    """The monitor's false alarms in one sentence."""
    watched = result.groups[NOMINAL, 0].watched
    alarms = sum(bool(episode.levels.any()) for episode in watched)
    return f"False alarms on nominal episodes: {alarms} of {len(watched)}."


def tables(result: DemoResult, rate_hz: float) -> list[Table]:
    """Every table, in the order of the report."""
    return [
        quality_table(result),
        calibration_table(result),
        monitor_table(result, rate_hz),
        policy_table(result.evaluation),
        agreement_table(result.evaluation),
    ]


def reliability_figure(reliability: dict[str, Reliability]) -> Figure:
    """Nominal and shifted curves."""
    curves = []
    for label, counted in reliability.items():
        bins = counted.bins()
        count = np.maximum(bins.count, 1)
        curves.append(ReliabilityCurve(
            label=label,
            stated=bins.confidence / count,
            observed=bins.correct / count,
            count=bins.count.astype(np.int64),
        ))  # fmt: skip
    return Figure(
        drawing=reliability_diagram(curves),
        alt="Observed frequency against stated confidence, nominal and shifted.",
        caption="Reliability of the stated confidence, all error levels and horizons pooled. On "
        "the diagonal, 0.9 means nine times in ten.",
    )


def alarm_score_figure(result: DemoResult, calibration: Calibration) -> Figure:
    """Largest surprise of every episode."""
    scores = {NOMINAL: np.array([w.alarm_score.max() for w in result.groups[NOMINAL, 0].watched])}
    for factor in SHIFTS:
        for severity in SEVERITIES:
            watched = result.groups[factor, severity].watched
            scores[f"{factor} {severity}"] = np.array([w.alarm_score.max() for w in watched])
    threshold = min(calibration.monitor.alarm_rule_.thresholds_.values())
    clipped = {name: np.minimum(values, 40.0) for name, values in scores.items()}
    return Figure(
        drawing=score_distributions(
            clipped, threshold=threshold, x_label="largest surprise in the episode (cut at 40)"
        ),
        alt="Surprise of nominal and shifted episodes beside the alarm's threshold.",
        caption="Each dot is an episode; right of the line the monitor raises an alarm.",
    )


def film(model: WorldModel, group: Group, index: int, caption: str) -> Video:
    """True frames, imagined frames and confidence, side by side."""
    episode, rollout = group.episodes[index], group.rollouts[index]
    imagined = model.decode(rollout.imagined[:, 0]).numpy()
    confidence = confidence_maps(rollout)[:, 0]
    heat = [overlay(frame, c) for frame, c in zip(imagined, confidence, strict=True)]
    return Video(
        panels={
            "true": episode.frames[:, 0].numpy(),
            "imagined": imagined,
            "confidence": np.stack(heat),
        },
        rate_hz=model.config.rate_hz,
        caption=caption,
    )


def films(model: WorldModel, calibration: Calibration, result: DemoResult) -> list[Block]:
    """Two nominal episodes and the strongest shift of each factor."""
    blocks: list[Block] = [
        Text(
            "Left what happened, in the middle what the model imagined under the same actions "
            f"(open loop, real frames again every {calibration.horizon} "
            f"frames), right its confidence that the error is at most {MONITOR_EPSILON} latent "
            "standard deviations: yellow 1, dark blue 0."
        )
    ]
    nominal = result.groups[NOMINAL, 0]
    blocks += [film(model, nominal, i, f"Nominal: {nominal.episodes[i].name}") for i in (0, 1)]
    for factor in SHIFTS:
        group = result.groups[factor, SEVERITIES[-1]]
        blocks.append(film(model, group, 0, f"Shifted: {factor}, severity {SEVERITIES[-1]}"))
    return blocks


def sections(model: WorldModel, calibration: Calibration, result: DemoResult) -> list[Section]:
    """The whole report."""
    quality, reliability, monitor, policies, agreement = tables(result, model.config.rate_hz)
    evaluation = result.evaluation
    scatter = Figure(
        drawing=policy_scatter(
            [p.name for p in evaluation.policies],
            [p.imagined for p in evaluation.policies],
            [p.true for p in evaluation.policies],
        ),
        alt="True against imagined success of every policy.",
        caption="Each dot is a policy, with 95% Wilson intervals both ways.",
    )
    return [
        Section("Imagination", [quality, *films(model, calibration, result)]),
        Section("Calibration", [reliability, reliability_figure(dict(result.reliability))]),
        Section(
            "Monitor",
            [Text(false_alarms(result)), monitor, alarm_score_figure(result, calibration)],
        ),
        Section("Policies", [policies, agreement, scatter]),
    ]
