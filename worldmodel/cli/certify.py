"""Measure what a model may be used for on held-out episodes, and write its certificate."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from worldmodel.cli._device import AUTOMATIC, Networks

if TYPE_CHECKING:
    from worldmodel.datasets.dataset import Dataset
    from worldmodel.episodes.episode import Episode
    from worldmodel.model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel certify`."""

    model: tyro.conf.Positional[str]
    """Folder of a checkpoint, or the name of a shipped one ("tabletop")."""
    data: Path
    """Held-out episodes, in any format that `worldmodel data info` reads. Episodes that the model
    was trained on are left out, and counted."""
    shifted: tuple[Path, ...] = ()
    """Further data sets, such as other scenes: the calibration is measured on each."""
    only: str | None = None
    """Shell pattern of episode names, such as "val/*"; None: all."""
    episodes: int = 60
    """Use at most this many episodes of each data set, from the first."""
    out: Path | None = None
    """Folder to write `certificate.json` into; None: the checkpoint."""
    report: Path | None = None
    """Page to write with the same tables (.html); None: no page."""
    skip_bad: bool = False
    """Leave out episodes that cannot be read, and name them; default: stop at the first."""
    json: bool = False
    """Print the certificate as JSON."""
    networks: Networks = AUTOMATIC


def run(command: Command) -> int:
    """Measure, write the certificate and print its tables; 1 if a use failed."""
    from worldmodel.calibration.calibrated import load_calibration
    from worldmodel.checkpoint import check_trained, checkpoint_folder
    from worldmodel.episodes.load import open_for
    from worldmodel.evaluation.certify import certify
    from worldmodel.model import WorldModel
    from worldmodel.report.certificate_tables import certificate_tables
    from worldmodel.report.html import Block, Section, Text, write_report

    folder = checkpoint_folder(command.model)
    model = WorldModel.load(folder, **command.networks.placement)
    check_trained(model.config.provenance, folder, "dynamics")
    nominal = held_out_episodes(command, model, open_for(model, command.data))
    shifted = {
        path.name: held_out_episodes(command, model, open_for(model, path))
        for path in command.shifted
    }
    calibrated = load_calibration(model, folder) if (folder / "monitor").is_dir() else None
    found = certify(
        model, folder, nominal, data=command.data.name, shifted=shifted, calibrated=calibrated
    )
    found.save(command.out or folder)
    if command.report is not None:
        title = f"Certificate of {folder.name}"
        blocks: list[Block] = [Text(found.sentence()), *certificate_tables(found)]
        write_report(command.report, title, [Section("Uses", blocks)])
    if command.json:
        print(json.dumps(asdict(found)))
    else:
        print(found.sentence())
        for table in certificate_tables(found):
            print(f"\n{table.to_text()}")
    return int(any(use.passed is False for use in found.uses.values()))


def held_out_episodes(command: Command, model: WorldModel, dataset: Dataset) -> list[Episode]:
    """Episodes of a data set that the model was not trained on."""
    from worldmodel.calibration.choose_episodes import trained_on
    from worldmodel.episodes.load import load_named, select_episodes
    from worldmodel.episodes.usable import usable_episodes

    chosen = select_episodes(dataset, only=command.only)
    seen = trained_on(model, dataset)
    names = [name for name in chosen if name not in seen]
    if len(names) < len(chosen):
        print(
            f"note: {len(chosen) - len(names)} of {len(chosen)} episodes of {dataset.path} were "
            "left out: the model was trained on them.",
            file=sys.stderr,
        )
    usable, _ = usable_episodes(
        model, dataset, names[: command.episodes], skip_bad=command.skip_bad
    )
    if not usable:
        raise ValueError(f"No episode of {dataset.path} is left to measure the model on.")
    return load_named(model, dataset, usable)
