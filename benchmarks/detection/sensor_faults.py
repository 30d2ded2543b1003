"""Detection and naming of sensor faults in nominal tabletop episodes.

    worldmodel data collect nominal.zarr --episodes 300 --seed 1  # episodes to fit on
    python -m benchmarks.detection.sensor_faults --data nominal.zarr  # ten minutes

Fits two monitors on the recorded episodes, one for their camera and one for two views, the second
made from the first; two thirds of the episodes are the reference set. Evaluates them on new nominal
episodes, without a fault and with each fault from frame 10 on, and on episodes with scene shifts to
count false sensor alarms. Exit code 1 if a fault is missed or misnamed, except for half a picture,
which cannot be told from a calm one if little moves in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.provenance import RESULTS, git_commit, processor, today, versions
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

SEED = 9_400_003
ONSET = 10
"""First frame with the fault."""


@dataclass(frozen=True)
class FaultEpisode:
    """Fault-free episode."""

    frames: np.ndarray
    """uint8 [time, height, width, 3], or [time, view, height, width, 3]."""
    actions: np.ndarray
    """Canonical actions [time, 7]; NaN where there is none."""
    position: np.ndarray
    """Gripper position [time, 3] in metres."""
    rate_hz: float

    def __len__(self) -> int:
        return len(self.frames)

    def action(self, t: int) -> np.ndarray | None:
        """Commanded action at a frame; None if there is none."""
        return None if np.isnan(self.actions[t]).any() else self.actions[t]

    def is_still(self) -> bool:
        """Whether the robot stands still from the last good frame on."""
        away = np.linalg.norm(self.position[ONSET:] - self.position[ONSET - 1], axis=1)
        return bool(away.max() <= FROZEN_PATH)


Input = tuple[object, object]
"""Observation and action."""
Fault = Callable[[FaultEpisode, int], Input]
"""Monitor input at a frame from `ONSET` on."""


def healthy(episode: FaultEpisode, t: int, *, frame: object = ..., time_s: object = ...) -> Input:
    """Fault-free input at a frame, except for the given `frame` and `time_s`."""
    image = episode.frames[t] if frame is ... else frame
    seconds = t / episode.rate_hz if time_s is ... else time_s
    return {"image": image, "time_s": seconds}, episode.action(t)


def per_frame(change: Callable[[np.ndarray], object]) -> Fault:
    """Fault that changes each frame separately."""
    return lambda episode, t: healthy(episode, t, frame=change(episode.frames[t]))


def frozen(episode: FaultEpisode, t: int) -> Input:
    """Repeat the last good frame; timestamps continue."""
    return healthy(episode, t, frame=episode.frames[ONSET - 1])


def frozen_but_for_noise(episode: FaultEpisode, t: int) -> Input:
    """Repeat the last good frame with noise of two grey levels."""
    noise = 2 * np.random.default_rng(t).standard_normal(episode.frames[t].shape)
    shown = np.clip(np.rint(episode.frames[ONSET - 1] + noise), 0, 255).astype(np.uint8)
    return healthy(episode, t, frame=shown)


def frozen_half(*half: slice) -> Fault:
    """Repeat one half of the last good frame."""

    def fault(episode: FaultEpisode, t: int) -> Input:
        shown = episode.frames[t].copy()
        shown[half] = episode.frames[ONSET - 1][half]
        return healthy(episode, t, frame=shown)

    return fault


def skipped(episode: FaultEpisode, t: int) -> Input:
    """Skip one frame: every later frame is the next one, with its own timestamp."""
    return healthy(episode, min(t + 1, len(episode) - 1))


def repeated(episode: FaultEpisode, t: int) -> Input:
    """Repeat the timestamp; frames continue."""
    return healthy(episode, t, time_s=(ONSET - 1) / episode.rate_hz)


def out_of_step(episode: FaultEpisode, t: int) -> Input:
    """Delay the timestamp of the second camera by one period."""
    return healthy(episode, t, time_s=[t / episode.rate_hz, (t - 1) / episode.rate_hz])


def speckled(frame: np.ndarray) -> np.ndarray:
    """Set one value to NaN."""
    broken = frame.astype(np.float32)
    broken.flat[0] = np.nan
    return broken


def broken_action(episode: FaultEpisode, t: int) -> Input:
    """Set one number of the action to infinity."""
    action = np.zeros(7) if episode.action(t) is None else episode.actions[t].copy()
    action[2] = np.inf
    return healthy(episode, t)[0], action


FIRST, SECOND = slice(0, 32), slice(32, 64)
HALVES: dict[str, tuple[Fault, str]] = {
    "frozen upper half": (frozen_half(FIRST), "frozen"),
    "frozen lower half": (frozen_half(SECOND), "frozen"),
    "frozen left half": (frozen_half(slice(None), FIRST), "frozen"),
    "frozen right half": (frozen_half(slice(None), SECOND), "frozen"),
}
"""Faults of half a picture of 64 x 64 pixels."""
ONE_VIEW: dict[str, tuple[Fault, str]] = {
    "frozen picture": (frozen, "frozen"),
    "frozen but for noise": (frozen_but_for_noise, "frozen"),
    **HALVES,
    "black picture": (per_frame(np.zeros_like), "black"),
    "no picture": (per_frame(lambda frame: None), "dropped"),
    "late: a frame was skipped": (skipped, "late"),
    "late: the time stands still": (repeated, "late"),
    "swapped: colour channels, BGR": (per_frame(lambda f: f[..., ::-1]), "swapped"),
    "swapped: upside down": (per_frame(lambda f: f[::-1]), "swapped"),
    "swapped: mirrored": (per_frame(lambda f: f[:, ::-1]), "swapped"),
    "swapped: turned by 180 degrees": (per_frame(lambda f: f[::-1, ::-1]), "swapped"),
    "NaN in the picture": (per_frame(speckled), "nan"),
    "picture of floats": (per_frame(lambda f: f.astype(np.float32) / 255), "dtype"),
    "picture of half the width": (per_frame(lambda f: f[:, ::2]), "shape"),
    "infinite action": (broken_action, "action"),
}
"""Fault -> its function and its cause."""
TWO_VIEWS: dict[str, tuple[Fault, str]] = {
    "swapped: the two cameras": (per_frame(lambda f: f[::-1]), "swapped"),
    "swapped: colour channels of the second camera": (
        per_frame(lambda f: np.stack([f[0], f[1, ..., ::-1]])),
        "swapped",
    ),
    "one camera of two is gone": (per_frame(lambda f: f[:1]), "dropped"),
    "late: the second camera is a period behind": (out_of_step, "late"),
}
"""Faults for the monitor of two views."""


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """Results of one fault."""

    fault: str
    cause: str
    views: int
    episodes: int
    """Episodes, except those in `resting`."""
    resting: int = 0
    """Skipped episodes with a still robot, where a frozen frame is not detectable."""
    found: int
    """Episodes with a sensor stop from the onset on."""
    named: int
    """Detected episodes with the right cause."""
    delays: Mapping[int, int]
    """Frames from onset to stop -> episodes."""
    said: Mapping[str, int]
    """Explanation of the stop without its numbers -> episodes."""


def first_stop(
    monitor: RuntimeMonitor, episode: FaultEpisode, fault: Fault
) -> tuple[int, str, str]:
    """Frame, cause and explanation of the first sensor stop; frame -1 if there is none."""
    monitor.reset()
    for t in range(len(episode)):
        verdict = monitor.update(*(healthy(episode, t) if t < ONSET else fault(episode, t)))
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
    """Measure one row per fault; a stop before the onset counts as missed."""
    for name, (fault, cause) in faults.items():
        evaluated = [e for e in episodes if not (cause == "frozen" and e.is_still())]
        stops = [first_stop(monitor, episode, fault) for episode in evaluated]
        detected = [stop for stop in stops if stop[0] >= ONSET]
        yield FaultRow(
            fault=name,
            cause=cause,
            views=monitor.frame_shape_[0] if len(monitor.frame_shape_) == 4 else 1,
            episodes=len(evaluated),
            resting=len(episodes) - len(evaluated),
            found=len(detected),
            named=sum(stop_cause == cause for _, stop_cause, _ in detected),
            delays=dict(sorted(Counter(t - ONSET for t, _, _ in detected).items())),
            said=dict(Counter(_without_numbers(note) for _, _, note in detected)),
        )


def _without_numbers(note: str) -> str:
    return "".join("#" if c.isdigit() else c for c in note.split(",")[0].rstrip("."))


@dataclass(frozen=True, kw_only=True)
class FalseStopRow:
    """False sensor stops on episodes without a sensor fault."""

    what: str
    views: int
    episodes: int
    frames: int
    stopped: int
    """Episodes with any sensor stop."""
    causes: Mapping[str, int]
    """Cause -> frames."""


def false_stops(
    what: str, monitor: RuntimeMonitor, episodes: Sequence[FaultEpisode]
) -> FalseStopRow:
    """Count sensor stops on unchanged episodes."""
    causes: Counter[str] = Counter()
    stopped = 0
    for episode in episodes:
        monitor.reset()
        verdicts = [monitor.update(*healthy(episode, t)) for t in range(len(episode))]
        sensor_causes = [c for v in verdicts for c in v.causes if c.startswith("sensor.")]
        causes.update(sensor_causes)
        stopped += bool(sensor_causes)
    views = monitor.frame_shape_[0] if len(monitor.frame_shape_) == 4 else 1
    frames = sum(map(len, episodes))
    return FalseStopRow(
        what=what,
        views=views,
        episodes=len(episodes),
        frames=frames,
        stopped=stopped,
        causes=dict(causes),
    )


def episode_of(trajectory: Trajectory) -> FaultEpisode:
    """Convert a recorded episode with a single camera."""
    (frames,) = trajectory.frames.values()
    assert trajectory.states is not None  # the tabletop always records them
    actions = np.where(trajectory.action_valid[:, None], trajectory.actions, np.nan)
    return FaultEpisode(frames[:], actions, trajectory.states[:, :3], trajectory.rate_hz)


def with_second_view(episode: FaultEpisode) -> FaultEpisode:
    """Add a second camera: three quarters of the frame, rotated by 90 degrees."""
    height, width = episode.frames.shape[1:3]
    rows, columns = (np.arange(n) * 3 // 4 + n // 8 for n in (height, width))
    second = np.rot90(episode.frames[:, rows][:, :, columns], axes=(1, 2))
    frames = np.stack([episode.frames, second], axis=1)
    return FaultEpisode(frames, episode.actions, episode.position, episode.rate_hz)


def fit_monitor(episodes: Sequence[FaultEpisode]) -> RuntimeMonitor:
    """Fit a monitor without a model; two thirds of the episodes are the reference set."""
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
    """Record new tabletop episodes."""
    return [episode_of(t) for t in record([(collection, i) for i in range(num_episodes)])]


def measure(
    data: Sequence[FaultEpisode], fresh: Collection, num_episodes: int, shifted: int
) -> tuple[list[FaultRow], list[FalseStopRow]]:
    """Measure all rows of both tables."""
    one, two = fit_monitor(data), fit_monitor([with_second_view(episode) for episode in data])
    nominal = recorded(fresh, num_episodes)
    doubled = [with_second_view(episode) for episode in nominal]
    rows = [*measured(one, nominal, ONE_VIEW), *measured(two, doubled, TWO_VIEWS)]
    unfaulted = [false_stops("nominal", one, nominal), false_stops("nominal", two, doubled)]
    for factor in [name for name in FACTORS if name != "nominal"] if shifted else []:
        changed = [
            e
            for s in SEVERITIES
            for e in recorded(replace(fresh, factor=factor, severity=s), shifted)
        ]
        unfaulted.append(false_stops(f"{factor} changed, three severities", one, changed))
    return rows, unfaulted


def tables(rows: Sequence[FaultRow], unfaulted: Sequence[FalseStopRow]) -> str:
    """Tables as Markdown."""
    lines = [
        "| fault | views | n | found | right cause | delay in frames: median, max | explanation |"
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
        f"\nA frozen frame of a still robot is not detectable: that row skips {resting} episodes "
        f"in which the gripper stays within {100 * FROZEN_PATH:g} cm from the onset on."
    )
    lines += [
        "",
        "| without a fault | views | episodes | frames | with a sensor stop | causes |",
    ]
    lines.append("|" + "---|" * 6)
    for c in unfaulted:
        causes = ", ".join(f"{cause} ({n} frames)" for cause, n in c.causes.items())
        counts = (c.what, c.views, c.episodes, c.frames, c.stopped, causes)
        lines.append("| " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Record, measure, print and write; exit code 1 if a fault is missed or misnamed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="store of nominal episodes")
    parser.add_argument("--episodes", type=int, default=40, help="new nominal episodes")
    parser.add_argument("--shifted", type=int, default=10, help="episodes per factor and severity")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    commit, started = git_commit(), time.process_time()
    store = ClipStore.open(options.data)
    data = [episode_of(trajectory) for trajectory in store]
    fresh = Collection(seed=SEED, renderer=store.attributes["renderer"])  # frames must match
    rows, unfaulted = measure(data, fresh, options.episodes, options.shifted)
    facts = {
        "hardware": processor(),
        "versions": versions("numpy", "scipy"),
        "commit": commit,
        "date": today(),
        "cpu_seconds": round(time.process_time() - started),
        "seed": SEED,
        "onset": ONSET,
        "learned_from": len(data),
        "renderer": fresh.renderer,
    }
    settings = "; ".join(f"{name} {value}" for name, value in facts.items())
    text = f"# Sensor faults\n\n{settings}.\n\n{tables(rows, unfaulted)}\n"
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {**facts, "faults": [asdict(r) for r in rows], "calm": [asdict(c) for c in unfaulted]}
    (options.out / "sensor_faults.json").write_text(
        json.dumps(content, indent=1) + "\n", encoding="utf-8"
    )
    (options.out / "sensor_faults.md").write_text(text, encoding="utf-8")
    kept = all(row.named == row.episodes for row in rows if row.fault not in HALVES)
    found = "Every fault of whole pictures is detected with the right cause."
    print(found if kept else "A fault is MISSED or MISNAMED.")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
