"""Measure the runtime monitor on the tabletop: scene shifts, action faults and benign changes.

    python -m benchmarks.detection --out runs/benchmark-detection

Simulates held-out scenes. Run the same command again to resume.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldmodel import cli

REPORT = "Detection by the runtime monitor"
"""Title of the report."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Model, monitor, number of episodes and output folder."""

    out: Path = Path("runs/benchmark-detection")
    """Output folder: one file per group of episodes, tables.json, tables.md, provenance.json,
    report.html."""
    model: str = "tabletop"
    """Calibrated tabletop checkpoint: folder or shipped name."""
    monitor: Path | None = None
    """Folder written by `worldmodel calibrate`; None: the checkpoint's `monitor` folder."""
    nominal: int = 100
    """Nominal episodes."""
    shifted: int = 16
    """Episodes per factor or fault, severity and onset."""
    severities: tuple[int, ...] = (3, 2, 1)
    """Severities of shifts and faults, from 1, 2 and 3."""
    onset: int = 10
    """Frame of the later onset; the other onset is 0."""
    seed: int = 8_500_003
    """Seed of episodes and rollouts."""
    workers: int = 2
    """Simulation processes."""
    json: bool = False
    """Print the tables as JSON."""


def run(command: Command) -> int:
    """Watch the episodes, print the tables and write them."""
    from benchmarks.detection.run import DetectionConfig, load_watcher
    from benchmarks.detection.run import run as measure
    from benchmarks.detection.tables import tables
    from benchmarks.markdown import results_page
    from benchmarks.provenance import git_commit, hardware, note_if_looked_at, today, versions
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
    note_if_looked_at(command.seed)
    model, calibration = load_watcher(command.model, command.monitor)
    results = measure(model, calibration, config, command.out)
    all_tables = tables(results, calibration.monitor.alarm_rule_)
    plain = [{"caption": t.caption, "columns": t.columns, "rows": t.rows} for t in all_tables]
    written = json.dumps(plain, indent=1)
    (command.out / "tables.json").write_text(written + "\n", encoding="utf-8")
    facts = {
        "hardware": hardware(),
        "versions": versions("worldmodel", "torch", "numpy", "scipy"),
        "commit": git_commit(),
        "date": today(),
    }
    (command.out / "provenance.json").write_text(
        json.dumps(facts, indent=1) + "\n", encoding="utf-8"
    )
    titles = (
        "Detection", "Weakest cells", "Shifts", "Signals", "Benign change", "Causes at the alarm",
        "Causes soon after", "Causes overall", "Harm",
    )  # fmt: skip
    sections = [Section(title, [table]) for title, table in zip(titles, all_tables, strict=True)]
    write_report(command.out / "report.html", REPORT, sections)
    texts = [table.to_text() for table in all_tables]
    page = results_page(REPORT, "benchmarks.detection", facts, texts)
    (command.out / "tables.md").write_text(page, encoding="utf-8")
    if command.json:
        print(written)
        return 0
    print("\n\n".join(texts))
    print(f"\nWritten: {command.out / 'tables.md'}, {command.out / 'report.html'}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; invalid input prints one line to standard error, exit code 2."""
    module = sys.modules[__name__]
    return cli.exit_code(
        lambda: cli.run_module(module, argv, prog="python -m benchmarks.detection")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
