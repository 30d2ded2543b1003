"""DROID as Ctrl-World stores it: one JSON annotation and three mp4 files per episode, 5 Hz.

    annotation/<split>/<id>.json
    videos/<split>/<id>/{0,1,2}.mp4

`states` holds every third row of the 15 Hz recording, one per video frame: x y z (m), roll pitch
yaw (extrinsic xyz, rad, robot base), gripper (1 = closed). The raw 15 Hz rows stay in `signals`.
Canonical actions are the motion achieved between two states (see `poses`), not the commanded
targets, which lead it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from worldmodel.datasets.actions import ActionSpec, checked_rows
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.file_names import below
from worldmodel.datasets.poses import AchievedActions, PoseStates
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames, count_frames, matched_rows
from worldmodel.structured_files import Count, converted, read_json

FORM = "annotation-json"
MARK = "annotation/<split>/<id>.json"
CAMERAS = ("exterior_1_left", "exterior_2_left", "wrist_left")
MAX_TRIED = 20
"""Annotations that are read to recognise the form."""
SIGNALS = ("states", "joints", "observation.", "action.")
"""Key prefixes of numeric arrays."""

SPEC = ActionSpec(
    name="DROID poses",
    space="absolute_pose",
    frame="base",
    rotation="euler_xyz",
    gripper="closed_is_one",
    dim=7,
    scale=(1.0,) * 7,
    rate_hz=5.0,
)
"""Poses at 5 Hz; the action of a step is the pose reached at its end."""


class VideoEntry(msgspec.Struct):
    """Video of one camera."""

    video_path: str
    """Relative to the data set's folder."""


class Annotation(msgspec.Struct):
    """Keys of an annotation that the reader needs; its arrays are read apart."""

    texts: list[str]
    success: Literal[0, 1] | bool
    video_length: Count
    videos: list[VideoEntry]
    states: list[Any]


def matches(path: Path) -> bool:
    """Whether a folder has this form."""
    return any(path.glob("annotation/*/*.json"))


def open_annotation_json(path: Path) -> FileDataset:
    """Open a folder of annotations; reads the first one to check the format."""
    files = sorted(
        path.glob("annotation/*/*.json"),
        key=lambda file: (file.parent.name, len(file.stem), file.stem),
    )
    require_one_readable(files, _read)
    return FileDataset(
        form=FORM,
        path=path,
        cameras=CAMERAS,
        action_spec=SPEC,
        episode_ids=tuple(f"{file.parent.name}/{file.stem}" for file in files),
        load=partial(_load, path),
        summarize=partial(_summarize, path),
    )


def require_one_readable(files: Sequence[Path], read: Callable[[Path], object]) -> None:
    """Raise the first file's error if none of the first files can be read.

    One damaged file must not hide the other episodes.
    """
    first: Exception | None = None
    for file in files[:MAX_TRIED]:
        try:
            read(file)
            return
        except (OSError, ValueError) as error:
            first = first or error
    if first:
        raise first


def _annotation_file(root: Path, episode_id: str) -> Path:
    return root / "annotation" / f"{episode_id}.json"


def _read(file: Path) -> tuple[Annotation, dict[str, Any]]:
    """Checked keys and all keys of an annotation."""
    content = read_json(file, dict)
    advice = (
        "only annotations as Ctrl-World writes them for DROID, with one 7-number pose per frame in "
        "`states`, can be read"
    )
    return converted(content, Annotation, str(file), advice), content


def _summary(annotation: Annotation) -> EpisodeSummary:
    return EpisodeSummary(
        num_frames=annotation.video_length,
        instruction=annotation.texts[0] if annotation.texts else "",
        success=bool(annotation.success),
    )


def _summarize(root: Path, episode_id: str) -> EpisodeSummary:
    return _summary(_read(_annotation_file(root, episode_id))[0])


def _load(root: Path, episode_id: str) -> Trajectory:
    file = _annotation_file(root, episode_id)
    annotation, content = _read(file)
    summary = _summary(annotation)
    try:
        signals = _signals(content)
        poses = checked_rows(signals["states"], dim=7, what="states")
        if len(poses) != summary.num_frames:
            raise ValueError(f"{len(poses)} `states` for {summary.num_frames} frames.")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    videos = _videos(root, file, annotation)
    try:
        num_rows, notes = matched_rows(
            len(poses), {camera: count_frames(mp4) for camera, mp4 in videos.items()}
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    poses = poses[:num_rows]
    absent = [camera for camera in CAMERAS if camera not in videos]
    notes += tuple(f"{camera} is missing: its video does not exist." for camera in absent)
    actions, valid = AchievedActions(SPEC.gripper)(poses)
    return Trajectory(
        episode_id=episode_id,
        source=f"{FORM} {root}",
        frames={camera: VideoFrames(mp4, num_rows) for camera, mp4 in videos.items()},
        actions=actions,
        action_valid=valid,
        states=PoseStates(SPEC.gripper)(poses),
        action_spec=SPEC,
        instruction=summary.instruction,
        rate_hz=SPEC.rate_hz,
        success=summary.success,
        signals=signals,
        notes=notes,
    )


def _signals(annotation: dict[str, Any]) -> dict[str, np.ndarray]:
    """Numeric arrays by their original names, with a row per frame or 15 rows per second."""
    signals = {}
    for key, value in annotation.items():
        if key.startswith(SIGNALS):
            try:
                signals[key] = np.array(value, np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"`{key}` is not an array of numbers ({error}).") from error
    return signals


def _videos(root: Path, file: Path, annotation: Annotation) -> dict[str, Path]:
    """Existing mp4 per camera; the number in the file name identifies the camera."""
    mp4s = [below(root, video.video_path, str(file)) for video in annotation.videos]
    numbers = [int(mp4.stem) if mp4.stem.isdecimal() else -1 for mp4 in mp4s]
    if not set(numbers) <= set(range(len(CAMERAS))) or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"{file} lists the videos {', '.join(mp4.name for mp4 in mp4s)}, expected 0.mp4, 1.mp4 "
            f"and 2.mp4 for {', '.join(CAMERAS)}."
        )
    found = {CAMERAS[i]: mp4 for i, mp4 in sorted(zip(numbers, mp4s, strict=True)) if mp4.is_file()}
    if not found:
        raise ValueError(f"{file}: none of its videos exists.")
    return found
