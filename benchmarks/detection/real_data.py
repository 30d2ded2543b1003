"""Does a monitor fitted on one real data set find the other? Bridge and DROID, camera by camera.

    OMP_NUM_THREADS=1 python -m benchmarks.detection.real_data  # about seven minutes of one core

Reads `droid`, `bridge_worldgym` and `bridge_rlds/1.0.0` below WORLDMODEL_DATA, or below
`shared/data` beside the checkout; exits with 2 if they are not there. Only looks are watched
(whole frame, region, colour): no world model of these robots exists. Every film is the first ten
frames, two seconds, of one episode and camera, squeezed to 64x64 pixels whatever its proportions,
so that neither length nor shape tells the data sets apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tqdm import tqdm

from benchmarks.provenance import RESULTS, git_commit, hardware
from worldmodel.calibration.features import FrameFeatures
from worldmodel.calibration.fit_monitor import fit_causes
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.episodes.episode import to_model_size
from worldmodel.evaluation.statistics import wilson_interval
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

SETS = {
    "DROID": ("droid", "", 3, 6),
    "Bridge WorldGym": ("bridge_worldgym", "", 2, 4),
    "Bridge RLDS": ("bridge_rlds/1.0.0", "train/", 5, 3),
}
"""Name -> folder; how the ids of its episodes begin (the val split of the RLDS sample is its train
split again); episodes that a fit leaves out, of 11, 10 and 25; how often all are dealt anew."""
FRAMES = 10
SIGNALS = ("all", "appearance", "region", "colour")
PLAIN = ("mean colour", "motion", "sharpness")
"""Dumb baselines: distance of the frame's mean colour to that of the fitted frames; how unusual
(as a ratio, up or down) the mean change between frames and between neighbouring pixels is."""
SHIPPED, TRAINED = "shipped tabletop tokenizer", "tokenizer trained on the reference half"

Frames = UInt8[np.ndarray, "time 1 height width 3"]
Estimate = tuple[float, float, float]
"""A figure and its 95% interval."""
Recording = tuple[str, Frames]
"""An episode's name, and all frames of one of its cameras."""


@dataclass(frozen=True)
class Film:
    """Ten frames of it, and what the monitor sees of them."""

    episode: str
    frames: Frames
    signals: EpisodeSignals

    @property
    def plain(self) -> Float[np.ndarray, "time 5"]:
        """Mean colour of each frame; log of the film's motion and sharpness."""
        pixels = self.frames[:, 0].astype(np.float64)
        motion = np.abs(np.diff(pixels, axis=0)).mean()
        sharpness = np.abs(np.diff(pixels, axis=2)).mean()
        logs = np.log([motion + 0.01, sharpness + 0.01])
        return np.hstack([pixels.mean((1, 2)), np.tile(logs, (len(pixels), 1))])


Films = Sequence[Film]
PolicyOutcomes = tuple[dict[str, float], bool]
"""What one fit made of a film: its largest scores, and whether there was any alarm."""


class Fit:
    """A monitor and the dumb baselines, fitted on two halves of some films."""

    def __init__(self, reference: Films, calibration: Films) -> None:
        config = MonitorConfig.for_episodes(len(calibration))
        self.alpha = config.alpha_notice
        self.monitor = RuntimeMonitor(config).fit(
            [film.signals for film in calibration],
            frame_shape=reference[0].frames.shape[1:],
            reference=[film.signals for film in reference],
        )
        self.plain = np.median([film.plain for film in (*reference, *calibration)], axis=(0, 1))

    def judge(self, film: Film) -> PolicyOutcomes:
        """Largest scores of the film, and whether there was any alarm."""
        watched = self.monitor.watch(film.signals)
        off = film.plain - self.plain
        scores = {"all": float(watched.alarm_score.max())}
        scores |= {name: float(score.max()) for name, score in watched.scores.items()}
        far = (np.linalg.norm(off[:, :3], axis=1).max(), *np.abs(off[0, 3:]))
        scores |= dict(zip(PLAIN, map(float, far), strict=True))
        return scores, bool((watched.levels >= Level.NOTICE).any())


