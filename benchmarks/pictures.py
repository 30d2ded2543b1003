"""Measure pictures: decoded, composed without and with a network, and a copy of the last frame.

    OMP_NUM_THREADS=1 python -m benchmarks.pictures --model tabletop --seed 7312003

Imagines simulated tabletop episodes open loop from four real frames: nominal ones, and each visual
shift. Every cell has scenes of its own. With `--data`, recorded episodes instead, in all segments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from torch import Tensor

from benchmarks.intervals import mean_and_interval
from benchmarks.markdown import markdown_table
from benchmarks.provenance import (
    RESULTS,
    git_commit,
    hardware,
    note_if_looked_at,
    today,
    versions,
)
from worldmodel.envs.collect import Collection
from worldmodel.envs.factors import NOMINAL, SHIFTS
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.load import load_episodes, open_for
from worldmodel.evaluation.simulate import simulate
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import START, EpisodeRollouts, roll_out_all
from worldmodel.rollouts.picture_kinds import DECODED
from worldmodel.rollouts.pictures import pictures
from worldmodel.rollouts.quality import psnr_per_frame

HORIZONS = (1, 4, 8, 16)
Show = Callable[[Episode, EpisodeRollouts, np.ndarray], UInt8[Tensor, "row view height width 3"]]
Interval = tuple[float, float, float]
"""Mean over scenes, and its 95% bootstrap interval."""


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """PSNR in dB of one cell at one horizon: means over scenes and 95% bootstrap intervals."""

    cell: str
    horizon: int
    num_scenes: int
    psnr_db: dict[str, Interval]
    """Way of making pictures -> PSNR."""
    gain_db: dict[str, Interval]
    """Way of making pictures -> PSNR minus that of the copy, over the same scenes."""


def ways(model: WorldModel, without: WorldModel) -> dict[str, Show]:
    """Ways of making pictures; `without` is the same model without its compositor."""

    def copied(episode: Episode, rollout: EpisodeRollouts, rows: np.ndarray) -> Tensor:
        return episode.frames[rows - rollout.horizon[rows]]

    found: dict[str, Show] = {
        "copy": copied,
        "decoded": lambda e, r, rows: pictures(without, e.frames, r, rows=rows, kind=DECODED),
        "training-free": lambda e, r, rows: pictures(without, e.frames, r, rows=rows),
    }
    if model.compositor is not None:
        found["learned"] = lambda e, r, rows: pictures(model, e.frames, r, rows=rows)
    return found


def scene_psnr(
    show: Show, episode: Episode, rollout: EpisodeRollouts, horizon: int, *, first_only: bool
) -> float | None:
    """Mean PSNR over the frames of a scene at one horizon, and its views; None: not reached."""
    rows = np.flatnonzero(rollout.horizon == horizon)[: 1 if first_only else None]
    if not len(rows):
        return None
    valid = slice(None) if rollout.view_valid is None else rollout.view_valid[rows]
    shown, real = show(episode, rollout, rows)[valid], episode.frames[rows][valid]
    return float(psnr_per_frame(shown.flatten(0, -4), real.flatten(0, -4)).mean())


def measure(
    cell: str,
    shows: dict[str, Show],
    episodes: Sequence[Episode],
    rollouts: Sequence[EpisodeRollouts],
    *,
    first_only: bool,
) -> Iterator[PictureRow]:
    """One row per horizon that at least two scenes reach."""
    for horizon in HORIZONS:
        psnr: dict[str, Float64[np.ndarray, " scene"]] = {}
        for name, show in shows.items():
            pairs = zip(episodes, rollouts, strict=True)
            found = (scene_psnr(show, *pair, horizon, first_only=first_only) for pair in pairs)
            psnr[name] = np.array([value for value in found if value is not None])
        if len(psnr["copy"]) > 1:
            gains = {name: psnr[name] - psnr["copy"] for name in psnr if name != "copy"}
            yield PictureRow(
                cell=cell,
                horizon=horizon,
                num_scenes=len(psnr["copy"]),
                psnr_db={name: mean_and_interval(values) for name, values in psnr.items()},
                gain_db={name: mean_and_interval(values) for name, values in gains.items()},
            )


def simulated(
    model: WorldModel, arguments: argparse.Namespace
) -> Iterator[tuple[str, list[Episode]]]:
    """Cells of simulated episodes: nominal, and each shift."""
    for factor in (NOMINAL, *SHIFTS):
        severity = 1 if factor == NOMINAL else arguments.severity
        scene = Collection(
            renderer="ray",
            seed=arguments.seed,
            factor=factor,
            severity=severity,
            num_steps=START + max(HORIZONS),
        )
        number = arguments.nominal if factor == NOMINAL else arguments.shifted
        name = factor if factor == NOMINAL else f"{factor} {severity}"
        yield name, simulate(model, [(name, scene, number)], workers=1)[name]


def table(rows: Sequence[PictureRow]) -> str:
    """Results as a Markdown table."""
    names, last = list(rows[0].psnr_db), list(rows[0].psnr_db)[-1]

    def cell(interval: Interval, sign: str = "") -> str:
        mean, low, high = (f"{value:{sign}.1f}" for value in interval)
        return f"{mean} [{low}, {high}]"

    columns = ["scenes", "frames ahead", "n", *names, f"{last} minus copy"]
    return markdown_table(columns, [
        (row.cell, row.horizon, row.num_scenes, *map(cell, row.psnr_db.values()),
         cell(row.gain_db[last], "+"))
        for row in rows
    ])  # fmt: skip


NOTE = (
    "PSNR in dB of pictures of imagined frames, open loop: mean over scenes with a 95% bootstrap "
    "interval over scenes. Copy: the last real frame, repeated. Decoded: the tokenizer's picture "
    "of the imagined latent. Training-free and learned: composed with the last real frame, "
    "without and with the model's compositor."
)


def main() -> None:
    """Simulate or load, imagine, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--nominal", type=int, default=48)
    parser.add_argument("--shifted", type=int, default=24)
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--seed", type=int, help="seed of simulated scenes, never looked at before")
    parser.add_argument("--data", type=Path, help="recorded episodes, instead of simulated ones")
    parser.add_argument("--only", help='pattern of their names, such as "val/*"')
    parser.add_argument("--name", default="pictures", help="name of the files of results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    if (arguments.seed is None) == (arguments.data is None):
        parser.error("give either --seed or --data")
    commit = git_commit()  # read first: the checkout may change during the run
    model, without = WorldModel.load(arguments.model), WorldModel.load(arguments.model)
    without.set_compositor(None)
    if arguments.data:
        data = load_episodes(model, open_for(model, arguments.data), only=arguments.only)
        cells = iter([(arguments.data.name, data)])
    else:
        note_if_looked_at(arguments.seed)
        cells = simulated(model, arguments)
    rows: list[PictureRow] = []
    for name, episodes in cells:
        rollouts = roll_out_all(model, episodes, horizon=max(HORIZONS))
        shows, first_only = ways(model, without), arguments.data is None
        rows += measure(name, shows, episodes, rollouts, first_only=first_only)
    unused = {"out", "name"} | ({"nominal", "shifted", "severity"} if arguments.data else set())
    given = {name: value for name, value in vars(arguments).items() if name not in unused}
    settings = {name: str(value) for name, value in given.items() if value is not None}
    facts = {
        **settings,
        "first imagined frame": str(START),
        **({} if arguments.data else {"renderer": "ray"}),
        "hardware": hardware(),
        "versions": versions("torch", "mujoco"),
        "commit": commit,
        "date": today(),
    }
    text = f"# Pictures\n\n{'; '.join(f'{k}: {v}' for k, v in facts.items())}.\n\n{NOTE}\n\n"
    text += f"{table(rows)}\n"
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.name}.md").write_text(text, encoding="utf-8")
    stored = {**facts, "rows": [asdict(row) for row in rows]}
    (arguments.out / f"{arguments.name}.json").write_text(
        json.dumps(stored, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
