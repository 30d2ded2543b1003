"""DROID as recorded: an HDF5 trajectory, a metadata file and one mp4 per camera, 15 Hz.

    {success,failure}/<date>/<run>/trajectory.h5, metadata_*.json, recordings/MP4/<serial>.mp4

`observation/robot_state/cartesian_position` is x y z (m), roll pitch yaw (extrinsic xyz, rad, robot
base), `gripper_position` 1 = closed; `action/*` holds the commanded targets, kept in `signals`.
Canonical actions are the motion achieved between two states (see `poses`). Cameras are named by
their role if the metadata give it (`wrist_left`, `exterior_1_left`, `exterior_2_left`), else by
their serial number. Stereo recordings (SVO) are not read; export them with the ZED SDK first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import msgspec
import numpy as np

from worldmodel import budgets
from worldmodel.datasets.actions import checked_rows
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.poses import AchievedActions, PoseStates
from worldmodel.datasets.readers.annotation_json import SPEC as ANNOTATED
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames, count_frames, matched_rows
from worldmodel.structured_files import read_json

FORM = "droid-raw"
MARK = "{success,failure}/<date>/<run>/trajectory.h5"
OUTCOMES = {"success": True, "failure": False}
STATE = "observation/robot_state"
POSE, GRIPPER = "cartesian_position", "gripper_position"
SPEC = replace(ANNOTATED, name="DROID raw", rate_hz=15.0)


class Metadata(msgspec.Struct):
    """Keys of a run's metadata that the reader needs."""

    current_task: str | None = None
    wrist_cam_serial: str | int | None = None
    ext1_cam_serial: str | int | None = None
    ext2_cam_serial: str | int | None = None

    @property
    def roles(self) -> dict[str, str]:
        """Serial number of a camera -> its name."""
        named = {
            "wrist_left": self.wrist_cam_serial,
            "exterior_1_left": self.ext1_cam_serial,
            "exterior_2_left": self.ext2_cam_serial,
        }
        return {str(serial): name for name, serial in named.items() if serial is not None}


def matches(path: Path) -> bool:
    """Whether a folder has this form."""
    return any(any(path.glob(f"{outcome}/*/*/trajectory.h5")) for outcome in OUTCOMES)


def open_droid_raw(path: Path) -> FileDataset:
    """Open a folder of recordings."""
    files = [file for outcome in OUTCOMES for file in path.glob(f"{outcome}/*/*/trajectory.h5")]
    runs = {str(file.parent.relative_to(path)): file.parent for file in sorted(files)}
    cameras = sorted({camera for run in runs.values() for camera in _named_cameras(run)})
    return FileDataset(
        form=FORM,
        path=path,
        cameras=tuple(cameras),
        action_spec=SPEC,
        episode_ids=tuple(runs),
        load=partial(_load, path, runs),
        summarize=partial(_summarize, runs),
    )


def _metadata(run: Path) -> Metadata:
    """Content of the run's metadata file; empty if the file is missing."""
    files = sorted(run.glob("metadata_*.json"))
    return read_json(files[0], Metadata) if files else Metadata()


def _named_cameras(run: Path) -> set[str]:
    """Cameras of a run; none if its metadata are damaged, which the run itself reports."""
    try:
        return set(_videos(run))
    except (OSError, ValueError):
        return set()


def _videos(run: Path) -> dict[str, Path]:
    """Camera -> mp4; stereo videos are left out."""
    names = _metadata(run).roles
    files = sorted((run / "recordings" / "MP4").glob("*.mp4"))
    mono = [file for file in files if "stereo" not in file.stem]
    return {names.get(file.stem, file.stem): file for file in mono}


def _rows(run: Path) -> dict[str, np.ndarray]:
    """Numeric arrays with one row per step, by their path in the file."""
    file = run / "trajectory.h5"
    signals: dict[str, np.ndarray] = {}

    def keep(name: str | bytes, item: object) -> None:
        if isinstance(name, bytes):
            raise ValueError(f"its name {name!r} is not UTF-8")
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and item.ndim <= 2:
            _require_stored(name, item)
            signals[name] = item[()]

    try:
        with h5py.File(file, "r") as content:
            content.visititems(keep)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is not a readable HDF5 file ({error}); copy it again.") from error
    return signals


def _require_stored(name: str, item: h5py.Dataset) -> None:
    """Raise unless all values of an array lie in the file itself: HDF5 fills in what is missing."""
    budgets.require(item.size * item.dtype.itemsize, budgets.ARRAY_BYTES, f"`{name}` in bytes")
    if item.is_virtual or item.external:
        raise ValueError(f"`{name}` lies in another file, which is not read")
    if item.chunks is None:
        is_whole = item.id.get_storage_size() >= item.size * item.dtype.itemsize
    else:
        sides = zip(item.shape, item.chunks, strict=True)
        is_whole = item.id.get_num_chunks() == math.prod(-(-n // side) for n, side in sides)
    if not is_whole:
        raise ValueError(f"`{name}` is not stored completely")


def _summarize(runs: Mapping[str, Path], episode_id: str) -> EpisodeSummary:
    run = runs[episode_id]
    lengths = [len(rows) for name, rows in _rows(run).items() if name.endswith(POSE) and rows.ndim]
    return EpisodeSummary(
        num_frames=lengths[0] if lengths else 0,
        instruction=_metadata(run).current_task or "",
        success=OUTCOMES[episode_id.split("/")[0]],
    )


def _load(root: Path, runs: Mapping[str, Path], episode_id: str) -> Trajectory:
    run, summary = runs[episode_id], _summarize(runs, episode_id)
    file, signals = run / "trajectory.h5", _rows(run)
    notes: tuple[str, ...] = ()
    pose = signals.get(f"{STATE}/{POSE}")
    gripper = signals.get(f"{STATE}/{GRIPPER}")
    if gripper is None:
        gripper = signals.get(f"action/{GRIPPER}")
        notes = (f"`{STATE}/{GRIPPER}` is missing; the commanded gripper is used instead.",)
    if pose is None or gripper is None:
        raise ValueError(f"{file} lacks `{STATE}/{POSE}` or `{STATE}/{GRIPPER}`.")
    videos = _videos(run)
    if not videos:
        raise ValueError(
            f"{run / 'recordings/MP4'} holds no mp4; export the SVO files with the ZED SDK's tool."
        )
    try:
        rows = np.concatenate([pose, np.reshape(gripper, (-1, 1))], axis=1)
        poses = checked_rows(rows, dim=7, what=STATE)
        num_rows, more = matched_rows(len(poses), {c: count_frames(v) for c, v in videos.items()})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    poses = poses[:num_rows]
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
        notes=(*notes, *more),
    )
