"""Loading episodes of a data set for a model: its cameras, image size, actions and rate."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from worldmodel.datasets.clip_dataset import found_cameras
from worldmodel.datasets.dataset import Dataset, notes_of, require_declared
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.resampling import resample, resampled
from worldmodel.datasets.trajectory import Frames, Trajectory
from worldmodel.episodes.clips import to_latent_batch, view_mask_of
from worldmodel.episodes.episode import Episode, to_model_size
from worldmodel.model import WorldModel

LOG = logging.getLogger(__name__)
CHUNK = 64
"""Number of frames decoded and resized at once."""


def open_for(model: WorldModel, path: Path) -> Dataset:
    """Open a data set of any supported format, resampled to the model's rate.

    Notes of the reader on what it left out are logged.

    Raises:
        ValueError: Its rate is not an integer multiple of the model's (the message has both specs),
            or its source does not declare what its actions mean.
    """
    dataset = open_dataset(path)
    require_declared(dataset)
    for note in notes_of(dataset):
        LOG.warning("note: %s", note)
    own = renderer_of(getattr(dataset, "attributes", {}))
    warn_of_renderer(str(path), own, trained_renderer(model), "the model was trained")
    return resampled(dataset, model.config.action_spec)


def renderer_of(attributes: Mapping[str, Any]) -> str | None:
    """Renderer in the attributes of a store, or of the store it was converted from; None: unknown.

    >>> renderer_of({"source_attributes": {"renderer": "ray"}})
    'ray'
    """
    found = attributes.get("renderer", attributes.get("source_attributes", {}).get("renderer"))
    return found if isinstance(found, str) else None


def trained_renderer(model: WorldModel) -> str | None:
    """Renderer of the frames that a model was trained on; None: unknown."""
    return renderer_of(model.config.provenance.get("data_attributes", {}))


def warn_of_renderer(source: str, own: str | None, other: str | None, purpose: str) -> None:
    """Warn if the frames of `source` are from another renderer than `other`, if both are known."""
    if own and other and own != other:
        LOG.warning(
            "note: the frames of %s are from the renderer %r, but %s on frames of %r; another "
            "renderer looks like a shift and may alarm.",
            source, own, purpose, other,
        )  # fmt: skip


def select_episodes(
    dataset: Dataset, *, only: str | None = None, limit: int | None = None
) -> list[str]:
    """Ids that match the shell pattern `only` (such as "train/*"), at most the first `limit`.

    Raises:
        ValueError: No episode matches, or `limit` is less than 1.
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


def choose_cameras(model: WorldModel, source: Dataset | Trajectory) -> tuple[str, ...]:
    """Cameras of a data set or episode to use for the model's cameras.

    These are the model's cameras if the source has any of them, else the source's first cameras, as
    many as the model has. Warns if a camera is missing or substituted.

    Raises:
        ValueError: The source has none of the model's cameras and fewer cameras than the model.
    """
    cameras, note = matching_cameras(model, source)
    if note:
        LOG.warning("note: %s", note)
    return cameras


def matching_cameras(
    model: WorldModel, source: Dataset | Trajectory
) -> tuple[tuple[str, ...], str | None]:
    """As `choose_cameras`, and a sentence on missing or substituted cameras, if there are any."""
    cameras = model.config.cameras
    if isinstance(source, Trajectory):
        name, available = f"Episode {source.episode_id!r}", tuple(source.frames)
    else:
        name, available = str(source.path), source.cameras
    missing = [camera for camera in cameras if camera not in available]
    if len(missing) < len(cameras):
        note = f"{name} has no cameras named {', '.join(missing)}." if missing else None
        return cameras, note
    if len(available) < len(cameras):
        raise ValueError(
            f"The model needs {len(cameras)} cameras, {', '.join(cameras)}; "
            f"{name} has {len(available)}: {', '.join(available)}."
        )
    substitutes = available[: len(cameras)]
    return substitutes, (
        f"{name} has no cameras named {', '.join(cameras)}; using {', '.join(substitutes)} instead."
    )


