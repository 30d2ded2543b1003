"""Write the HTML report of a rollout log: one self-contained page, and optional heatmap files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel report`."""

    log: tyro.conf.Positional[Path]
    """Log that `worldmodel imagine` or `watch` wrote. An unfinished last rollout is shown up to its
    last frame."""
    out: Path = Path("report.html")
    """File to write; an existing report is replaced."""
    heatmaps: Path | None = None
    """Folder for heatmaps of confidence: a contact sheet (PNG) and a video (mp4) per rollout; None:
    no heatmaps."""


def run(command: Command) -> int:
    """Write the heatmaps if requested, then the page (atomically), and print their paths."""
    from worldmodel.datasets.rollout_log import RolloutLog
    from worldmodel.report.html import write_report
    from worldmodel.report.rollout_page import log_sections

    if command.out.is_dir():
        raise ValueError(f"`--out` must be a file, but {command.out} is a folder.")
    if command.heatmaps is not None and command.heatmaps.is_file():
        raise ValueError(f"`--heatmaps` must be a folder, but {command.heatmaps} is a file.")
    log = RolloutLog.open(command.log)
    title = f"Rollouts of {command.log.name}"
    sections = log_sections(log)
    if command.heatmaps is not None:
        from worldmodel.report.heatmap_files import write_heatmaps

        number = write_heatmaps(log, command.heatmaps)
        print(f"{number} contact sheets and videos in {command.heatmaps.resolve()}")
    print(write_report(command.out, title, sections))
    return 0
