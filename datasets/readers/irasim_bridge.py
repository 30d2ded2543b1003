"""Bridge as IRASim, Cosmos and C3 read it: one JSON annotation and one mp4 per episode, 5 Hz.

    annotation/<split>/<id>.json
    videos/<split>/<id>/rgb.mp4

`state` [T, 6] is x y z (m), roll pitch yaw (extrinsic xyz, rad, robot base) and
`continuous_gripper_state` [T] the gripper, 1 = open. `action` [T - 1, 7] is the pose change in the
frame of the *gripper* (body frame) and the gripper command, kept in `signals`. Canonical actions
are the motion achieved between two states in the base frame (see `poses`). The success of an
episode is not recorded.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from worldmodel.datasets.actions import checked_rows
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.file_names import below
from worldmodel.datasets.poses import AchievedActions, PoseStates
from worldmodel.datasets.readers.annotation_json import MAX_TRIED, VideoEntry
from worldmodel.datasets.readers.annotation_json import SPEC as DROID
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames, count_frames, matched_rows
from worldmodel.structured_files import read_json

FORM = "irasim-bridge"
MARK = "annotation/<split>/<id>.json with `state` and `continuous_gripper_state`"
CAMERA = "image"
GRIPPER = "continuous_gripper_state"

SPEC = replace(DROID, name="Bridge states", gripper="open_is_one")
"""Poses at 5 Hz; the action of a step is the pose reached at its end."""


class BridgeAnnotation(msgspec.Struct):
    """Keys of an annotation."""

    texts: list[str]
    videos: list[VideoEntry]
    action: list[Any]
    state: list[Any]
    continuous_gripper_state: list[float]


def annotation_files(path: Path) -> list[Path]:
    """Annotation files, sorted by split and number."""
    return sorted(
        path.glob("annotation/*/*.json"),
        key=lambda file: (file.parent.name, len(file.stem), file.stem),
    )


def matches(path: Path) -> bool:
    """Whether the first readable annotation of a folder is of this form."""
    for file in annotation_files(path)[:MAX_TRIED]:
        try:
            return GRIPPER in read_json(file, dict)
        except (OSError, ValueError):
            continue
    return False


def open_irasim_bridge(path: Path) -> FileDataset:
    """Open a folder of annotations."""
    ids = tuple(f"{file.parent.name}/{file.stem}" for file in annotation_files(path))
    return FileDataset(
        form=FORM,
        path=path,
        cameras=(CAMERA,),
        action_spec=SPEC,
        episode_ids=ids,
        load=partial(_load, path),
        summarize=partial(_summarize, path),
    )


def _read(root: Path, episode_id: str) -> tuple[Path, BridgeAnnotation]:
    file = root / "annotation" / f"{episode_id}.json"
    advice = "it must be as IRASim writes it for Bridge"
    return file, read_json(file, BridgeAnnotation, advice)


def _summarize(root: Path, episode_id: str) -> EpisodeSummary:
    _, content = _read(root, episode_id)
    text = content.texts[0] if content.texts else ""
    return EpisodeSummary(num_frames=len(content.state), instruction=text, success=None)


def _load(root: Path, episode_id: str) -> Trajectory:
    file, content = _read(root, episode_id)
    try:
        state = checked_rows(content.state, dim=6, what="state")
        gripper = np.array(content.continuous_gripper_state, np.float64)[:, None]
        stored = checked_rows(content.action, dim=7, what="action")
        if not len(state) == len(gripper) == len(stored) + 1:
            raise ValueError(
                f"{len(state)} `state`, {len(gripper)} `{GRIPPER}` and {len(stored)} `action` "
                "rows; expected T, T and T - 1."
            )
        if len(content.videos) != 1:
            raise ValueError(f"`videos` has {len(content.videos)} entries, expected 1.")
        mp4 = below(root, content.videos[0].video_path, "`videos`")
        num_rows, notes = matched_rows(len(state), {CAMERA: count_frames(mp4)})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    poses = np.concatenate([state, gripper], axis=1)[:num_rows]
    actions, valid = AchievedActions(SPEC.gripper)(poses)
    return Trajectory(
        episode_id=episode_id,
        source=f"{FORM} {root}",
        frames={CAMERA: VideoFrames(mp4, num_rows)},
        actions=actions,
        action_valid=valid,
        states=PoseStates(SPEC.gripper)(poses),
        action_spec=SPEC,
        instruction=_summarize(root, episode_id).instruction,
        rate_hz=SPEC.rate_hz,
        success=None,
        signals={"state": state, GRIPPER: gripper[:, 0], "action": stored},
        notes=notes,
    )
