"""Measure the monitor on the embedded tabletop: shifts of the scene, action faults, benign change.

Everything is simulated with scenes that nothing was fitted on. Started again, the command goes on
where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldmodel import cli


@dataclass(frozen=True, kw_only=True)
class Command:
    """Which model and monitor, how many episodes, and where results go."""

    out: Path = Path("runs/benchmark-detection")
    """Folder of the results: one file per kind of episode, tables.json, report.html."""
    model: str = "tabletop"
    """Calibrated checkpoint of the tabletop: its folder or a shipped name."""
    monitor: Path | None = None
    """Folder that `worldmodel calibrate` wrote; None: `monitor` in the checkpoint."""
    nominal: int = 100
    """Nominal episodes."""
    shifted: int = 16
    """Episodes per factor or fault, severity and onset."""
    severities: tuple[int, ...] = (3, 2, 1)
    """Strengths of the shifts and faults, of 1, 2 and 3."""
    onset: int = 10
    """Frame of the later of two onsets; the other is 0."""
    seed: int = 8_500_003
    """Seed of episodes and rollouts."""
    workers: int = 2
    """Processes that simulate."""
    json: bool = False
    """Print the tables as JSON."""


def run(command: Command) -> int:
    """Watch, print the tables, and write them."""
    from benchmarks.detection.run import DetectionConfig, load_watcher
    from benchmarks.detection.run import run as measure
    from benchmarks.detection.tables import tables
    from worldmodel.report.html import Section, write_report

    if not command.severities:
        raise ValueError("`--severities` needs at least one of 1, 2 and 3.")
    for name, value, least in (
        ("nominal", command.nominal, 2),
        ("shifted", command.shifted, 1),
        ("onset", command.onset, 1),
    ):
        if value < least:
            raise ValueError(f"`--{name}` must be at least {least}, got {value}.")
    config = DetectionConfig(
        nominal=command.nominal,
        shifted=command.shifted,
        onset=command.onset,
        severities=command.severities,
        seed=command.seed,
        workers=command.workers,
    )
    model, calibration = load_watcher(command.model, command.monitor)
    results = measure(model, calibration, config, command.out)
    made = tables(results, calibration.monitor.alarm_rule_)
    plain = [{"caption": t.caption, "columns": t.columns, "rows": t.rows} for t in made]
    written = json.dumps(plain, indent=1)
    (command.out / "tables.json").write_text(written + "\n")
    titles = (
        "Detection", "Shifts", "Signals", "Benign change", "Causes at once", "Causes soon",
        "Causes on the whole", "Harm",
    )  # fmt: skip
    sections = [Section(title, [table]) for title, table in zip(titles, made, strict=True)]
    write_report(command.out / "report.html", "Detection by the runtime monitor", sections)
    if command.json:
        print(written)
        return 0
    print("\n\n".join(table.to_text() for table in made))
    print(f"\nWritten: {command.out / 'tables.json'}, {command.out / 'report.html'}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; wrong input is one line on standard error and exit code 2."""
    module = sys.modules[__name__]
    return cli.exit_code(
        lambda: cli.run_module(module, argv, prog="python -m benchmarks.detection")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
