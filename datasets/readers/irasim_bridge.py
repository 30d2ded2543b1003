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

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.datasets.actions import checked_rows
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.poses import AchievedActions, PoseStates
from worldmodel.datasets.readers.annotation_json import SPEC as DROID
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames, count_frames, matched_rows

FORM = "irasim-bridge"
MARK = "annotation/<split>/<id>.json with `state` and `continuous_gripper_state`"
CAMERA = "image"
KEYS = {"texts": list, "videos": list, "action": list, "state": list}
GRIPPER = "continuous_gripper_state"

SPEC = replace(DROID, name="Bridge states", gripper="open_is_one")
"""Poses at 5 Hz; the action of a step is the pose reached at its end."""


def annotation_files(path: Path) -> list[Path]:
    """Annotation files, sorted by split and number."""
    return sorted(
        path.glob("annotation/*/*.json"),
        key=lambda file: (file.parent.name, len(file.stem), file.stem),
    )


def matches(path: Path) -> bool:
    """Whether the first annotation of a folder is of this form."""
    files = annotation_files(path)
    try:
        return bool(files) and GRIPPER in json.loads(files[0].read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, RecursionError):
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


def _read(root: Path, episode_id: str) -> tuple[Path, dict[str, Any]]:
    file = root / "annotation" / f"{episode_id}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); copy it again.") from error
    content = content if isinstance(content, dict) else {}
    kinds = {**KEYS, GRIPPER: list}
    if wrong := [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]:
        raise ValueError(f"{file} lacks {', '.join(wrong)} as IRASim writes them for Bridge.")
    return file, content


def _summarize(root: Path, episode_id: str) -> EpisodeSummary:
    _, content = _read(root, episode_id)
    text = str(content["texts"][0]) if content["texts"] else ""
    return EpisodeSummary(num_frames=len(content["state"]), instruction=text, success=None)


def _load(root: Path, episode_id: str) -> Trajectory:
    file, content = _read(root, episode_id)
    try:
        state = checked_rows(content["state"], dim=6, what="state")
        gripper = checked_rows(np.reshape(content[GRIPPER], (-1, 1)), dim=1, what=GRIPPER)
        stored = checked_rows(content["action"], dim=7, what="action")
        if not len(state) == len(gripper) == len(stored) + 1:
            raise ValueError(
                f"{len(state)} `state`, {len(gripper)} `{GRIPPER}` and {len(stored)} `action` "
                "rows; expected T, T and T - 1."
            )
        mp4 = root / content["videos"][0]["video_path"]
        num_rows, notes = matched_rows(len(state), {CAMERA: count_frames(mp4)})
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: `videos` needs one entry with a `video_path`.") from error
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
