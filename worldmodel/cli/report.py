"""Write the HTML report of a rollout log: one page that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Which log, and where to."""

    log: tyro.conf.Positional[Path]
    """Log that `worldmodel imagine` or `watch` wrote; a last rollout that was cut off is shown as
    far as it goes."""
    out: Path = Path("report.html")
    """File to write; an earlier report there is replaced."""


def run(command: Command) -> int:
    """Write the page, whole or not at all, and say where it is."""
    from worldmodel.datasets.rollout_log import RolloutLog
    from worldmodel.report import write_report
    from worldmodel.rollout_report import log_sections

    if command.out.is_dir():
        raise ValueError(f"`--out` must be a file, but {command.out} is a folder.")
    log = RolloutLog.open(command.log)
    title = f"Rollouts of {command.log.name}"
    print(write_report(command.out, title, log_sections(log)))
    return 0
