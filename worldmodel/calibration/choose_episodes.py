"""Choice of calibration episodes: held-out ones set thresholds, familiar ones are the reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodel.calibration.calibrated import read_record
from worldmodel.datasets.dataset import Dataset
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import START

LOG = logging.getLogger(__name__)
MAX_REFERENCE = 200
"""Reference episodes used of a larger data set, evenly spaced: rare colours need many."""


def trained_on(model: WorldModel, dataset: Dataset) -> frozenset[str]:
    """Ids of the episodes of a data set that some part of the model was trained on.

    The training store is known by its name, and what it was converted from by its path. A head may
    have learned from other episodes than the model it was put on.
    """
    seen: set[str] = set()
    provenance = model.config.provenance
    while provenance:
        source = provenance.get("data_attributes", {}).get("source", {})
        names = {provenance.get("data"), source.get("path")}
        if dataset.path.resolve().name in names or str(dataset.path.resolve()) in names:
            seen |= {*provenance["split"]["dynamics"], *provenance["split"]["confidence"]}
        provenance = provenance.get("starts_from", {})
    return frozenset(seen)


def long_enough(dataset: Dataset, names: Sequence[str], *, start: int = START) -> list[str]:
    """The episodes that leave something to imagine after the first `start` frames.

    Raises:
        ValueError: if there are none.
    """
    kept = [name for name in names if dataset.summary(name).num_frames > start]
    if names and not kept:
        raise ValueError(
            f"No episode of {dataset.path} has more than {start} frames: nothing to imagine."
        )
    if len(kept) < len(names):
        LOG.warning(
            "note: %d episodes of %s have %d frames or fewer and are left out.",
            len(names) - len(kept), dataset.path, start,
        )  # fmt: skip
    return kept


def warn_if_seen(model: WorldModel, dataset: Dataset, names: Sequence[str], monitor: Path) -> None:
    """Warn if the model or its monitor knows some of the episodes."""
    record = read_record(monitor)
    fitted = {
        name
        for part, data in (("calibration", "data"), ("reference", "reference_data"))
        if Path(record.get(data, "")).name == dataset.path.name
        for name in record[part]
    }
    for seen, purpose in ((trained_on(model, dataset), "train"), (fitted, "calibrate")):
        if count := len(seen & set(names)):
            LOG.warning(
                "note: %d of these %d episodes helped to %s the model; on them it looks better.",
                count, len(names), purpose,
            )  # fmt: skip


def untouched_episodes(model: WorldModel, dataset: Dataset) -> list[str]:
    """Ids of the episodes that no part of the model was trained on.

    Raises:
        ValueError: if there are none.
    """
    seen = trained_on(model, dataset)
    names = long_enough(dataset, [name for name in dataset.episode_ids if name not in seen])
    if not names:
        raise ValueError(
            f"{dataset.path} holds no episode that the model was not trained on; calibrate on "
            "other episodes."
        )
    return names


def reference_episodes(model: WorldModel, dataset: Dataset) -> list[str]:
    """Ids of episodes that count as familiar: those the dynamics learned from, else all."""
    names = list(dataset.episode_ids)
    if trained_on(model, dataset):
        learned = set(model.config.provenance["split"]["dynamics"])
        names = [name for name in names if name in learned]
    names = long_enough(dataset, names)
    chosen = np.linspace(0, len(names) - 1, min(len(names), MAX_REFERENCE)).round().astype(int)
    return [names[i] for i in chosen]


@dataclass(frozen=True)
class Plan:
    """Which episodes set the thresholds, and which count as familiar."""

    data: Dataset
    calibration: Sequence[str]
    reference_data: Dataset
    reference: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.reference) < 2:
            raise ValueError(
                "The monitor needs at least 2 familiar episodes to compare with; "
                f"{self.reference_data.path} gives {len(self.reference)}."
            )


def plan_calibration(model: WorldModel, data: Dataset, reference: Dataset | None = None) -> Plan:
    """Choose episodes so that no threshold rests on one that the model, or a channel, has seen.

    Raises:
        ValueError: if too few are left, or an episode would be on both sides.
    """
    names = untouched_episodes(model, data)
    if reference is None and trained_on(model, data):
        reference = data
    if reference is None:
        return Plan(data, names[1::2], data, names[::2])
    familiar = reference_episodes(model, reference)
    same = reference.path.resolve() == data.path.resolve()
    if same and set(familiar) & set(names):
        raise ValueError(
            "`reference` must hold other episodes than `data`; without it, every second episode "
            "counts as familiar."
        )
    return Plan(data, names, reference, familiar)
