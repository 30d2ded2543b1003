"""Run the monitor over recorded episodes, frame by frame, as on the robot.

Exit code 1 if any episode raises an alarm. Also tests whether the sequence of episodes drifts away
from the calibration episodes. `worldmodel serve` monitors robots live.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.checkpoint import check_new
from worldmodel.cli._device import AUTOMATIC, Networks

if TYPE_CHECKING:
    from worldmodel.calibration.calibrated import Calibration, Checkpoint
    from worldmodel.datasets.dataset import Dataset
    from worldmodel.model import WorldModel
    from worldmodel.runtime.fleet import DriftSummary
    from worldmodel.runtime.watch import WatchSummary


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel watch`."""

    model: str
    """Folder of a calibrated checkpoint, or the name of a shipped one ("tabletop")."""
    data: Path
    """Dataset folder in any format that `worldmodel data info` reads."""
    only: str | None = None
    """Shell pattern of episode names, such as "val/*"; None: all."""
    out: Path | None = None
    """Rollout log to write (.zarr), a new or empty folder; None: write no log."""
    view: Path | None = None
    """New or empty folder for one view per episode: a Rerun recording (.rrd) where
    `worldmodel[view]` is installed, else a picture (.png); None: write no views."""
    seed: int = 0
    """Seed of the world model's predictions."""
    monitor: Path | None = None
    """Folder that `worldmodel calibrate` wrote; None: `monitor` in the checkpoint."""
    drift_block: int = 1
    """Consecutive episodes per score of the drift test; above 1 where neighbouring episodes
    resemble each other, for example those of a day."""
    skip_bad: bool = False
    """Leave out episodes that cannot be read, and name them; default: stop at the first. Decodes
    every episode once more, beforehand."""
    json: bool = False
    """Print the result as JSON."""
    networks: Networks = AUTOMATIC


def run(command: Command) -> int:
    """Watch the episodes and print one line per episode; return 1 if any raised an alarm."""
    from worldmodel.calibration.calibrated import Checkpoint
    from worldmodel.calibration.choose_episodes import warn_if_seen
    from worldmodel.certificate import log_certificate
    from worldmodel.datasets.rollout_log import RolloutLog
    from worldmodel.episodes.load import open_for, select_episodes
    from worldmodel.episodes.usable import usable_episodes
    from worldmodel.rollouts.log import write_rollout
    from worldmodel.runtime.fleet import check_block, fleet_drift, largest_alarm_score
    from worldmodel.runtime.watch import VERDICT, summarize_watch

    check_new(command.out)
    check_view(command.view, command.out)
    checkpoint = Checkpoint.load(
        command.model, monitor=command.monitor, **command.networks.placement
    )
    log_certificate(checkpoint.folder)
    model, calibration = checkpoint.model, checkpoint.calibration
    check_block(calibration.monitor.alarm_rule_, command.drift_block)
    dataset = open_for(model, command.data)
    chosen = select_episodes(dataset, only=command.only)
    names, left_out = usable_episodes(model, dataset, chosen, skip_bad=command.skip_bad)
    warn_if_seen(model, dataset, names, checkpoint.monitor_folder)
    note_long_episodes(calibration, dataset, names)
    now = datetime.now(UTC)
    calibration.monitor.today = lambda: now  # one date for all episodes, as logged
    attributes = attributes_of(checkpoint, command.data) | {"watched_at": now.isoformat()}
    log: RolloutLog | None = None
    summaries, alarm_scores = {}, {}
    watched = watch_episodes(
        model, calibration, dataset, names, seed=command.seed, view=command.view
    )
    for name, rows in watched:
        if command.out:
            log = log or RolloutLog.create(command.out, attributes=attributes)
            write_rollout(log, name, rows, dataset.summary(name))
        verdicts = {key: [row[key] for row in rows] for key in VERDICT}
        summaries[name] = summarize_watch(**verdicts)
        alarm_scores[name] = largest_alarm_score(calibration.monitor.alarm_rule_, rows)
    rule = calibration.monitor.alarm_rule_
    drift = fleet_drift(rule, alarm_scores, block=command.drift_block)
    print_result(command, summaries, drift, left_out, rate_hz=model.config.rate_hz)
    return int(any(summary.first_alarm is not None for summary in summaries.values()))


