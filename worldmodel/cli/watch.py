"""Run the monitor over recorded episodes, frame by frame, as it would run beside the robot.

Exit code 1 if it raised an alarm in any of them. Also says whether the episodes, taken in order,
have drifted away from the calibration episodes. With `--listen`, serve robots instead, until SIGINT
or SIGTERM.
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

if TYPE_CHECKING:
    from worldmodel.calibration.calibrated import Trust
    from worldmodel.datasets.dataset import Dataset
    from worldmodel.model import WorldModel
    from worldmodel.runtime.fleet import DriftSummary
    from worldmodel.runtime.watch import WatchSummary


@dataclass(frozen=True, kw_only=True)
class Command:
    """Which model and monitor, which episodes."""

    model: str
    """Folder of a calibrated checkpoint, or the name of a shipped one ("tabletop")."""
    data: Path | None = None
    """Episodes, in any form that `worldmodel data info` reads; None only with `--listen`."""
    only: str | None = None
    """Shell pattern of the episodes' names, such as "val/*"; None: all."""
    out: Path | None = None
    """Rollout log to write (.zarr), a new or empty folder; with `--listen`, the folder for one file
    of JSON lines per session. None: nothing is written."""
    view: Path | None = None
    """Folder for one file per episode to look at, new or empty: a Rerun recording (.rrd) where
    `worldmodel[view]` is installed, else a picture (.png). None: none is written."""
    seed: int = 0
    """Seed of the world model's predictions."""
    monitor: Path | None = None
    """Folder that `worldmodel calibrate` wrote; None: `monitor` in the checkpoint."""
    json: bool = False
    """Print the result as JSON."""
    listen: str | None = None
    """HOST:PORT to serve robots at, as a websocket; any address but this machine's own (127.0.0.1)
    needs an API key."""
    max_sessions: int = 32
    """Robots served at once."""
    api_key_file: Path | None = None
    """File with the API key that robots must send; None: the environment's WORLDMODEL_API_KEY."""
    deadline_ms: float | None = None
    """With `--listen`: a verdict that took the monitor longer is a stop, with the cause
    "monitor.deadline"; None: it may take any time."""
    imagine: bool = True
    """With `--listen`: imagine every robot's next frame and check it when it comes: needed to find
    actions that the robot does not obey. A step takes about four times as long in all, most of it
    after the verdict."""


def run(command: Command) -> int:
    """Watch, and print one line per episode; or serve robots."""
    from worldmodel.cli._listen import listen

    if (command.data is None) == (command.listen is None):
        raise ValueError("Give either `--data` with episodes to watch, or `--listen` HOST:PORT.")
    if command.data is not None:
        if command.deadline_ms is not None:
            raise ValueError("`--deadline-ms` goes with `--listen`, not with `--data`.")
        if not command.imagine:
            raise ValueError("`--no-imagine` goes with `--listen`, not with `--data`.")
        return watch_data(command, command.data)
    if command.only is not None or command.json or command.view is not None:
        raise ValueError("`--only`, `--json` and `--view` go with `--data`, not with `--listen`.")
    return listen(command)


def load_watcher(command: Command) -> tuple[WorldModel, Trust, Path, Path]:
    """The model, its monitor, and the folders of both."""
    from worldmodel.calibration.calibrated import load_trust
    from worldmodel.checkpoint import check_trained, checkpoint_folder
    from worldmodel.model import WorldModel

    folder = checkpoint_folder(command.model)
    model = WorldModel.load(folder)
    check_trained(model.config.provenance, folder, "confidence")
    monitor = command.monitor or folder / "monitor"
    return model, load_trust(model, folder, monitor), folder, monitor


def watch_data(command: Command, data: Path) -> int:
    """Watch recorded episodes; 1 if any raised an alarm."""
    from worldmodel.calibration.choose_episodes import note_seen
    from worldmodel.datasets.rollout_log import RolloutLog
    from worldmodel.episodes.load import open_for, select_episodes
    from worldmodel.rollouts.log import log_attributes, write_rollout
    from worldmodel.runtime.fleet import fleet_drift, largest_surprise
    from worldmodel.runtime.watch import VERDICT, summarize_watch

    check_new(command.out)
    check_view(command.view, command.out)
    model, trust, folder, monitor = load_watcher(command)
    dataset = open_for(model, data)
    names = select_episodes(dataset, only=command.only)
    note_seen(model, dataset, names, monitor)
    note_long_episodes(trust, dataset, names)
    now = datetime.now(UTC)
    trust.monitor.today = lambda: now  # one for all episodes, so that the log can say which
    attributes = log_attributes(
        model, command="watch", checkpoint=folder, monitor=monitor, data=data
    ) | {"watched_at": now.isoformat()}
    log: RolloutLog | None = None
    summaries, surprises = {}, {}
    watched = watch_episodes(model, trust, dataset, names, seed=command.seed, view=command.view)
    for name, rows in watched:
        if command.out:
            log = log or RolloutLog.create(command.out, attributes=attributes)
            write_rollout(log, name, rows, dataset.summary(name))
        verdicts = {key: [row[key] for row in rows] for key in VERDICT}
        summaries[name] = summarize_watch(**verdicts)
        surprises[name] = largest_surprise(trust.monitor.judge_, rows)
    drift = fleet_drift(trust.monitor.judge_, surprises)
    print_result(command, summaries, drift, rate_hz=model.config.rate_hz)
    return int(any(summary.first_alarm is not None for summary in summaries.values()))


