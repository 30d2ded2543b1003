"""Detection of one real dataset by a monitor fitted on another: Bridge and DROID, by camera.

    OMP_NUM_THREADS=1 python -m benchmarks.detection.real_data  # seven minutes on one core

Reads `droid`, `bridge_worldgym` and `bridge_rlds/1.0.0` below WORLDMODEL_DATA, or below
`shared/data` next to the checkout; exit code 2 if they are missing. Only appearance signals are
used (frame, region, colour), because no world model of these robots exists. Every clip is the first
ten frames (two seconds) of one episode and camera, resized to 64x64 pixels, so that neither length
nor aspect ratio identifies the dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tqdm import tqdm

from benchmarks.detection.folds import SETS, ValueAndInterval, folds, share
from benchmarks.markdown import markdown_table
from benchmarks.provenance import RESULTS, git_commit, hardware, today, versions
from worldmodel.calibration.features import FrameFeatures
from worldmodel.calibration.fit_monitor import fit_causes
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.episodes.episode import to_model_size
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.metrics.detection import auroc_interval
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.verdict import Level
from worldmodel.networks.images import to_model
from worldmodel.networks.tokenizer import Tokenizer
from worldmodel.training.loop import fit as train
from worldmodel.training.presets import SMOKE
from worldmodel.training.tokenizer_objective import TokenizerObjective

FRAMES = 10
SIGNALS = ("all", "appearance", "region", "colour")
PLAIN = ("mean colour", "motion", "sharpness")
"""Simple baselines: distance of the frame's mean colour from the fitted frames'; absolute log ratio
of the mean change between frames, and between neighbouring pixels."""
SHIPPED, TRAINED = "shipped tabletop tokenizer", "tokenizer trained on the reference half"

Frames = UInt8[np.ndarray, "time 1 height width 3"]
Recording = tuple[str, Frames]
"""Episode name, and all frames of one of its cameras."""


@dataclass(frozen=True)
class VideoClip:
    """Ten frames of one episode and camera, and their signals."""

    episode: str
    frames: Frames
    signals: EpisodeSignals

    @property
    def plain(self) -> Float[np.ndarray, "time 5"]:
        """Mean colour of each frame; log of the clip's motion and sharpness."""
        pixels = self.frames[:, 0].astype(np.float64)
        motion = np.abs(np.diff(pixels, axis=0)).mean()
        sharpness = np.abs(np.diff(pixels, axis=2)).mean()
        logs = np.log([motion + 0.01, sharpness + 0.01])
        return np.hstack([pixels.mean((1, 2)), np.tile(logs, (len(pixels), 1))])


VideoClips = Sequence[VideoClip]
ClipResult = tuple[dict[str, float], bool]
"""Largest scores of a clip, and whether any alarm was raised."""


class FittedMonitor:
    """Monitor and simple baselines, fitted on a reference set and a calibration set."""

    def __init__(self, reference: VideoClips, calibration: VideoClips) -> None:
        config = MonitorConfig.for_episodes(len(calibration))
        self.alpha = config.alpha_notice
        self.monitor = RuntimeMonitor(config).fit(
            [clip.signals for clip in calibration],
            frame_shape=reference[0].frames.shape[1:],
            reference=[clip.signals for clip in reference],
        )
        self.plain = np.median([clip.plain for clip in (*reference, *calibration)], axis=(0, 1))

    def evaluate(self, clip: VideoClip) -> ClipResult:
        """Largest scores of a clip, and whether any alarm was raised."""
        watched = self.monitor.watch(clip.signals)
        deviation = clip.plain - self.plain
        scores = {"all": float(watched.alarm_score.max())}
        scores |= {name: float(score.max()) for name, score in watched.scores.items()}
        distances = (np.linalg.norm(deviation[:, :3], axis=1).max(), *np.abs(deviation[0, 3:]))
        scores |= dict(zip(PLAIN, map(float, distances), strict=True))
        return scores, bool((watched.levels >= Level.NOTICE).any())


