"""Run every part on simulated held-out episodes: rollouts, confidence, monitor, policies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from worldmodel.cli._device import AUTOMATIC, Networks
from worldmodel.demo_config import DemoConfig


@dataclass(frozen=True, kw_only=True)
class Command(DemoConfig):
    """Options of `worldmodel demo`."""

    out: Path = Path("runs/demo/report.html")
    """HTML report to write."""
    json: bool = False
    """Print the figures as JSON instead of tables."""
    networks: Networks = AUTOMATIC


def run(command: Command) -> int:
    """Run the demo, print its tables and write the report."""
    from worldmodel.calibration.calibrated import Checkpoint
    from worldmodel.certificate import certificate_note, log_certificate
    from worldmodel.demo import run_demo
    from worldmodel.report.demo_page import false_alarms, sections, tables
    from worldmodel.report.html import Section, Text, write_report

    checkpoint = Checkpoint.load(
        command.model, stages=("confidence", "judge"), **command.networks.placement
    )
    log_certificate(checkpoint.folder)
    result = run_demo(checkpoint, command)
    title = f"worldmodel demo: {command.model} on {command.task}"
    answer = Section("What may be trusted", [Text(certificate_note(checkpoint.folder))])
    found = sections(checkpoint.model, checkpoint.calibration, result)
    report = write_report(command.out, title, [answer, *found])
    if command.json:
        print(json.dumps({**result.as_dict(), "report": str(report)}))
        return 0
    for table in tables(result, checkpoint.model.config.rate_hz):
        print(f"{table.to_text()}\n")
    print(false_alarms(result))
    print(f"Report: {report}")
    return 0