@dataclass
class Comparison:
    """Who scored higher under every fit that had seen neither of two episodes."""

    fitted: str
    shown: str
    features: str = SHIPPED
    fits: int = 0
    alpha: float = 1.0
    """The smallest that the calibration episodes support: the promised rate of false alarms."""
    nominal_alarms: dict[int, list[bool]] = field(default_factory=dict)
    shown_alarms: dict[int, list[bool]] = field(default_factory=dict)
    """Episode -> alarm under each fit."""
    wins: dict[str, dict[tuple[int, int], list[float]]] = field(default_factory=dict)

    def add(
        self, alpha: float, nominal: dict[int, PolicyOutcomes], shown: dict[int, PolicyOutcomes]
    ) -> None:
        """Take in what one fit made of episodes of the fitted kind, and of the shown ones."""
        self.fits, self.alpha = self.fits + 1, alpha
        for alarms, judged in ((self.nominal_alarms, nominal), (self.shown_alarms, shown)):
            for number, one in judged.items():
                alarms.setdefault(number, []).append(one[1])
        for (i, (calm, _)), (j, (odd, _)) in product(nominal.items(), shown.items()):
            for name, score in odd.items():
                won = (score > calm[name]) + (score == calm[name]) / 2
                self.wins.setdefault(name, {}).setdefault((i, j), []).append(won)

    def auroc(self, name: str) -> Estimate:
        """Over pairs of episodes, each pair's mean over fits first."""
        value = float(np.mean([np.mean(won) for won in self.wins[name].values()]))
        return value, *auroc_interval(value, len(self.nominal_alarms), len(self.shown_alarms))

    def as_dict(self) -> dict[str, Any]:
        """Every figure."""
        return {
            **{name: getattr(self, name) for name in ("fitted", "shown", "features", "fits")},
            "num_nominal": len(self.nominal_alarms),
            "num_shown": len(self.shown_alarms),
            "auroc": {name: self.auroc(name) for name in (*SIGNALS, *PLAIN)},
            "alpha": self.alpha,
            "false_alarms": share(self.nominal_alarms),
            "shown_alarmed": share(self.shown_alarms),
        }


def share(alarms: dict[int, list[bool]]) -> Estimate:
    """Mean alarm rate; Wilson interval of the whole numbers of episodes around it, so not short."""
    rates = [np.mean(some) for some in alarms.values()]
    total, n = float(np.sum(rates)), len(rates)
    low = wilson_interval(math.floor(total + 1e-9), n).low
    return total / n, low, wilson_interval(math.ceil(total - 1e-9), n).high


def recordings(root: Path, model: WorldModel) -> dict[str, list[Recording]]:
    """Every camera of every data set, frames as small as the model's."""
    found: dict[str, list[Recording]] = {}
    for name, (folder, prefix, *_) in SETS.items():
        data = open_dataset(root / folder)
        assert data.rate_hz == 5.0
        for trajectory in (data.episode(e) for e in data.episode_ids if e.startswith(prefix)):
            for camera, frames in trajectory.frames.items():
                full = torch.from_numpy(np.ascontiguousarray(frames[0 : len(frames)]))
                small = to_model_size(full, model).numpy()[:, None]
                one = (f"{name} {trajectory.episode_id}", small)
                found.setdefault(f"{name} {camera}", []).append(one)
    return found


def seen(episode: str, frames: Frames, features: FrameFeatures) -> Film:
    """A film with its features."""
    pooled, positions = features.of_episode(torch.from_numpy(frames))
    return Film(episode, frames, EpisodeSignals(pooled=pooled, positions=positions, frames=frames))


def films(
    group: Sequence[Recording], features: FrameFeatures, parts: Sequence[float] | None = None
) -> list[Film]:
    """Ten frames of each; 0 in `parts` takes the first ones (so does None), 1 the last ones."""
    made = []
    for (episode, frames), part in zip(group, parts or [0.0] * len(group), strict=True):
        start = round(part * (len(frames) - FRAMES))
        made.append(seen(episode, frames[start : start + FRAMES], features))
    return made


