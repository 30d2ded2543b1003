"""Validation of every episode of a dataset; a bad episode does not stop it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np

from worldmodel.datasets.dataset import Dataset, notes_of, undeclared_of
from worldmodel.datasets.episode_checks import (
    Issue,
    Severity,
    row_issues,
    view_issues,
    view_statistics,
)
from worldmodel.datasets.trajectory import Frames, Trajectory
from worldmodel.datasets.video import VideoFrames


@dataclass(frozen=True)
class Finding:
    """An issue of one episode."""

    episode_id: str
    check: str
    severity: Severity
    """"error": makes training wrong. "warning": worth a look. "info": the reader deals with it."""
    message: str


def validate(dataset: Dataset) -> Iterator[list[Finding]]:
    """Yield the findings of each episode; decodes every frame once."""
    seen: dict[bytes, str] = {}
    for episode_id in dataset.episode_ids:
        issues = episode_issues(dataset, episode_id, seen)
        yield [Finding(episode_id, i.check, i.severity, i.message) for i in issues]


def dataset_findings(dataset: Dataset) -> Iterator[Finding]:
    """Findings on the data set as a whole: undeclared actions, and what its reader left out."""
    if undeclared := undeclared_of(dataset):
        yield Finding("", "undeclared", "error", undeclared)
    for note in notes_of(dataset):
        yield Finding("", "left-out", "info", note)


def episode_issues(dataset: Dataset, episode_id: str, seen: dict[bytes, str]) -> Iterator[Issue]:
    """Issues of one episode; `seen` collects digests to find duplicates."""
    try:
        trajectory = dataset.episode(episode_id)
    except (ValueError, OSError) as error:
        yield Issue("unreadable", "error", str(error))
        return
    for note in trajectory.notes:
        yield Issue("left-out", "info", note)
    yield from row_issues(trajectory)
    for camera, frames in trajectory.frames.items():
        try:
            yield from rate_issues(camera, frames, trajectory.rate_hz)
            yield from view_issues(camera, view_statistics(frames), trajectory)
        except (ValueError, OSError) as error:
            yield Issue("undecodable", "error", str(error))
            return
    twin = seen.setdefault(digest(trajectory), episode_id)
    if twin != episode_id:
        message = f"It equals {twin}: do not hold out one and train on the other."
        yield Issue("duplicate", "warning", message)


def rate_issues(camera: str, frames: Frames, rate_hz: float) -> Iterator[Issue]:
    """Video whose frame rate tag contradicts the rate of the data."""
    if not isinstance(frames, VideoFrames):
        return
    with av.open(str(frames.path)) as container:
        tag = float(container.streams.video[0].average_rate or 0)
    if not np.isclose(tag, rate_hz, rtol=0.01):
        message = f"{camera}: the video says {tag:g} frames per second, the data are {rate_hz:g}."
        yield Issue("rate-tag", "warning", message)


def digest(trajectory: Trajectory) -> bytes:
    """Digest of the actions and the first frames, to find duplicates."""
    sha = hashlib.sha256(trajectory.actions.tobytes())
    for frames in trajectory.frames.values():
        sha.update(frames[0:1].tobytes())
    return sha.digest()
