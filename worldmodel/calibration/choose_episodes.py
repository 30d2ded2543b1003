"""Choice of the calibration set (held-out episodes) and the reference set (familiar episodes)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldmodel.calibration.calibrated import read_record
from worldmodel.datasets.dataset import Dataset
from worldmodel.episodes.load import renderer_of, warn_of_renderer
from worldmodel.episodes.usable import usable_episodes
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import START

LOG = logging.getLogger(__name__)
MAX_REFERENCE = 200
"""Maximum number of reference episodes, evenly spaced in the data set: rare colours need many."""


def trained_on(model: WorldModel, dataset: Dataset) -> frozenset[str]:
    """Ids of the episodes of a data set that any part of the model was trained on.

    The name identifies the training store, the path identifies the data set that it was converted
    from. The confidence head may be trained on other episodes than its base model.
    """
    seen: set[str] = set()
    provenance = model.config.provenance
    while provenance:
        source = provenance.get("data_attributes", {}).get("source")
        converted_from = source.get("path") if isinstance(source, dict) else None
        names = (provenance.get("data"), converted_from)
        if dataset.path.resolve().name in names or str(dataset.path.resolve()) in names:
            split = provenance.get("split") or {}
            seen |= {*split.get("dynamics", ()), *split.get("confidence", ())}
        provenance = provenance.get("starts_from") or {}
    return frozenset(seen)


def long_enough(dataset: Dataset, names: Sequence[str], *, start: int = START) -> list[str]:
    """Episodes with more than `start` frames.

    Raises:
        ValueError: There are none.
    """
    kept = [name for name in names if dataset.summary(name).num_frames > start]
    if names and not kept:
        raise ValueError(
            f"No episode of {dataset.path} has more than {start} frames, so there is nothing to "
            "imagine; use longer episodes."
        )
    if len(kept) < len(names):
        LOG.warning(
            "note: %d episodes of %s have %d frames or fewer and are left out.",
            len(names) - len(kept), dataset.path, start,
        )  # fmt: skip
    return kept


def warn_if_seen(model: WorldModel, dataset: Dataset, names: Sequence[str], monitor: Path) -> None:
    """Warn if the model or its monitor was fitted on some of the episodes."""
    record = read_record(monitor)
    own = renderer_of(getattr(dataset, "attributes", {}))
    warn_of_renderer(str(dataset.path), own, record.renderer, "the monitor was calibrated")
    parts = ((record.calibration, record.data), (record.reference, record.reference_data))
    fitted = {name for used, data in parts if Path(data).name == dataset.path.name for name in used}
    for seen, purpose in ((trained_on(model, dataset), "train"), (fitted, "calibrate")):
        if count := len(seen & set(names)):
            LOG.warning(
                "note: %d of these %d episodes were used to %s the model; results are optimistic.",
                count, len(names), purpose,
            )  # fmt: skip


def untouched_episodes(
    model: WorldModel, dataset: Dataset, *, skip_bad: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Ids of held-out episodes, which no part of the model was trained on, and of unreadable ones.

    Raises:
        ValueError: There are none.
    """
    seen = trained_on(model, dataset)
    names = [name for name in dataset.episode_ids if name not in seen]
    names, left_out = usable_episodes(model, dataset, names, skip_bad=skip_bad)
    names = long_enough(dataset, names)
    if not names:
        raise ValueError(
            f"{dataset.path} holds no held-out episode: the model was trained on all of them; "
            "calibrate on other episodes."
        )
    return names, left_out


def reference_episodes(
    model: WorldModel, dataset: Dataset, *, skip_bad: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Ids of reference episodes, and of unreadable ones, which are left out.

    They are those the dynamics were trained on, or all if there are none.
    """
    names = list(dataset.episode_ids)
    if trained_on(model, dataset):
        learned = set((model.config.provenance.get("split") or {}).get("dynamics", ()))
        names = [name for name in names if name in learned]
    names, unread = usable_episodes(model, dataset, names, skip_bad=skip_bad, decode=False)
    names = long_enough(dataset, names)
    places = np.linspace(0, len(names) - 1, min(len(names), MAX_REFERENCE)).round().astype(int)
    chosen = [names[i] for i in places]
    chosen, undecoded = usable_episodes(model, dataset, chosen, skip_bad=skip_bad)
    return chosen, unread | undecoded


@dataclass(frozen=True)
class Plan:
    """Calibration episodes, which set the thresholds, and reference episodes."""

    data: Dataset
    calibration: Sequence[str]
    reference_data: Dataset
    reference: Sequence[str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Episode that cannot be read -> reason."""

    def __post_init__(self) -> None:
        if len(self.reference) < 2:
            raise ValueError(
                "`reference` needs at least 2 episodes; "
                f"{self.reference_data.path} has {len(self.reference)}."
            )


def plan_calibration(
    model: WorldModel, data: Dataset, reference: Dataset | None = None, *, skip_bad: bool = False
) -> Plan:
    """Choose episodes such that thresholds depend only on episodes unseen by model and channels.

    With `skip_bad`, episodes that cannot be read are left out first, so that the alarm rates are
    those that the remaining episodes support.

    Raises:
        ValueError: Too few episodes are left, or an episode is in both sets.
    """
    names, left_out = untouched_episodes(model, data, skip_bad=skip_bad)
    if reference is None and trained_on(model, data):
        reference = data
    if reference is None:
        return Plan(data, names[1::2], data, names[::2], left_out)
    reference_names, also = reference_episodes(model, reference, skip_bad=skip_bad)
    same = reference.path.resolve() == data.path.resolve()
    if same and set(reference_names) & set(names):
        raise ValueError(
            "`reference` must hold other episodes than `data`; without `reference`, every second "
            "episode of `data` is a reference episode."
        )
    return Plan(data, names, reference, reference_names, left_out | also)