@dataclass
class DatasetComparison:
    """Scores of a fitted and a shown camera, under every fit on other episodes."""

    fitted: str
    shown: str
    features: str = SHIPPED
    fits: int = 0
    alpha: float = 1.0
    """Guaranteed false alarm rate: the lowest that the calibration episodes support."""
    nominal_alarms: dict[int, list[bool]] = field(default_factory=dict)
    shown_alarms: dict[int, list[bool]] = field(default_factory=dict)
    """Episode -> alarms under each fit."""
    wins: dict[str, dict[tuple[int, int], list[float]]] = field(default_factory=dict)

    def add(
        self, alpha: float, nominal: dict[int, ClipResult], shown: dict[int, ClipResult]
    ) -> None:
        """Add the results of one fit on held-out episodes and on shown episodes."""
        self.fits, self.alpha = self.fits + 1, alpha
        for alarms, results in ((self.nominal_alarms, nominal), (self.shown_alarms, shown)):
            for number, result in results.items():
                alarms.setdefault(number, []).append(result[1])
        for (i, (calm, _)), (j, (odd, _)) in product(nominal.items(), shown.items()):
            for name, score in odd.items():
                won = (score > calm[name]) + (score == calm[name]) / 2
                self.wins.setdefault(name, {}).setdefault((i, j), []).append(won)

    def auroc(self, name: str) -> ValueAndInterval:
        """AUROC over pairs of episodes, averaged over fits per pair."""
        value = float(np.mean([np.mean(won) for won in self.wins[name].values()]))
        return value, *auroc_interval(value, len(self.nominal_alarms), len(self.shown_alarms))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("fitted", "shown", "features", "fits")},
            "num_nominal": len(self.nominal_alarms),
            "num_shown": len(self.shown_alarms),
            "auroc": {name: self.auroc(name) for name in (*SIGNALS, *PLAIN)},
            "alpha": self.alpha,
            "false_alarms": share(self.nominal_alarms),
            "shown_alarmed": share(self.shown_alarms),
        }


def recordings(root: Path, model: WorldModel) -> dict[str, list[Recording]]:
    """Frames of every camera of every dataset, at the model's size."""
    groups: dict[str, list[Recording]] = {}
    for name, (folder, prefix, *_) in SETS.items():
        data = open_dataset(root / folder)
        assert data.rate_hz == 5.0
        for trajectory in (data.episode(e) for e in data.episode_ids if e.startswith(prefix)):
            for camera, frames in trajectory.frames.items():
                full = torch.from_numpy(np.ascontiguousarray(frames[0 : len(frames)]))
                small = to_model_size(full, model).numpy()[:, None]
                recording = (f"{name} {trajectory.episode_id}", small)
                groups.setdefault(f"{name} {camera}", []).append(recording)
    return groups


def with_signals(episode: str, frames: Frames, features: FrameFeatures) -> VideoClip:
    """Compute the signals of a clip."""
    pooled, positions = features.of_episode(torch.from_numpy(frames))
    return VideoClip(
        episode, frames, EpisodeSignals(pooled=pooled, positions=positions, frames=frames)
    )


def cut_clips(
    group: Sequence[Recording], features: FrameFeatures, parts: Sequence[float] | None = None
) -> list[VideoClip]:
    """Ten frames of each recording: the first at 0 in `parts`, the last at 1; None: the first."""
    clips = []
    for (episode, frames), part in zip(group, parts or [0.0] * len(group), strict=True):
        start = round(part * (len(frames) - FRAMES))
        clips.append(with_signals(episode, frames[start : start + FRAMES], features))
    return clips