def check_view(view: Path | None, out: Path | None) -> None:
    """Refuse to write views where something is, or into the log."""
    check_new(view, "--view")
    if view and out:
        one, other = view.resolve(), out.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise ValueError(f"`--view` and `--out` must lie apart, got {view} and {out}.")


def note_long_episodes(trust: Trust, dataset: Dataset, names: Sequence[str]) -> None:
    """Warn where the promised alarm rate does not reach."""
    longest = trust.monitor.judge_.max_frames_
    beyond = [name for name in names if dataset.summary(name).num_frames > longest]
    if beyond:
        print(
            f"note: {len(beyond)} of {len(names)} episodes are longer than the {longest} frames of "
            "the longest calibration episode; the promised alarm rate does not cover them.",
            file=sys.stderr,
        )


def watch_episodes(
    model: WorldModel,
    trust: Trust,
    dataset: Dataset,
    names: Sequence[str],
    *,
    seed: int,
    view: Path | None = None,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Load, imagine and watch one episode after the other, and show each in the folder `view`."""
    from contextlib import nullcontext

    from tqdm import tqdm

    from worldmodel.episodes.load import choose_cameras, load_episode
    from worldmodel.report.watch_view import open_view
    from worldmodel.runtime.watch import watched_steps

    cameras, rate_hz = choose_cameras(model, dataset), model.config.rate_hz
    with tqdm(names, "watch", unit="episode") as bar:
        for name in bar:
            episode = load_episode(model, dataset.episode(name), cameras)
            (rollouts,) = trust.claims(model, [episode.batch], seed=seed)
            shown = open_view(view, name, cameras=cameras, rate_hz=rate_hz) if view else None
            with shown or nullcontext() as show:
                rows = list(watched_steps(model, trust, episode, rollouts, show=show))
            yield name, rows


def print_result(
    command: Command,
    summaries: dict[str, WatchSummary],
    drift: DriftSummary | None,
    *,
    rate_hz: float,
) -> None:
    """One line per episode, and one on all of them."""
    from worldmodel.report.html import Table
    from worldmodel.runtime.fleet import NOT_TESTED

    if command.json:
        episodes = [summary_as_json(name, s, rate_hz) for name, s in summaries.items()]
        out = None if command.out is None else str(command.out)
        found = drift and asdict(drift)
        print(json.dumps({"log": out, "episodes": episodes, "drift": found}))
        return
    rows = [
        (
            name,
            s.num_frames,
            "no" if s.first_alarm is None else "yes",
            "-" if s.first_alarm is None else s.first_alarm,
            "-" if s.first_alarm is None else f"{s.first_alarm / rate_hz:.1f}",
            s.level.name.lower(),
            ", ".join(s.causes) or "-",
            f"{1000 * s.latency_s:.1f}",
        )
        for name, s in summaries.items()
    ]
    alarms = sum(s.first_alarm is not None for s in summaries.values())
    caption = (
        f"{alarms} of {len(summaries)} episodes raised an alarm. Level: the highest reached; "
        "causes: of the first alarm; time: median per frame of the monitor alone."
    )
    columns = ["episode", "frames", "alarm", "frame", "second", "level", "causes", "time (ms)"]
    print(Table(caption=caption, columns=columns, rows=rows).to_text())
    print(f"\n{drift.sentence() if drift else NOT_TESTED}")


def summary_as_json(name: str, summary: WatchSummary, rate_hz: float) -> dict[str, Any]:
    """Plain JSON values."""
    first = summary.first_alarm
    return {
        "episode": name,
        **asdict(summary),
        "level": summary.level.name.lower(),
        "first_alarm_s": None if first is None else first / rate_hz,
    }
