"""Episodes of any readable data set, made ready for a model: its cameras, its size, its actions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from worldmodel.datasets.dataset import Dataset
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.resampling import resample, resampled
from worldmodel.datasets.trajectory import Frames, Trajectory
from worldmodel.episodes.clips import labelled, views_of
from worldmodel.episodes.episode import Episode, to_model_size
from worldmodel.model import WorldModel

LOG = logging.getLogger(__name__)
CHUNK = 64
"""Frames decoded and made small at once."""


def open_for(model: WorldModel, path: Path) -> Dataset:
    """A data set, of any form that can be read, at the model's rate.

    Raises:
        ValueError: printing both specs, if its rate is no whole multiple of the model's.
    """
    return resampled(open_dataset(path), model.config.action_spec)


def select_episodes(
    dataset: Dataset, *, only: str | None = None, limit: int | None = None
) -> list[str]:
    """Ids that match the shell pattern `only` ("train/*"), at most the first `limit` of them.

    Raises:
        ValueError: if that leaves none.
    """
    names = [name for name in dataset.episode_ids if only is None or fnmatchcase(name, only)]
    if not names:
        first = f", the first {dataset.episode_ids[0]!r}" if len(dataset) else ""
        raise ValueError(
            f"No episode of {dataset.path} matches {only or '*'!r}; it holds {len(dataset)}{first}."
        )
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1 episode, got {limit}.")
    return names[:limit]


def choose_cameras(model: WorldModel, dataset: Dataset) -> tuple[str, ...]:
    """The model's own cameras if the data set has any of them, else as many of its first.

    Warns if one is missing or stands in for another.

    Raises:
        ValueError: if it has none of them, and too few others.
    """
    wanted, found = model.config.cameras, dataset.cameras
    if missing := [name for name in wanted if name not in found]:
        if len(missing) == len(wanted):
            return stand_ins(wanted, dataset)
        LOG.warning("note: %s has no cameras named %s.", dataset.path, ", ".join(missing))
    return wanted


def stand_ins(wanted: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """As many of a data set's first cameras as are wanted."""
    found = dataset.cameras
    if len(found) < len(wanted):
        raise ValueError(
            f"The model needs {len(wanted)} cameras, {', '.join(wanted)}; "
            f"{dataset.path} has {len(found)}: {', '.join(found)}."
        )
    taken = found[: len(wanted)]
    LOG.warning(
        "note: %s has no cameras named %s; %s stand in for them.",
        dataset.path, ", ".join(wanted), ", ".join(taken),
    )  # fmt: skip
    return taken


def shrunk(frames: Frames, model: WorldModel) -> UInt8[Tensor, "time height width 3"]:
    """All frames of a camera at the model's size."""
    parts = [
        to_model_size(torch.tensor(frames[start : start + CHUNK]), model)
        for start in range(0, len(frames), CHUNK)
    ]
    return torch.cat(parts)


def load_episode(model: WorldModel, trajectory: Trajectory, cameras: Sequence[str]) -> Episode:
    """A trajectory at the model's rate and size, with its latents and the model's actions.

    Raises:
        ValueError: printing both specs, if its actions or rate are not the model's and no lossless
            conversion exists.
    """
    trajectory = resample(trajectory, model.config.action_spec)
    view_mask = views_of(trajectory, cameras)
    views = {c: shrunk(trajectory.frames[c], model) for c in cameras if c in trajectory.frames}
    first = next(iter(views))
    black = torch.zeros_like(views[first])
    frames = torch.stack([views.get(name, black) for name in cameras], dim=1)
    latents = model.encode(frames, view_valid=view_mask)[None].half().cpu().clone()
    batch = labelled(latents, trajectory, cameras)
    height, width = trajectory.frames[first].size
    model_height, model_width = model.config.image_size
    stretch = width * model_height / (height * model_width)
    return Episode(trajectory.episode_id, frames, batch, stretch)


def load_named(model: WorldModel, dataset: Dataset, names: Sequence[str]) -> list[Episode]:
    """Some episodes of a data set, ready for the model."""
    cameras = choose_cameras(model, dataset)
    with tqdm(names, "episodes", unit="episode") as bar:
        return [load_episode(model, dataset.episode(name), cameras) for name in bar]


def load_episodes(
    model: WorldModel, dataset: Dataset, *, only: str | None = None, limit: int | None = None
) -> list[Episode]:
    """The episodes that `select_episodes` chooses, ready for the model."""
    return load_named(model, dataset, select_episodes(dataset, only=only, limit=limit))
