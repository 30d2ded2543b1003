"""DROID as Ctrl-World stores it: one JSON annotation and three mp4 files per episode, 5 Hz.

    annotation/<split>/<id>.json
    videos/<split>/<id>/{0,1,2}.mp4

`states` holds every third row of the 15 Hz recording, one per video frame: x y z (m), roll pitch
yaw (extrinsic xyz, rad, robot base), gripper (1 = closed). The raw 15 Hz rows stay in `signals`.
Canonical actions are the motion achieved between two states (see `poses`), not the commanded
targets, which lead it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.datasets.actions import ActionSpec, checked_rows
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.poses import AchievedActions, PoseStates
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames, count_frames

FORM = "annotation-json"
MARK = "annotation/<split>/<id>.json"
CAMERAS = ("exterior_1_left", "exterior_2_left", "wrist_left")
REQUIRED = ("texts", "success", "video_length", "videos", "states")
NOT_SIGNALS = (
    "texts",
    "episode_id",
    "success",
    "video_length",
    "state_length",
    "raw_length",
    "videos",
    "latent_videos",
)

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


def matches(path: Path) -> bool:
    """Whether a folder has this form."""
    return any(path.glob("annotation/*/*.json"))


def open_annotation_json(path: Path) -> FileDataset:
    """Open a folder of annotations; the first is read to see that they are of the right kind."""
    files = sorted(
        path.glob("annotation/*/*.json"),
        key=lambda file: (file.parent.name, len(file.stem), file.stem),
    )
    _read(files[0])
    return FileDataset(
        form=FORM,
        path=path,
        cameras=CAMERAS,
        action_spec=SPEC,
        episode_ids=tuple(f"{file.parent.name}/{file.stem}" for file in files),
        load=partial(_load, path),
        summarize=partial(_summarize, path),
    )


def _annotation_file(root: Path, episode_id: str) -> Path:
    return root / "annotation" / f"{episode_id}.json"


def _read(file: Path) -> dict[str, Any]:
    """The annotation, with every key a trajectory needs."""
    try:
        annotation = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); copy it again.") from error
    missing = (
        [key for key in REQUIRED if key not in annotation]
        if isinstance(annotation, dict)
        else list(REQUIRED)
    )
    if missing:
        raise ValueError(
            f"{file} lacks {', '.join(f'`{key}`' for key in missing)}; only annotations with one "
            "pose per frame in `states`, as Ctrl-World writes them for DROID, can be read."
        )
    return annotation


def _summarize(root: Path, episode_id: str) -> EpisodeSummary:
    annotation = _read(_annotation_file(root, episode_id))
    texts = annotation["texts"]
    return EpisodeSummary(
        num_frames=int(annotation["video_length"]),
        instruction=str(texts[0]) if texts else "",
        success=bool(annotation["success"]),
    )


def _load(root: Path, episode_id: str) -> Trajectory:
    file = _annotation_file(root, episode_id)
    annotation, summary = _read(file), _summarize(root, episode_id)
    try:
        poses = checked_rows(annotation["states"], dim=7, what="states")
        signals = {
            key: np.array(value, np.float64)
            for key, value in annotation.items()
            if key not in NOT_SIGNALS
        }
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    actions, valid = AchievedActions(SPEC.gripper)(poses)
    return Trajectory(
        episode_id=episode_id,
        source=f"{FORM} {root}",
        frames=_frames(root, file, annotation, summary.num_frames),
        actions=actions,
        action_valid=valid,
        states=PoseStates(SPEC.gripper)(poses),
        action_spec=SPEC,
        instruction=summary.instruction,
        rate_hz=SPEC.rate_hz,
        success=summary.success,
        signals=signals,
    )


def _frames(
    root: Path, file: Path, annotation: dict[str, Any], num_frames: int
) -> dict[str, VideoFrames]:
    """One video per camera, each as long as the annotation says."""
    videos = annotation["videos"]
    if len(videos) != len(CAMERAS):
        raise ValueError(
            f"{file} lists {len(videos)} `videos`, expected {len(CAMERAS)}: {', '.join(CAMERAS)}."
        )
    if len(annotation["states"]) != num_frames:
        raise ValueError(
            f"{file} has {len(annotation['states'])} rows of `states` for {num_frames} frames."
        )
    frames = {}
    for camera, video in zip(CAMERAS, videos, strict=True):
        mp4 = root / video["video_path"]
        if (found := count_frames(mp4)) != num_frames:
            raise ValueError(
                f"{mp4} holds {found} frames, but {file} declares a `video_length` of {num_frames}."
            )
        frames[camera] = VideoFrames(mp4, num_frames)
    return frames
