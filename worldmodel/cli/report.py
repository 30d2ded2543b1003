"""Write the HTML report of a rollout log: one self-contained page, and optional heatmap files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from worldmodel.datasets.rollout_log import RolloutLog


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
    c3: Path | None = None
    """New or empty folder for the outputs of C3's evaluation (latents, confidence, calibration per
    error level); for logs of imported C3 networks, imagined from one frame to the end."""


def run(command: Command) -> int:
    """Write heatmaps and C3's outputs if requested, then the page, and print their paths."""
    from worldmodel.checkpoint import check_new
    from worldmodel.datasets.rollout_log import RolloutLog
    from worldmodel.report.html import write_report
    from worldmodel.report.rollout_page import log_sections

    if command.out.is_dir():
        raise ValueError(f"`--out` must be a file, but {command.out} is a folder.")
    if command.heatmaps is not None and command.heatmaps.is_file():
        raise ValueError(f"`--heatmaps` must be a folder, but {command.heatmaps} is a file.")
    check_new(command.c3, "--c3")
    log = RolloutLog.open(command.log)
    title = f"Rollouts of {command.log.name}"
    sections = log_sections(log)
    if command.heatmaps is not None:
        from worldmodel.report.heatmap_files import write_heatmaps

        number = write_heatmaps(log, command.heatmaps)
        print(f"{number} contact sheets and videos in {command.heatmaps.resolve()}")
    if command.c3 is not None:
        print(f"{export_c3(log, command.c3)}\nC3's outputs: {command.c3}")
    print(write_report(command.out, title, sections))
    return 0


def export_c3(log: RolloutLog, folder: Path) -> str:
    """Write the outputs of C3's evaluation, and return its figures beside the right ones."""
    from worldmodel.report.html import Table
    from worldmodel.report.rollout_page import readable_rollouts
    from worldmodel.rollouts.c3_protocol import write_c3

    rollouts = readable_rollouts(log)
    figures = write_c3(rollouts, log.attributes, folder)
    rows = [
        (
            f"{epsilon:g}",
            *(
                f"{number:.4f}"
                for one in both.values()
                for number in (one.accuracy, one.ece, one.mce)
            ),
        )
        for epsilon, both in figures.items()
    ]
    names = ("accuracy", "ECE", "MCE")
    return Table(
        caption=f"{len(rollouts)} rollouts. C3's protocol compares imagined frame k with true "
        "frame k + 1 and counts the context; the other columns compare frame k with frame k, and "
        "pool the rollouts.",
        columns=["epsilon", *(f"C3's {n}" for n in names), *(f"{n}, frame k" for n in names)],
        rows=rows,
    ).to_text()