def attributes_of(checkpoint: Checkpoint, data: Path) -> dict[str, Any]:
    """Attributes of the log."""
    from worldmodel.calibration.calibrated import read_record
    from worldmodel.rollouts.log import log_attributes

    monitor = checkpoint.monitor_folder
    return log_attributes(
        checkpoint.model, command="watch", checkpoint=checkpoint.folder, monitor=monitor, data=data
    ) | {"calibrated_dtype": read_record(monitor).dtype}


def check_view(view: Path | None, out: Path | None) -> None:
    """Raise if the folder of the views is not empty, or if it overlaps the log."""
    check_new(view, "--view")
    if view and out:
        one, other = view.resolve(), out.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise ValueError(
                f"`--view` and `--out` must not contain each other, got {view} and {out}."
            )


def note_long_episodes(calibration: Calibration, dataset: Dataset, names: Sequence[str]) -> None:
    """Warn about episodes longer than the guarantee on the alarm rate covers."""
    longest = calibration.monitor.alarm_rule_.max_frames_
    beyond = [name for name in names if dataset.summary(name).num_frames > longest]
    if beyond:
        print(
            f"note: {len(beyond)} of {len(names)} episodes are longer than the {longest} frames of "
            "the longest calibration episode; the guaranteed alarm rate does not cover them.",
            file=sys.stderr,
        )


def watch_episodes(
    model: WorldModel,
    calibration: Calibration,
    dataset: Dataset,
    names: Sequence[str],
    *,
    seed: int,
    view: Path | None = None,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Load, imagine and watch episodes one by one; write their views to the folder `view`."""
    from contextlib import nullcontext

    from tqdm import tqdm

    from worldmodel.episodes.load import choose_cameras, load_by_name
    from worldmodel.report.watch_view import open_view
    from worldmodel.runtime.watch import watched_steps

    cameras, rate_hz = choose_cameras(model, dataset), model.config.rate_hz
    with tqdm(names, "watch", unit="episode") as bar:
        for name in bar:
            episode = load_by_name(model, dataset, name, cameras)
            (rollouts,) = calibration.claims(model, [episode.batch], seed=seed)
            shown = open_view(view, name, cameras=cameras, rate_hz=rate_hz) if view else None
            with shown or nullcontext() as show:
                rows = list(watched_steps(model, calibration, episode, rollouts, show=show))
            yield name, rows


def print_result(
    command: Command,
    summaries: dict[str, WatchSummary],
    drift: DriftSummary | None,
    left_out: dict[str, str],
    *,
    rate_hz: float,
) -> None:
    """Print one row per episode, and the result of the drift test."""
    from worldmodel.report.format import seconds
    from worldmodel.report.html import Table
    from worldmodel.runtime.fleet import NOT_TESTED

    if command.json:
        episodes = [summary_as_json(name, s, rate_hz) for name, s in summaries.items()]
        out = None if command.out is None else str(command.out)
        found = drift and asdict(drift)
        facts = {"log": out, "episodes": episodes, "left_out": left_out, "drift": found}
        print(json.dumps(facts))
        return
    rows = [
        (
            name,
            s.num_frames,
            "no" if s.first_alarm is None else "yes",
            "-" if s.first_alarm is None else s.first_alarm,
            seconds(s.first_alarm, rate_hz),
            s.level.name.lower(),
            ", ".join(s.causes) or "-",
            f"{1000 * s.latency_s:.1f}",
        )
        for name, s in summaries.items()
    ]
    alarms = sum(s.first_alarm is not None for s in summaries.values())
    caption = (
        f"{alarms} of {len(summaries)} episodes raised an alarm. Level: highest of the episode; "
        "causes: those of the first alarm; time: median per frame, without the world model."
    )
    columns = ["episode", "frames", "alarm", "frame", "second", "level", "causes", "time (ms)"]
    print(Table(caption=caption, columns=columns, rows=rows).to_text())
    print(f"\n{drift.sentence() if drift else NOT_TESTED}")


def summary_as_json(name: str, summary: WatchSummary, rate_hz: float) -> dict[str, Any]:
    """Summary of one episode as JSON values."""
    first = summary.first_alarm
    return {
        "episode": name,
        **asdict(summary),
        "level": summary.level.name.lower(),
        "first_alarm_s": None if first is None else first / rate_hz,
    }
