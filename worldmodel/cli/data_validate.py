"""Check every episode of a dataset folder.

Errors would corrupt training: episodes that cannot be read or decoded, action rows that do not
match the frames, NaN, views that freeze while the arm moves. Warnings need a look: black views,
wrong rate tags, missing instructions, idle arms, duplicates. Exit code 1 if there are errors.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from worldmodel.datasets.validate import Finding

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel data validate`."""

    path: tyro.conf.Positional[Path]
    """Folder of a dataset."""
    action_spec: Path | None = None
    """TOML file that declares the pose columns of a LeRobot dataset whose own metadata do not:
    `columns` and `gripper`; `data info` prints a draft."""
    json: bool = False
    """Print all findings as JSON; the table has one line per error and one per other check."""


def run(command: Command) -> int:
    """Print the findings; return 1 if any is an error."""
    from tqdm import tqdm

    from worldmodel.datasets.open_dataset import open_dataset
    from worldmodel.datasets.validate import dataset_findings, validate

    dataset = open_dataset(command.path, action_spec=command.action_spec)
    progress = tqdm(validate(dataset), "validate", total=len(dataset), unit="episode")
    findings = [*dataset_findings(dataset)]
    findings += [finding for found in progress for finding in found]
    num_errors = sum(finding.severity == "error" for finding in findings)
    if command.json:
        print(json.dumps(as_json(len(dataset), num_errors, findings), indent=2))
    else:
        summary = f"{command.path}: {len(dataset)} episodes, {num_errors} errors"
        print("\n".join([*as_lines(findings), summary]))
    return 1 if num_errors else 0


def as_json(num_episodes: int, num_errors: int, findings: Sequence[Finding]) -> dict[str, object]:
    """Counts and all findings as JSON values."""
    return {
        "num_episodes": num_episodes,
        "num_errors": num_errors,
        "findings": [asdict(finding) for finding in findings],
    }


def as_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Table of findings, worst first: errors one by one, others grouped by check."""
    groups: dict[tuple[int, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        alone = finding.episode_id if finding.severity == "error" else ""
        groups[SEVERITIES.index(finding.severity), finding.check, alone].append(finding)
    if not groups:
        return
    yield f"{'severity':<8}  {'check':<17}  episodes  first"
    for (severity, check, _), found in sorted(groups.items(), key=lambda group: group[0][:2]):
        episodes = len({finding.episode_id for finding in found})
        where = f"{found[0].episode_id}: " if found[0].episode_id else ""
        first = f"{where}{' '.join(found[0].message.split())}"
        yield f"{SEVERITIES[severity]:<8}  {check:<17}  {episodes:>8}  {first}"