def resize_video(frames: Frames, model: WorldModel) -> UInt8[Tensor, "time height width 3"]:
    """Decode all frames of a camera and resize them to the model's image size."""
    parts = [
        to_model_size(torch.tensor(frames[start : start + CHUNK]), model)
        for start in range(0, len(frames), CHUNK)
    ]
    return torch.cat(parts)


def load_episode(
    model: WorldModel, trajectory: Trajectory, cameras: Sequence[str] | None = None
) -> Episode:
    """Resample, resize and encode an episode for a model.

    Args:
        model: The world model.
        trajectory: An episode of a data set, such as `dataset.episode(0)`.
        cameras: One camera of the episode per camera of the model, in the model's order; default:
            `choose_cameras(model, trajectory)`.

    Raises:
        ValueError: The episode lacks the cameras, or its actions or rate have no lossless
            conversion to the model's; the message then has both specs.
    """
    cameras = choose_cameras(model, trajectory) if cameras is None else cameras
    trajectory, frames = read_frames(model, trajectory, cameras)
    view_mask = view_mask_of(trajectory, cameras)
    latents = model.encode(frames, view_valid=view_mask)[None].half().cpu().clone()
    batch = to_latent_batch(latents, trajectory, cameras, model.config)
    shown = next(camera for camera in cameras if camera in trajectory.frames)
    height, width = trajectory.frames[shown].size
    model_height, model_width = model.config.image_size
    stretch = width * model_height / (height * model_width)
    return Episode(trajectory.episode_id, frames, batch, stretch)


def read_frames(
    model: WorldModel, trajectory: Trajectory, cameras: Sequence[str]
) -> tuple[Trajectory, UInt8[Tensor, "time view height width 3"]]:
    """Resampled episode, and its frames at the model's size; missing cameras are black.

    Raises:
        ValueError: As `load_episode`.
    """
    trajectory = resample(trajectory, model.config.action_spec)
    found = found_cameras(trajectory, cameras)
    views = {camera: resize_video(trajectory.frames[camera], model) for camera in found}
    black = torch.zeros_like(views[found[0]])
    return trajectory, torch.stack([views.get(camera, black) for camera in cameras], dim=1)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Context manager whose errors name an episode and the option that leaves it out.

    Raises:
        ValueError: instead of a `ValueError` or `OSError` inside.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(
            f"Episode {name!r} cannot be used: {as_sentence(error)} `--skip-bad` leaves such "
            "episodes out."
        ) from error


def as_sentence(error: BaseException) -> str:
    """Message of an error in one line that ends with a full stop.

    >>> as_sentence(ValueError("a  fault"))
    'a fault.'
    """
    text = " ".join(str(error).split())
    return text if text.endswith(".") else f"{text}."


def load_by_name(model: WorldModel, dataset: Dataset, name: str, cameras: Sequence[str]) -> Episode:
    """Load an episode of a data set, and log what its reader left out.

    Raises:
        ValueError: It cannot be read or converted; the message names it.
    """
    with naming(name):
        trajectory = dataset.episode(name)
        for note in trajectory.notes:
            LOG.warning("note: %s: %s", name, note)
        return load_episode(model, trajectory, cameras)


def load_named(model: WorldModel, dataset: Dataset, names: Sequence[str]) -> list[Episode]:
    """Load the episodes `names` of a data set for a model."""
    cameras = choose_cameras(model, dataset)
    with tqdm(names, "episodes", unit="episode") as bar:
        return [load_by_name(model, dataset, name, cameras) for name in bar]


def load_episodes(
    model: WorldModel, dataset: Dataset, *, only: str | None = None, limit: int | None = None
) -> list[Episode]:
    """Load the episodes that `select_episodes` returns for a model."""
    return load_named(model, dataset, select_episodes(dataset, only=only, limit=limit))
