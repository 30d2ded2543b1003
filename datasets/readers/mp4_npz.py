"""Bridge as WorldGym stores it: one mp4 and one npz of scaled actions per episode.

    <split>/<id>.mp4
    <split>/<id>.npz      `arr_0` float32 [frames, 10]

Columns: 0-2 position change x 35, clipped at ±1.74; 3-5 Euler change x 5.6, clipped at ±1.39;
6 gripper, -1 = open and +1 = closed; 7-9 a mobile base that stands still. What lay beyond the clip
limits was lost before the file was written.

The mp4 says 20 frames per second; the data are 5 Hz. Row t belongs to the step from frame t to
t + 1, as in Bridge itself (see `rlds`): where row 0 is zero, frames 0 and 1 are equal, and row 1,
the first that is not, goes with the first motion, between frames 1 and 2. A zero first row is the
recorder's start-up, not a command, so it is not valid.
"""

from __future__ import annotations

import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from worldmodel import budgets
from worldmodel.datasets.actions import ActionSpec, DeltaPose, commanded_actions
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames, count_frames, matched_rows

FORM = "mp4-npz"
MARK = "<split>/<id>.npz beside <split>/<id>.mp4"
CAMERA = "image"
UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Errors of `numpy.load` and `zipfile` on damaged files."""

SPEC = ActionSpec(
    name="WorldGym Bridge",
    space="delta_pose",
    frame="base",
    rotation="euler_xyz",
    gripper="open_is_minus_one",
    dim=10,
    scale=(1 / 35,) * 3 + (1 / 5.6,) * 3 + (1.0,) * 4,
    rate_hz=5.0,
)


def matches(path: Path) -> bool:
    """Whether a folder has this form."""
    return any(file.with_suffix(".mp4").is_file() for file in path.glob("*/*.npz"))


def open_mp4_npz(path: Path) -> FileDataset:
    """Open a folder of splits."""
    files = sorted(path.glob("*/*.npz"))
    return FileDataset(
        form=FORM,
        path=path,
        cameras=(CAMERA,),
        action_spec=SPEC,
        episode_ids=tuple(f"{file.parent.name}/{file.stem}" for file in files),
        load=partial(_load, path),
        summarize=partial(_summarize, path),
    )


def _read(file: Path) -> np.ndarray:
    """The stored actions."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            claimed = sum(member.file_size for member in archive.zip.infolist())
            budgets.require(claimed, budgets.ARRAY_BYTES, f"{file} in bytes")
            stored = archive["arr_0"]
    except UNREADABLE as error:
        raise ValueError(f"{file} has no readable array `arr_0` of actions ({error}).") from error
    if stored.ndim != 2:
        raise ValueError(f"{file}: `arr_0` must be [frames, 10], got shape {stored.shape}.")
    return stored


def _summarize(root: Path, episode_id: str) -> EpisodeSummary:
    return EpisodeSummary(
        num_frames=len(_read(root / f"{episode_id}.npz")), instruction="", success=None
    )


def _load(root: Path, episode_id: str) -> Trajectory:
    file, mp4 = root / f"{episode_id}.npz", root / f"{episode_id}.mp4"
    stored = _read(file)
    try:
        num_rows, notes = matched_rows(len(stored), {CAMERA: count_frames(mp4)})
        stored = stored[:num_rows]
        actions, valid = commanded_actions(stored, DeltaPose(SPEC))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return Trajectory(
        episode_id=episode_id,
        source=f"{FORM} {root}",
        frames={CAMERA: VideoFrames(mp4, num_rows)},
        actions=actions,
        action_valid=valid,
        states=None,
        action_spec=SPEC,
        instruction="",
        rate_hz=SPEC.rate_hz,
        success=None,
        signals={"arr_0": stored},
        notes=notes,
    )
