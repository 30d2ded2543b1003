"""Are broken sensors found, and named right? Faults switched on in nominal tabletop episodes.

    worldmodel data collect nominal.zarr --episodes 300 --seed 1  # what it learns from
    python -m benchmarks.detection.sensor_faults --data nominal.zarr  # ten minutes

Two monitors are fitted on the recorded episodes, one for their camera and one for it and a second
view made of it; two thirds of the episodes are the reference. Then fresh nominal episodes are shown
to them: as they are, and with each fault from frame 10 on. Episodes with a change of the scene are
shown too, to count how often one is called swapped. Exit code 1 if a fault is missed or misnamed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.provenance import RESULTS, git_commit, processor
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.envs.collect import Collection, record
from worldmodel.envs.factors import FACTORS, SEVERITIES
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.channels.action import recent_actions
from worldmodel.monitors.channels.sensor import FROZEN_PATH
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Level

SEED = 5_000_003
ONSET = 10
"""First frame with the fault."""


@dataclass(frozen=True)
class FaultEpisode:
    """What a healthy robot would show."""

    frames: np.ndarray
    """uint8 [time, height, width, 3], or [time, view, height, width, 3]."""
    actions: np.ndarray
    """Canonical, [time, 7]; NaN where there is none."""
    position: np.ndarray
    """Of the gripper, in metres, [time, 3]."""
    rate_hz: float

    def __len__(self) -> int:
        return len(self.frames)

    def action(self, t: int) -> np.ndarray | None:
        """The action commanded at a frame; None if there is none."""
        return None if np.isnan(self.actions[t]).any() else self.actions[t]

    def rests(self) -> bool:
        """Whether the robot stays where it is from the last good frame on."""
        away = np.linalg.norm(self.position[ONSET:] - self.position[ONSET - 1], axis=1)
        return bool(away.max() <= FROZEN_PATH)


Shown = tuple[object, object]
"""Observation and action."""
Fault = Callable[[FaultEpisode, int], Shown]
"""What the monitor is shown at a frame from `ONSET` on."""


def shown(episode: FaultEpisode, t: int, *, frame: object = ..., time_s: object = ...) -> Shown:
    """A frame with its time and action, healthy but for what is given."""
    image = episode.frames[t] if frame is ... else frame
    seconds = t / episode.rate_hz if time_s is ... else time_s
    return {"image": image, "time_s": seconds}, episode.action(t)


def of_picture(change: Callable[[np.ndarray], object]) -> Fault:
    """A fault that changes each picture on its own."""
    return lambda episode, t: shown(episode, t, frame=change(episode.frames[t]))


def frozen(episode: FaultEpisode, t: int) -> Shown:
    """The last good picture for ever; the times go on."""
    return shown(episode, t, frame=episode.frames[ONSET - 1])


def skipped(episode: FaultEpisode, t: int) -> Shown:
    """One frame is left out; from then on every frame is the next one, with its own time."""
    return shown(episode, min(t + 1, len(episode) - 1))


def repeated(episode: FaultEpisode, t: int) -> Shown:
    """The clock of the camera stands still."""
    return shown(episode, t, time_s=(ONSET - 1) / episode.rate_hz)


def out_of_step(episode: FaultEpisode, t: int) -> Shown:
    """The second camera is a period behind."""
    return shown(episode, t, time_s=[t / episode.rate_hz, (t - 1) / episode.rate_hz])


def speckled(frame: np.ndarray) -> np.ndarray:
    """One value is not a number."""
    broken = frame.astype(np.float32)
    broken.flat[0] = np.nan
    return broken


def broken_action(episode: FaultEpisode, t: int) -> Shown:
    """One number of the action is infinite."""
    action = np.zeros(7) if episode.action(t) is None else episode.actions[t].copy()
    action[2] = np.inf
    return shown(episode, t)[0], action


ONE_VIEW: dict[str, tuple[Fault, str]] = {
    "frozen picture": (frozen, "frozen"),
    "black picture": (of_picture(np.zeros_like), "black"),
    "no picture": (of_picture(lambda frame: None), "dropped"),
    "late: a frame was skipped": (skipped, "late"),
    "late: the time stands still": (repeated, "late"),
    "swapped: colour channels, BGR": (of_picture(lambda f: f[..., ::-1]), "swapped"),
    "swapped: upside down": (of_picture(lambda f: f[::-1]), "swapped"),
    "swapped: mirrored": (of_picture(lambda f: f[:, ::-1]), "swapped"),
    "swapped: turned by 180 degrees": (of_picture(lambda f: f[::-1, ::-1]), "swapped"),
    "NaN in the picture": (of_picture(speckled), "nan"),
    "picture of floats": (of_picture(lambda f: f.astype(np.float32) / 255), "dtype"),
    "picture of half the width": (of_picture(lambda f: f[:, ::2]), "shape"),
    "infinite action": (broken_action, "action"),
}
"""Fault -> what it does, and its name as a cause."""
TWO_VIEWS: dict[str, tuple[Fault, str]] = {
    "swapped: the two cameras": (of_picture(lambda f: f[::-1]), "swapped"),
    "swapped: colour channels of the second camera": (
        of_picture(lambda f: np.stack([f[0], f[1, ..., ::-1]])),
        "swapped",
    ),
    "one camera of two is gone": (of_picture(lambda f: f[:1]), "dropped"),
    "late: the second camera is a period behind": (out_of_step, "late"),
}
"""The same for the monitor of two views."""


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """What became of one fault."""

    fault: str
    cause: str
    views: int
    episodes: int
    """Without those that rest."""
    resting: int = 0
    """Episodes whose picture would not change either, in which a frozen one cannot be found."""
    found: int
    """Episodes with a stop for a sensor from the onset on."""
    named: int
    """The same, named right when found."""
    delays: Mapping[int, int]
    """Frames from the onset to that stop -> episodes."""
    said: Mapping[str, int]
    """Sentence of that stop, its numbers left out -> episodes."""


def first_stop(
    monitor: RuntimeMonitor, episode: FaultEpisode, fault: Fault
) -> tuple[int, str, str]:
    """Frame, cause and sentence of the first stop for a sensor; -1 if there is none."""
    monitor.reset()
    for t in range(len(episode)):
        verdict = monitor.update(*(shown(episode, t) if t < ONSET else fault(episode, t)))
        if verdict.causes and verdict.causes[0].startswith("sensor."):
            assert verdict.level == Level.STOP
            cause = verdict.causes[0]
            return t, cause.removeprefix("sensor."), verdict.evidence[cause].note
    return -1, "", ""


def measured(
    monitor: RuntimeMonitor,
    episodes: Sequence[FaultEpisode],
    faults: Mapping[str, tuple[Fault, str]],
) -> Iterator[FaultRow]:
    """A row per fault; a stop before the onset counts as neither found nor named."""
    for name, (fault, cause) in faults.items():
        kept = [e for e in episodes if not (cause == "frozen" and e.rests())]
        stops = [first_stop(monitor, episode, fault) for episode in kept]
        found = [stop for stop in stops if stop[0] >= ONSET]
        yield FaultRow(
            fault=name,
            cause=cause,
            views=monitor.frame_shape_[0] if len(monitor.frame_shape_) == 4 else 1,
            episodes=len(kept),
            resting=len(episodes) - len(kept),
            found=len(found),
            named=sum(said == cause for _, said, _ in found),
            delays=dict(sorted(Counter(t - ONSET for t, _, _ in found).items())),
            said=dict(Counter(_without_numbers(note) for _, _, note in found)),
        )


def _without_numbers(note: str) -> str:
    return "".join("#" if c.isdigit() else c for c in note.split(",")[0].rstrip("."))


@dataclass(frozen=True, kw_only=True)
class Calm:
    """What the monitor said of episodes without a fault of a sensor."""

    what: str
    views: int
    episodes: int
    frames: int
    stopped: int
    """Episodes with any stop for a sensor."""
    causes: Mapping[str, int]
    """Cause -> frames."""


def calm(what: str, monitor: RuntimeMonitor, episodes: Sequence[FaultEpisode]) -> Calm:
    """Every frame of the episodes as it is."""
    causes: Counter[str] = Counter()
    stopped = 0
    for episode in episodes:
        monitor.reset()
        verdicts = [monitor.update(*shown(episode, t)) for t in range(len(episode))]
        found = [c for v in verdicts for c in v.causes if c.startswith("sensor.")]
        causes.update(found)
        stopped += bool(found)
    views = monitor.frame_shape_[0] if len(monitor.frame_shape_) == 4 else 1
    frames = sum(map(len, episodes))
    return Calm(
        what=what,
        views=views,
        episodes=len(episodes),
        frames=frames,
        stopped=stopped,
        causes=dict(causes),
    )


def episode_of(trajectory: Trajectory) -> FaultEpisode:
    """The only camera of a recorded episode."""
    (frames,) = trajectory.frames.values()
    assert trajectory.states is not None  # the tabletop always records them
    actions = np.where(trajectory.action_valid[:, None], trajectory.actions, np.nan)
    return FaultEpisode(frames[:], actions, trajectory.states[:, :3], trajectory.rate_hz)


def with_second_view(episode: FaultEpisode) -> FaultEpisode:
    """The same with a second camera: three quarters of the picture, turned on their side."""
    height, width = episode.frames.shape[1:3]
    rows, columns = (np.arange(n) * 3 // 4 + n // 8 for n in (height, width))
    second = np.rot90(episode.frames[:, rows][:, :, columns], axes=(1, 2))
    frames = np.stack([episode.frames, second], axis=1)
    return FaultEpisode(frames, episode.actions, episode.position, episode.rate_hz)


def fitted(episodes: Sequence[FaultEpisode]) -> RuntimeMonitor:
    """A monitor that needs no model: two thirds of the episodes are its reference."""
    signals = [EpisodeSignals(frames=e.frames, actions=recent_actions(e.actions)) for e in episodes]
    middle = len(signals) * 2 // 3
    config = MonitorConfig.for_episodes(len(signals) - middle)
    return RuntimeMonitor(config).fit(
        signals[middle:],
        reference=signals[:middle],
        frame_shape=episodes[0].frames.shape[1:],
        rate_hz=episodes[0].rate_hz,
    )


def recorded(collection: Collection, num_episodes: int) -> list[FaultEpisode]:
    """Fresh episodes of the tabletop."""
    return [episode_of(t) for t in record([(collection, i) for i in range(num_episodes)])]


def measure(
    data: Sequence[FaultEpisode], fresh: Collection, num_episodes: int, shifted: int
) -> tuple[list[FaultRow], list[Calm]]:
    """Every row of both tables."""
    one, two = fitted(data), fitted([with_second_view(episode) for episode in data])
    nominal = recorded(fresh, num_episodes)
    doubled = [with_second_view(episode) for episode in nominal]
    rows = [*measured(one, nominal, ONE_VIEW), *measured(two, doubled, TWO_VIEWS)]
    calms = [calm("nominal", one, nominal), calm("nominal", two, doubled)]
    for factor in [name for name in FACTORS if name != "nominal"] if shifted else []:
        changed = [
            e
            for s in SEVERITIES
            for e in recorded(replace(fresh, factor=factor, severity=s), shifted)
        ]
        calms.append(calm(f"{factor} changed, three severities", one, changed))
    return rows, calms


def tables(rows: Sequence[FaultRow], calms: Sequence[Calm]) -> str:
    """Markdown."""
    lines = [
        "| fault | views | n | found | named right | delay in frames: median, largest | says |"
    ]
    lines.append("|" + "---|" * 7)
    for row in rows:
        delays = [delay for delay, count in row.delays.items() for _ in range(count)]
        delay = f"{np.median(delays):g}, {max(delays)}" if delays else ""
        said = "; ".join(f"{note} ({n})" for note, n in row.said.items())
        cells = (row.fault, row.views, row.episodes, row.found, row.named, delay, said)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    resting = sum(row.resting for row in rows)
    lines.append(
        f"\nA frozen picture of a robot that rests looks like any other: {resting} of the "
        f"episodes, in which the gripper stays within {100 * FROZEN_PATH:g} cm from the onset on, "
        "are left out of that row."
    )
    lines += [
        "",
        "| without a fault | views | episodes | frames | with a stop for a sensor | causes |",
    ]
    lines.append("|" + "---|" * 6)
    for c in calms:
        causes = ", ".join(f"{cause} ({n} frames)" for cause, n in c.causes.items())
        counts = (c.what, c.views, c.episodes, c.frames, c.stopped, causes)
        lines.append("| " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Record, show, print, write; 1 if a fault is missed or named wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="store of nominal episodes")
    parser.add_argument("--episodes", type=int, default=40, help="fresh nominal episodes")
    parser.add_argument("--shifted", type=int, default=10, help="per factor and severity")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args(arguments)
    commit, begun = git_commit(), time.process_time()
    store = ClipStore.open(given.data)
    data = [episode_of(trajectory) for trajectory in store]
    fresh = Collection(seed=SEED, renderer=store.attributes["renderer"])  # the pictures must match
    rows, calms = measure(data, fresh, given.episodes, given.shifted)
    facts = {
        "hardware": processor(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "cpu_seconds": round(time.process_time() - begun),
        "seed": SEED,
        "onset": ONSET,
        "learned_from": len(data),
        "renderer": fresh.renderer,
    }
    said = "; ".join(f"{name} {value}" for name, value in facts.items())
    text = f"# Faults of sensors\n\n{said}.\n\n{tables(rows, calms)}\n"
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    content = {**facts, "faults": [asdict(r) for r in rows], "calm": [asdict(c) for c in calms]}
    (given.out / "sensor_faults.json").write_text(json.dumps(content, indent=1) + "\n")
    (given.out / "sensor_faults.md").write_text(text)
    kept = all(row.named == row.episodes for row in rows)
    print("Every fault is found and named right." if kept else "A fault is MISSED or named wrong.")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
