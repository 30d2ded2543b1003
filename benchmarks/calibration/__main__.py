"""Compare confidence methods: heads, losses, events, robustness to shift, and baselines.

    python -m benchmarks.calibration --out runs/benchmark-calibration

Simulates tabletop episodes: nominal ones to train heads, others to recalibrate, and nominal and
shifted ones for evaluation. With --data, evaluates on recorded episodes instead, each with a model
trained without it. Run the same command again to resume.
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
    from worldmodel.report.html import Table

LEAST_LEARN = 20
"""Minimum number of episodes to fit the confidence of events."""
MARKED_SEED = 100
"""Offset of the seed of localisation episodes."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Compared methods, data and output folder."""

    out: Path = Path("runs/benchmark-calibration")
    """Output folder: results.json, extras.json, provenance.json, tables.md (of the first complete
    run), errors.png, reliability.png."""
    model: str = "tabletop"
    """Calibrated tabletop checkpoint: folder or shipped name."""
    learn: int = 100
    """Simulated nominal episodes to train heads, and as many to recalibrate."""
    nominal: int = 40
    """Simulated nominal episodes for evaluation."""
    shifted: int = 5
    """Simulated episodes for evaluation, per factor and severity."""
    marked: int = 24
    """Simulated episodes with interventions at known pixels, for localisation."""
    members: tuple[Path, ...] = ()
    """Folders of two or more further models for the ensemble baseline."""
    data: Path | None = None
    """Recorded episodes to evaluate instead, in any format that `worldmodel data info` reads."""
    folds: int = 4
    """Cross-validation folds of --data."""
    preset: str = "smoke"
    """Preset of the models trained on --data."""
    only: tuple[str, ...] = ()
    """Compare only methods whose name contains one of these words; empty: all."""
    steps: int = 600
    """Training steps per head."""
    seed: int = 3_000_003
    """Seed of episodes, rollouts and training."""
    workers: int = 2
    """Simulation processes."""
    json: bool = False
    """Print the results as JSON."""


def run(command: Command) -> int:
    """Compare the methods, print the table and write it with figures."""
    from benchmarks.calibration.cross_validation import LEFT_OUT, left_out_comparisons
    from benchmarks.calibration.episodes import NOMINAL, POOLED, POOLED_VISUAL, VISUAL
    from benchmarks.calibration.extras import extras, tables
    from benchmarks.calibration.methods import SHIPPED
    from benchmarks.calibration.methods import run as compare
    from benchmarks.calibration.tables import draw, gain_table, table
    from benchmarks.provenance import git_commit, hardware, note_if_looked_at, today, versions
    from worldmodel.envs.factors import SHIFTS

    if min(command.nominal, command.shifted, command.steps, command.marked) < 2:
        raise ValueError("`--nominal`, `--shifted`, `--steps` and `--marked` must be at least 2.")
    if command.learn < LEAST_LEARN:
        raise ValueError(f"`--learn` must be at least {LEAST_LEARN}, got {command.learn}.")
    note_if_looked_at(command.seed)
    check_settings(command)
    merged: dict[str, tuple[str, ...]] = {}
    groups: tuple[str, ...]
    if command.data is None:
        comparisons, groups = [tabletop(command)], (NOMINAL, POOLED_VISUAL)
        merged = {POOLED: SHIFTS, POOLED_VISUAL: VISUAL}
    else:
        groups = (LEFT_OUT,)
        comparisons = left_out_comparisons(
            command.data, folds=command.folds, preset=command.preset, steps=command.steps,
            seed=command.seed, folder=command.out / "folds",
        )  # fmt: skip
    results = compare(comparisons, merged, command.out / "methods", only=command.only)
    if not results:
        raise ValueError(f"`--only` {command.only} matches no method.")
    written = json.dumps([result.as_dict() for result in results], indent=1)
    (command.out / "results.json").write_text(written + "\n", encoding="utf-8")
    facts = {
        "hardware": hardware(),
        "versions": versions("worldmodel", "torch", "numpy", "scipy"),
        "commit": git_commit(),
        "date": today(),
    }
    (command.out / "provenance.json").write_text(
        json.dumps(facts, indent=1) + "\n", encoding="utf-8"
    )
    files = draw(results, groups, command.out)
    if command.json:
        print(written)
        return 0
    all_tables = [table(results)]
    if command.data is None:
        all_tables.append(gain_table(comparisons[0].gains(merged)))
    more_file = command.out / "extras.json"
    if command.data is None and results[0].method == SHIPPED and not more_file.is_file():
        extra = extras(comparisons[0], marked=command.marked, seed=command.seed + MARKED_SEED)
        more_file.write_text(json.dumps(extra.as_dict(), indent=1) + "\n", encoding="utf-8")
        files.append(more_file)
        all_tables += tables(extra)
    files += show(command, all_tables, facts)
    print("\nWritten:", ", ".join(str(file) for file in (command.out / "results.json", *files)))
    return 0


def show(command: Command, all_tables: Sequence[Table], facts: dict[str, str]) -> list[Path]:
    """Print the tables; keep those of the first complete run as tables.md."""
    from benchmarks.markdown import results_page

    texts = [each.to_text() for each in all_tables]
    print("\n\n".join(texts))
    page = command.out / "tables.md"
    if page.is_file():
        return []
    text = results_page("Confidence methods", "benchmarks.calibration", facts, texts)
    page.write_text(text, encoding="utf-8")
    return [page]


def check_settings(command: Command) -> None:
    """Store the settings beside the results.

    Raises:
        ValueError: `out` holds results of other settings.
    """
    ignored = ("out", "only", "members", "json", "workers")
    settings = {k: v for k, v in asdict(command).items() if k not in ignored}
    text = json.dumps(settings, indent=1, default=str) + "\n"
    file = command.out / "settings.json"
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{command.out} holds results of other settings ({file}); use the same settings or "
            "give another `--out`."
        )
    command.out.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def tabletop(command: Command) -> Comparison:
    """Comparison on simulated tabletop episodes."""
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
    """Run the benchmark; invalid input prints one line to standard error, exit code 2."""
    module = sys.modules[__name__]
    return cli.exit_code(
        lambda: cli.run_module(module, argv, prog="python -m benchmarks.calibration")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
