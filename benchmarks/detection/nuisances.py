"""Alarms of the monitor under benign changes of the picture, and what still alarms.

    python -m benchmarks.detection.nuisances --seed 1234567 --out runs/benchmark-nuisances

Every cell has its own scenes. Changes up to the declared amounts must not alarm more often than the
monitor's alarm rate; scene shifts must alarm. The episodes' first frame is changed already. Run the
same command again to resume; exit code 1 if a declared nuisance alarms too often.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.detection.run import (
    BATCH,
    LOOKS,
    Watched,
    check_settings,
    is_alarm,
    load_watcher,
    read_rows,
    watch_batch,
)
from benchmarks.markdown import markdown_table
from benchmarks.provenance import git_commit, hardware, today
from worldmodel.calibration.calibrated import Calibration
from worldmodel.calibration.fit_monitor import disturbed_copy
from worldmodel.envs.collect import Collection, record
from worldmodel.envs.factors import SEVERITIES
from worldmodel.episodes.load import load_episode
from worldmodel.evaluation.statistics import wilson_interval
from worldmodel.model import WorldModel
from worldmodel.monitors.channels.channel_set import SIGNALS
from worldmodel.monitors.nuisances import DEFAULTS, Nuisance, declared

WITHIN = (
    Nuisance("jpeg", 95.0), Nuisance("jpeg", 85.0), Nuisance("scale", 0.9), Nuisance("noise", 1.5),
    Nuisance("exposure", 0.05),
)  # fmt: skip
"""Smaller amounts than the declared ones."""
BEYOND = (
    Nuisance("jpeg", 60.0), Nuisance("scale", 0.5), Nuisance("exposure", 0.2),
    Nuisance("exposure", -0.2), Nuisance("noise", 8.0), Nuisance("blur", 1.5),
)  # fmt: skip
"""Larger amounts than the declared ones: nothing is promised."""
TOGETHER = (Nuisance("exposure", 0.08), Nuisance("noise", 3.0), Nuisance("jpeg", 75.0))
"""Declared nuisances at once: nothing is promised."""


@dataclass(frozen=True, kw_only=True)
class NuisanceCell:
    """Episodes with the same nuisances, or with the same scene shift."""

    kind: str
    """"nominal", "declared", "within", "beyond", "together", "renderer" or "shift"."""
    name: str
    nuisances: tuple[Nuisance, ...] = ()
    collection: Collection

    @property
    def file(self) -> str:
        """File name of the results."""
        return f"{self.kind}-{self.name.replace(' ', '-')}.json"


def plan(seed: int, *, size: int, shifted: int) -> Iterator[tuple[NuisanceCell, int]]:
    """All cells with their numbers of episodes; no two share a scene."""
    groups: list[tuple[str, list[tuple[Nuisance, ...]]]] = [
        ("nominal", [()]),
        ("declared", [(nuisance,) for nuisance in declared(DEFAULTS)]),
        ("within", [(nuisance,) for nuisance in WITHIN]),
        ("beyond", [(nuisance,) for nuisance in BEYOND]),
        ("together", [TOGETHER]),
    ]
    cells = [(kind, nuisances) for kind, members in groups for nuisances in members]
    for number, (kind, nuisances) in enumerate(cells):
        name = ", ".join(nuisance.name for nuisance in nuisances) or "none"
        scenes = Collection(renderer="ray", seed=seed + number)
        yield NuisanceCell(kind=kind, name=name, nuisances=nuisances, collection=scenes), size
    for factor in LOOKS:
        for severity in SEVERITIES:
            scenes = Collection(renderer="ray", seed=seed, factor=factor, severity=severity)
            yield (
                NuisanceCell(kind="shift", name=f"{factor} {severity}", collection=scenes),
                shifted,
            )


def watch_cell(
    model: WorldModel, calibration: Calibration, cell: NuisanceCell, number: int
) -> list[Watched]:
    """Simulate, disturb, roll out and watch the episodes of one cell."""
    episodes = []
    for index, trajectory in enumerate(record([(cell.collection, i) for i in range(number)])):
        episode = load_episode(model, trajectory, model.config.cameras)
        for nuisance in cell.nuisances:
            episode = disturbed_copy(model, episode, nuisance, seed=index)
        episodes.append(episode)
    rows = []
    for first in range(0, number, BATCH):
        rows += watch_batch(model, calibration, episodes[first : first + BATCH], first)
    return rows


def measure(
    model: WorldModel, calibration: Calibration, cells: Sequence[tuple[NuisanceCell, int]],
    folder: Path,
) -> dict[NuisanceCell, list[Watched]]:  # fmt: skip
    """Watch every cell that has no results in `folder` yet."""
    for cell, number in tqdm(cells, "watch", unit="cell"):
        file = folder / cell.file
        if not file.is_file():
            rows = watch_cell(model, calibration, cell, number)
            part = file.with_suffix(".part")
            part.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
            os.replace(part, file)
    return {cell: [Watched(**r) for r in read_rows(folder / cell.file)] for cell, _ in cells}


def alarmed(row: Watched) -> bool:
    """Whether any frame of an episode raised an alarm."""
    return any(is_alarm(row, t) for t in range(len(row.levels)))


def raised(rows: Sequence[Watched], calibration: Calibration) -> dict[str, int]:
    """Signal -> episodes in which it exceeded its own threshold."""
    rule = calibration.monitor.alarm_rule_
    return {
        name: sum(
            bool((np.nan_to_num(row.scores[name], nan=-np.inf) > rule.threshold(name)).any())
            for row in rows
        )
        for name in SIGNALS
        if name in rule.scales_
    }


def allowed(alpha: float, number: int) -> float:
    """Largest share of alarms that agrees with `alpha`: two standard errors above it."""
    return alpha + 2 * float(np.sqrt(alpha * (1 - alpha) / number))


def table(results: dict[NuisanceCell, list[Watched]], calibration: Calibration) -> str:
    """One row per cell: alarms with interval, and the signals that raised them."""
    lines = []
    for cell, rows in results.items():
        count = sum(map(alarmed, rows))
        share = wilson_interval(count, len(rows))
        signals = {name: n for name, n in raised(rows, calibration).items() if n}
        lines.append(
            (
                cell.kind,
                cell.name,
                len(rows),
                count,
                f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]",
                ", ".join(f"{name} {n}" for name, n in signals.items()),
            )
        )
    return markdown_table(
        ("kind", "change", "episodes = scenes", "alarms", "share", "signals above threshold"), lines
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="tabletop", help="calibrated tabletop checkpoint")
    parser.add_argument("--monitor", type=Path, help="folder of the monitor")
    parser.add_argument("--seed", type=int, default=8_700_003, help="seed of the scenes")
    parser.add_argument("--episodes", type=int, default=60, help="episodes per nuisance")
    parser.add_argument("--shifted", type=int, default=48, help="episodes per factor and severity")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-nuisances"))
    options = parser.parse_args(arguments)
    model, calibration = load_watcher(options.model, options.monitor)
    rule = calibration.monitor.alarm_rule_
    check_settings(
        options.out,
        {
            "seed": options.seed,
            "episodes": options.episodes,
            "shifted": options.shifted,
            "thresholds": {level.name: value for level, value in rule.thresholds_.items()},
        },
    )
    cells = list(plan(options.seed, size=options.episodes, shifted=options.shifted))
    results = measure(model, calibration, cells, options.out)
    text = (
        "# Alarms under nuisances and shifts\n\n"
        f"checkpoint: {options.model}; seed {options.seed}; renderer ray; {hardware()}; commit "
        f"{git_commit()}; {today()}; alarm rate {rule.config.alpha_notice:g}. "
        f"`python -m benchmarks.detection.nuisances --seed {options.seed} "
        f"--episodes {options.episodes} --shifted {options.shifted}`\n\n"
        f"{table(results, calibration)}\n"
    )
    (options.out / "nuisances.md").write_text(text, encoding="utf-8")
    print(text)
    limit = allowed(rule.config.alpha_notice, options.episodes)
    often = [
        cell.name
        for cell, rows in results.items()
        if cell.kind in ("nominal", "declared", "within")
        and sum(map(alarmed, rows)) / len(rows) > limit
    ]
    if often:
        print(f"More than {limit:.3f} of the episodes alarm under: {', '.join(often)}.")
    return int(bool(often))


if __name__ == "__main__":
    raise SystemExit(main())
