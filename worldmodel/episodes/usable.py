"""Usable episodes: those that a model can read, and how the others are refused or left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from worldmodel.datasets.dataset import Dataset
from worldmodel.episodes.load import as_sentence, matching_cameras, naming, read_frames
from worldmodel.model import WorldModel

LOG = logging.getLogger(__name__)
MOST_NAMED = 20
"""Episodes left out that are named one by one."""


def usable_episodes(
    model: WorldModel,
    dataset: Dataset,
    names: Sequence[str],
    *,
    skip_bad: bool,
    decode: bool = True,
) -> tuple[list[str], dict[str, str]]:
    """Episodes that can be read, and name -> reason of those that cannot.

    Args:
        model: The world model that is to read them.
        dataset: Data set of the episodes.
        names: Ids of the episodes.
        skip_bad: Decode every frame, and leave out episodes that cannot be read. Otherwise only the
            summaries are read.
        decode: False: only the summaries are read, whatever `skip_bad` says.

    Raises:
        ValueError: an episode cannot be read and `skip_bad` is false, or none can be read.
    """
    usable, left_out = [], {}
    cameras, _ = matching_cameras(model, dataset)
    for name in names:
        try:
            dataset.summary(name)
            if skip_bad and decode:
                read_frames(model, dataset.episode(name), cameras)
        except (ValueError, OSError) as error:
            if not skip_bad:
                with naming(name):
                    raise
            left_out[name] = as_sentence(error)
        else:
            usable.append(name)
    if names and not usable:
        raise ValueError(
            f"None of the {len(names)} episodes of {dataset.path} can be used; the first: "
            f"{next(iter(left_out.values()))}"
        )
    _log_left_out(dataset, names, left_out)
    return usable, left_out


def _log_left_out(dataset: Dataset, names: Sequence[str], left_out: dict[str, str]) -> None:
    """Count and name the episodes that are left out."""
    if not left_out:
        return
    LOG.warning(
        "note: %d of %d episodes of %s cannot be used and are left out:",
        len(left_out), len(names), dataset.path,
    )  # fmt: skip
    for name, reason in list(left_out.items())[:MOST_NAMED]:
        LOG.warning("note: left out %s: %s", name, reason)
    if len(left_out) > MOST_NAMED:
        LOG.warning("note: left out, too: %s", ", ".join(list(left_out)[MOST_NAMED:]))