def compare(
    name: str,
    groups: dict[str, list[VideoClip]],
    fits: int | None = None,
    learn: Callable[[VideoClips], FrameFeatures] | None = None,
) -> list[DatasetComparison]:
    """Fit on most episodes of a camera; evaluate held-out ones and every other camera.

    Cameras of the same episodes contribute only held-out episodes. `learn` makes features from the
    reference half of each fit; None: the clips' own.
    """
    features_name = SHIPPED if learn is None else TRAINED
    rows = [DatasetComparison(name, shown, features_name) for shown in groups if shown != name]
    for fitted, held in tqdm([*folds(name, len(groups[name]))][:fits], name, file=sys.stderr):
        views = groups
        if learn is not None:
            features = learn([groups[name][i] for i in fitted[::2]])
            views = {
                camera: [with_signals(f.episode, f.frames, features) for f in group]
                for camera, group in groups.items()
            }
        clips = views[name]
        fit = FittedMonitor([clips[i] for i in fitted[::2]], [clips[i] for i in fitted[1::2]])
        nominal = {i: fit.evaluate(clips[i]) for i in held}
        familiar = {clips[i].episode for i in fitted}
        for row in rows:
            others = [(j, f) for j, f in enumerate(views[row.shown]) if f.episode not in familiar]
            row.add(fit.alpha, nominal, {j: fit.evaluate(clip) for j, clip in others})
    return rows


def known_scenes(
    name: str,
    group: Sequence[Recording],
    groups: dict[str, list[VideoClip]],
    features: FrameFeatures,
) -> list[DatasetComparison]:
    """Fit on the middle frames of all episodes; first and last frames in turn set thresholds.

    The remaining frames, of the same scenes, are nominal.
    """
    turns = [float(i % 2) for i in range(len(group))]
    fit = FittedMonitor(
        cut_clips(group, features, [0.5] * len(group)), cut_clips(group, features, turns)
    )
    rest = cut_clips(group, features, [1 - turn for turn in turns])
    nominal = {i: fit.evaluate(clip) for i, clip in enumerate(rest)}
    rows = [
        DatasetComparison(f"{name}, known scenes", s) for s in groups if not s.startswith("DROID")
    ]
    for row in rows:
        row.add(
            fit.alpha, nominal, {j: fit.evaluate(clip) for j, clip in enumerate(groups[row.shown])}
        )
    return rows


def causes(
    name: str, groups: dict[str, list[VideoClip]], features: FrameFeatures
) -> Iterator[dict[str, Any]]:
    """Causes of the last alarm in each clip, under the first fit."""
    fitted, _ = next(folds(name, len(groups[name])))
    kept = [groups[name][i] for i in fitted]
    monitor = FittedMonitor(kept[::2], kept[1::2]).monitor
    monitor.features = features
    monitor.causes_ = fit_causes([clip.frames for clip in kept[::2]])
    monitor = monitor.sibling()  # a sibling uses the new causes
    familiar = {clip.episode for clip in kept}
    for shown, others in groups.items():
        unseen = [clip for clip in others if clip.episode not in familiar]
        counts = Counter(cause for clip in unseen if (cause := last_cause(monitor, clip)))
        alarms = ", ".join(f"{cause} {count}" for cause, count in counts.most_common())
        yield {"fitted on": name, "shown": shown, "films": len(unseen), "alarms": alarms}


def last_cause(monitor: RuntimeMonitor, clip: VideoClip) -> str | None:
    """First cause of the last alarm in a clip; None without an alarm."""
    monitor.reset()
    verdicts = [monitor.update(frame, None) for frame in clip.frames]
    causes = [v.causes[0] for v in verdicts if v.causes and v.causes[0] != "held"]
    return causes[-1] if causes else None


class ClipPairs(list[torch.Tensor]):
    """Pairs of frames of a clip, as training data of a tokenizer."""

    collate = staticmethod(torch.stack)


def trained_features(model: WorldModel, clips: VideoClips) -> FrameFeatures:
    """Features of a small tokenizer trained on these clips with the preset `smoke`."""
    torch.manual_seed(0)
    student = WorldModel(model.config, Tokenizer.from_config(SMOKE.tokenizer))
    stride, cuts = SMOKE.pair_stride, [torch.from_numpy(clip.frames) for clip in clips]
    pairs = ClipPairs(cut[[t, t + stride]] for cut in cuts for t in range(FRAMES - stride))
    objective = TokenizerObjective(student.tokenizer, model.config.image_size, SMOKE.tokenizer_loss)
    with tempfile.TemporaryDirectory() as folder:
        train(objective, pairs, SMOKE.tokenizer_loop, Path(folder) / "tokenizer")
    student.tokenizer.fit_whitening(to_model(cut[:, 0]) for cut in cuts)
    return FrameFeatures(student.eval())