def folds(name: str, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Which episodes to fit on, in random order, and which to hold out; too short folds go."""
    *_, held, repeats = SETS[name.rsplit(" ", 1)[0]]
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        order = rng.permutation(count).tolist()
        for k in range(0, count - held + 1, held):
            yield order[:k] + order[k + held :], order[k : k + held]


def compare(
    name: str,
    groups: dict[str, list[Film]],
    fits: int | None = None,
    learn: Callable[[Films], FrameFeatures] | None = None,
) -> list[Comparison]:
    """Fit on most episodes of a camera; show the others, and every other camera.

    Of cameras that filmed the same episodes only those held out are shown. `learn` makes features
    from the reference half of each fit; None: the films' own.
    """
    told = SHIPPED if learn is None else TRAINED
    rows = [Comparison(name, shown, told) for shown in groups if shown != name]
    for fitted, held in tqdm([*folds(name, len(groups[name]))][:fits], name, file=sys.stderr):
        views = groups
        if learn is not None:
            features = learn([groups[name][i] for i in fitted[::2]])
            views = {
                camera: [seen(f.episode, f.frames, features) for f in some]
                for camera, some in groups.items()
            }
        own = views[name]
        fit = Fit([own[i] for i in fitted[::2]], [own[i] for i in fitted[1::2]])
        nominal = {i: fit.judge(own[i]) for i in held}
        familiar = {own[i].episode for i in fitted}
        for row in rows:
            others = [(j, f) for j, f in enumerate(views[row.shown]) if f.episode not in familiar]
            row.add(fit.alpha, nominal, {j: fit.judge(film) for j, film in others})
    return rows


def known_scenes(
    name: str, group: Sequence[Recording], groups: dict[str, list[Film]], features: FrameFeatures
) -> list[Comparison]:
    """Fit on the middle frames of all episodes; first and last ones, in turn, set the thresholds.

    The remaining ones, of the same scenes, are nominal.
    """
    turns = [float(i % 2) for i in range(len(group))]
    fit = Fit(films(group, features, [0.5] * len(group)), films(group, features, turns))
    rest = films(group, features, [1 - turn for turn in turns])
    nominal = {i: fit.judge(film) for i, film in enumerate(rest)}
    rows = [Comparison(f"{name}, known scenes", s) for s in groups if not s.startswith("DROID")]
    for row in rows:
        row.add(fit.alpha, nominal, {j: fit.judge(f) for j, f in enumerate(groups[row.shown])})
    return rows


def causes(
    name: str, groups: dict[str, list[Film]], features: FrameFeatures
) -> Iterator[dict[str, Any]]:
    """What the alarms of the first fit are called at the end of each film, frame by frame."""
    fitted, _ = next(folds(name, len(groups[name])))
    kept = [groups[name][i] for i in fitted]
    monitor = Fit(kept[::2], kept[1::2]).monitor
    monitor.features = features
    monitor.causes_ = fit_causes([film.frames for film in kept[::2]])
    monitor = monitor.sibling()  # which starts with the causes
    familiar = {film.episode for film in kept}
    for shown, others in groups.items():
        some = [f for f in others if f.episode not in familiar]
        told = Counter(cause for film in some if (cause := last_cause(monitor, film)))
        named = ", ".join(f"{cause} {count}" for cause, count in told.most_common())
        yield {"fitted on": name, "shown": shown, "films": len(some), "alarms": named}


def last_cause(monitor: RuntimeMonitor, film: Film) -> str | None:
    """The leading cause of the film's last alarm; None if there was none."""
    monitor.reset()
    verdicts = [monitor.update(frame, None) for frame in film.frames]
    fresh = [v.causes[0] for v in verdicts if v.causes and v.causes[0] != "held"]
    return fresh[-1] if fresh else None


class Pairs(list[torch.Tensor]):
    """Two frames of a film each, a few steps apart: what a tokenizer learns from."""

    collate = staticmethod(torch.stack)


def trained_features(model: WorldModel, films: Films) -> FrameFeatures:
    """Features of a small tokenizer trained on these films as `--preset smoke` trains it."""
    torch.manual_seed(0)
    student = WorldModel(model.config, Tokenizer.from_config(SMOKE.tokenizer))
    stride, cuts = SMOKE.pair_stride, [torch.from_numpy(film.frames) for film in films]
    pairs = Pairs(cut[[t, t + stride]] for cut in cuts for t in range(FRAMES - stride))
    objective = TokenizerObjective(student.tokenizer, model.config.image_size, SMOKE.tokenizer_loss)
    with tempfile.TemporaryDirectory() as folder:
        train(objective, pairs, SMOKE.tokenizer_loop, Path(folder) / "tokenizer")
    student.tokenizer.fit_whitening(to_model(cut[:, 0]) for cut in cuts)
    return FrameFeatures(student.eval())


def cell(estimate: Estimate) -> str:
    """A figure with its interval."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*estimate)


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


NOTES = f"""Every film: the first {FRAMES} frames (2 s) of one episode and camera, squeezed to
64x64. Half of the films a monitor is fitted on are its reference, half set its thresholds, at the
smallest alpha that they support. Cells: value (95% interval). An AUROC compares the largest score
of an episode of the fitted kind that the fit had not seen with that of a shown one; 0.5 is a coin,
below it the shown ones look MORE familiar. Each pair's mean over fits counts once; Newcombe's
interval takes n and m episodes, Wilson's the whole numbers of episodes around the mean. They leave
out the luck of which episodes the fits share, and take two cameras of one episode as independent.
Known scenes: fitted on other frames of the very episodes that are nominal."""


def line(row: Comparison) -> list[object]:
    """Cells of the main table."""
    n, m = len(row.nominal_alarms), len(row.shown_alarms)
    alarms = [cell(share(some)) for some in (row.nominal_alarms, row.shown_alarms)]
    told = [row.fitted, row.shown, f"{n}, {m}", row.fits]
    return [*told, cell(row.auroc("all")), f"{row.alpha:.3f}", *alarms]


def report(rows: Sequence[Comparison], named: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Everything as Markdown."""
    head = ["fitted on", "shown", "n, m", "fits", "AUROC", "alpha", "false alarms", "shown alarmed"]
    parts = ["# A monitor fitted on one real data set, shown the other", NOTES]
    parts.append("; ".join(f"{name}: {value}" for name, value in facts.items()) + ".")
    single = (*SIGNALS[1:], *PLAIN)
    for features in (SHIPPED, TRAINED):
        some = [row for row in rows if row.features == features]
        alone = [(r.fitted, r.shown, *(cell(r.auroc(name)) for name in single)) for r in some]
        parts += [f"## Features: {features}", table(head, [line(row) for row in some])]
        parts += ["AUROC of single signals and dumb baselines:", table([*head[:2], *single], alone)]
    parts += ["## What alarms are called at the end of a film, one fit each"]
    return "\n\n".join([*parts, table([*named[0]], [[*n.values()] for n in named])]) + "\n"


def measure(root: Path, model: WorldModel) -> tuple[list[Comparison], list[dict[str, Any]]]:
    """Every comparison, and what alarms are called."""
    features, found = FrameFeatures(model), recordings(root, model)
    groups = {name: films(group, features) for name, group in found.items()}
    rows, named, first = [], [], {name.rsplit(" ", 1)[0]: name for name in reversed(groups)}
    for name in groups:
        rows += compare(name, groups)
        if name.startswith("DROID"):
            rows += known_scenes(name, found[name], groups, features)
        if name in first.values():
            named += list(causes(name, groups, features))
    few = {name: groups[name] for name in first.values()}
    rows += compare(first["DROID"], few, 3, lambda some: trained_features(model, some))
    return rows, named


def main() -> int:
    """Measure, print, write; 2 without the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    root = Path(os.environ.get("WORLDMODEL_DATA", beside))
    if not all((root / folder).is_dir() for folder, *_ in SETS.values()):
        print(f"Set WORLDMODEL_DATA: {root} lacks real Bridge and DROID episodes.", file=sys.stderr)
        return 2
    commit, begun = git_commit(), time.process_time()
    rows, named = measure(root, WorldModel.load("tabletop"))
    facts = {
        "folder, prefix, held out per fit, shuffles": SETS,
        "seed": 0,
        "hardware": hardware(),
        "versions": {"Python": platform.python_version()}
        | {package: version(package) for package in ("torch", "numpy", "scipy")},
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "CPU minutes": round((time.process_time() - begun) / 60, 1),
    }
    text = report(rows, named, facts)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "real_data_monitor.md").write_text(text)
    stored = {**facts, "rows": [row.as_dict() for row in rows], "causes": named}
    (given.out / "real_data_monitor.json").write_text(json.dumps(stored, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
