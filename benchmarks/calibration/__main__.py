"""Compare ways to state confidence: heads, losses, events, remedies for shift, and baselines.

On the embedded tabletop everything is simulated: nominal episodes that heads learn from, others
that recalibrate, and nominal and shifted ones that all are judged on. With --data, recorded
episodes are judged instead, each by a model trained without it. Started again, the command goes on
where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel import cli

if TYPE_CHECKING:
    from benchmarks.calibration.methods import Comparison

LEAST_LEARN = 20
"""Episodes that the confidence of events needs to be fitted."""
MARKED_SEED = 100
"""Added to the seed for episodes of localisation."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is compared, on what, and where results go."""

    out: Path = Path("runs/benchmark-calibration")
    """Folder of the results: results.json, extras.json, errors.png, reliability.png."""
    model: str = "tabletop"
    """Calibrated checkpoint of the tabletop: its folder or a shipped name."""
    learn: int = 100
    """Simulated nominal episodes that heads learn from, and as many that recalibrate."""
    nominal: int = 40
    """Simulated nominal episodes that are judged."""
    shifted: int = 5
    """Simulated episodes that are judged, per factor and severity."""
    marked: int = 24
    """Simulated episodes into which things are put at known pixels, for localisation."""
    members: tuple[Path, ...] = ()
    """Folders of two or more further models, which make the ensemble among the baselines."""
    data: Path | None = None
    """Recorded episodes to judge instead, in any form that `worldmodel data info` reads."""
    folds: int = 4
    """Parts that --data is cut into; each is judged by a model trained on the others."""
    preset: str = "smoke"
    """Recipe of the models trained on --data."""
    only: tuple[str, ...] = ()
    """Compare only methods whose name contains one of these words; none: all."""
    steps: int = 600
    """Training steps of every compared head."""
    seed: int = 3_000_003
    """Seed of episodes, rollouts and trainings."""
    workers: int = 2
    """Processes that simulate."""
    json: bool = False
    """Print the results as JSON."""


def run(command: Command) -> int:
    """Compare, print one table, and write it with pictures."""
    from benchmarks.calibration.cross_validation import LEFT_OUT, left_out_comparisons
    from benchmarks.calibration.episodes import NOMINAL, POOLED, POOLED_VISUAL, VISUAL
    from benchmarks.calibration.extras import extras, tables
    from benchmarks.calibration.methods import SHIPPED
    from benchmarks.calibration.methods import run as compare
    from benchmarks.calibration.tables import draw, table
    from worldmodel.envs.factors import SHIFTS

    if min(command.nominal, command.shifted, command.steps, command.marked) < 2:
        raise ValueError("`--nominal`, `--shifted`, `--steps` and `--marked` must be at least 2.")
    if command.learn < LEAST_LEARN:
        raise ValueError(
            f"`--learn` must be at least {LEAST_LEARN}: as many recalibrate; got {command.learn}."
        )
    check_settings(command)
    merged: dict[str, tuple[str, ...]] = {}
    shown: tuple[str, ...]
    if command.data is None:
        benches, shown = [tabletop(command)], (NOMINAL, POOLED_VISUAL)
        merged = {POOLED: SHIFTS, POOLED_VISUAL: VISUAL}
    else:
        shown = (LEFT_OUT,)
        benches = left_out_comparisons(
            command.data, folds=command.folds, preset=command.preset, steps=command.steps,
            seed=command.seed, folder=command.out / "folds",
        )  # fmt: skip
    results = compare(benches, merged, command.out / "methods", only=command.only)
    if not results:
        raise ValueError(f"`--only` {command.only} matches no method.")
    written = json.dumps([result.as_dict() for result in results], indent=1)
    (command.out / "results.json").write_text(written + "\n")
    files = draw(results, shown, command.out)
    if command.json:
        print(written)
        return 0
    print(table(results).to_text())
    more_file = command.out / "extras.json"
    if command.data is None and results[0].method == SHIPPED and not more_file.is_file():
        found = extras(benches[0], marked=command.marked, seed=command.seed + MARKED_SEED)
        more_file.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
        files.append(more_file)
        for more in tables(found):
            print(f"\n{more.to_text()}")
    print("\nWritten:", ", ".join(str(file) for file in (command.out / "results.json", *files)))
    return 0


def check_settings(command: Command) -> None:
    """Refuse to mix results of other settings in one folder.

    Raises:
        ValueError: `out` holds results of other settings.
    """
    free = ("out", "only", "members", "json", "workers")
    settings = {k: v for k, v in asdict(command).items() if k not in free}
    text = json.dumps(settings, indent=1, default=str) + "\n"
    file = command.out / "settings.json"
    if file.is_file() and file.read_text() != text:
        raise ValueError(
            f"{command.out} holds results of other settings ({file}); repeat them or give another "
            "`--out`."
        )
    command.out.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def tabletop(command: Command) -> Comparison:
    """Simulate, imagine and gather what is compared on the tabletop."""
    from benchmarks.calibration.episodes import TabletopSize, tabletop_data
    from benchmarks.calibration.methods import Comparison
    from worldmodel.calibration.calibrated import Checkpoint
    from worldmodel.model import WorldModel

    checkpoint = Checkpoint.load(command.model, stages=("confidence", "judge"))
    size = TabletopSize(learn=command.learn, nominal=command.nominal, shifted=command.shifted)
    gather = partial(
        tabletop_data, checkpoint.model, size, command.out / "episodes",
        seed=command.seed, workers=command.workers,
    )  # fmt: skip
    members = [WorldModel.load(folder) for folder in command.members]
    return Comparison(
        checkpoint.model, gather, command.steps,
        alarm_rule=checkpoint.calibration.monitor.alarm_rule_, members=members, seed=command.seed,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; wrong input is one line on standard error and exit code 2."""
    module = sys.modules[__name__]
    return cli.exit_code(
        lambda: cli.run_module(module, argv, prog="python -m benchmarks.calibration")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