def cell(estimate: ValueAndInterval) -> str:
    """Value with its interval."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*estimate)


NOTES = f"""Every clip: the first {FRAMES} frames (2 s) of one episode and camera, resized to
64x64. Half of the clips of a fit are the reference set, half set the thresholds, at the lowest
alpha that they support. Cells: value (95% interval). AUROC compares the largest score of a held-out
episode of the fitted camera with that of a shown episode; 0.5 is chance, below 0.5 shown episodes
look MORE familiar. Pairs are averaged over fits first; Newcombe's interval uses n and m episodes,
Wilson's the rounded numbers of episodes. The intervals ignore that fits share episodes, and treat
two cameras of one episode as independent. Known scenes: fitted on other frames of the same
episodes."""


def line(row: DatasetComparison) -> list[object]:
    """Row of the main table."""
    n, m = len(row.nominal_alarms), len(row.shown_alarms)
    rates = [cell(share(alarms)) for alarms in (row.nominal_alarms, row.shown_alarms)]
    labels = [row.fitted, row.shown, f"{n}, {m}", row.fits]
    return [*labels, cell(row.auroc("all")), f"{row.alpha:.3f}", *rates]


def report(
    rows: Sequence[DatasetComparison], named: list[dict[str, Any]], facts: dict[str, Any]
) -> str:
    """All results as Markdown."""
    head = ["fitted on", "shown", "n, m", "fits", "AUROC", "alpha", "false alarms", "shown alarmed"]
    parts = ["# Detection across real datasets", NOTES]
    parts.append("; ".join(f"{name}: {value}" for name, value in facts.items()) + ".")
    single = (*SIGNALS[1:], *PLAIN)
    for features in (SHIPPED, TRAINED):
        selected = [row for row in rows if row.features == features]
        alone = [(r.fitted, r.shown, *(cell(r.auroc(name)) for name in single)) for r in selected]
        parts += [f"## Features: {features}", markdown_table(head, [line(row) for row in selected])]
        parts += [
            "AUROC of single signals and simple baselines:",
            markdown_table([*head[:2], *single], alone),
        ]
    parts += ["## Causes of the last alarm in a clip, one fit each"]
    return "\n\n".join([*parts, markdown_table([*named[0]], [[*n.values()] for n in named])]) + "\n"


def measure(root: Path, model: WorldModel) -> tuple[list[DatasetComparison], list[dict[str, Any]]]:
    """Measure every comparison, and the causes of alarms."""
    features, videos = FrameFeatures(model), recordings(root, model)
    groups = {name: cut_clips(group, features) for name, group in videos.items()}
    rows, named, first = [], [], {name.rsplit(" ", 1)[0]: name for name in reversed(groups)}
    for name in groups:
        rows += compare(name, groups)
        if name.startswith("DROID"):
            rows += known_scenes(name, videos[name], groups, features)
        if name in first.values():
            named += list(causes(name, groups, features))
    few = {name: groups[name] for name in first.values()}
    rows += compare(first["DROID"], few, 3, lambda clips: trained_features(model, clips))
    return rows, named


def main() -> int:
    """Measure, print and write; exit code 2 without the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    root = Path(os.environ.get("WORLDMODEL_DATA", default))
    if not all((root / folder).is_dir() for folder, *_ in SETS.values()):
        print(f"{root} has no Bridge and DROID episodes; set WORLDMODEL_DATA.", file=sys.stderr)
        return 2
    commit, started = git_commit(), time.process_time()
    rows, named = measure(root, WorldModel.load("tabletop"))
    facts = {
        "folder, prefix, held out per fit, shuffles": SETS,
        "seed": 0,
        "hardware": hardware(),
        "versions": versions("torch", "numpy", "scipy"),
        "commit": commit,
        "date": today(),
        "CPU minutes": round((time.process_time() - started) / 60, 1),
    }
    text = report(rows, named, facts)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "real_data_monitor.md").write_text(text, encoding="utf-8")
    stored = {**facts, "rows": [row.as_dict() for row in rows], "causes": named}
    (options.out / "real_data_monitor.json").write_text(
        json.dumps(stored, indent=1) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
