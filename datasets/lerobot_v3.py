"""DROID in LeRobot's v3.0 folders: parquet tables and mp4 files that many episodes share.

    meta/info.json, meta/episodes/chunk-<i>/file-<j>.parquet
    data/chunk-<i>/file-<j>.parquet, videos/<camera>/chunk-<i>/file-<j>.mp4

`observation.state` is x y z (m), roll pitch yaw (extrinsic xyz, rad, robot base) and gripper
(1 = closed); `action` is the state reached one frame later. LeRobot does not declare what an action
means, so an episode whose actions are anything else is refused. Instructions are as stored: "none",
the placeholder for episodes without language, stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from worldmodel.datasets.actions import ActionSpec, checked_rows
from worldmodel.datasets.annotation_json import SPEC
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.lerobot_info import ACTION, IMAGES, STATE, Info
from worldmodel.datasets.poses import AchievedActions, PoseStates
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames

FORM = "lerobot-v3"
MARK = "meta/info.json"
NEXT_STATE_TOLERANCE = 1e-5
"""Metres, radians or gripper units between an action and the state one frame later."""


def matches(path: Path) -> bool:
    """Whether a folder has this form."""
    return (path / MARK).is_file()


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """Where one episode lies."""

    index: int
    num_frames: int
    instruction: str
    rows: Path
    frames: Mapping[str, VideoFrames]


def open_lerobot_v3(path: Path) -> FileDataset:
    """Open a LeRobotDataset v3.0 folder of DROID episodes."""
    info = Info.read(path / MARK)
    spec = replace(SPEC, rate_hz=info.rate_hz)
    episodes = _episodes(path, info)
    return FileDataset(
        form=FORM,
        path=path,
        cameras=tuple(key.removeprefix(IMAGES) for key in info.video_keys),
        action_spec=spec,
        episode_ids=tuple(episodes),
        load=partial(_load, f"{FORM} {path}", spec, episodes),
        summarize=partial(_summarize, episodes),
    )


def _episodes(path: Path, info: Info) -> dict[str, EpisodeRow]:
    """Episodes by id, split in front, as meta/episodes lists them."""
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    for key in info.video_keys:
        ends = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        columns += [f"videos/{key}/{end}" for end in ends]
    files = sorted(path.glob("meta/episodes/*/*.parquet"))
    rows = [row for file in files for row in _read_table(file, columns).to_pylist()]
    if [row["episode_index"] for row in rows] != list(range(info.total_episodes)):
        raise ValueError(
            f"{path / 'meta/episodes'} lists {len(rows)} episodes, but {MARK} declares "
            f"{info.total_episodes}, numbered from 0."
        )
    return {
        f"{split}/{index}": _episode(path, info, rows[index])
        for split, indices in info.splits.items()
        for index in indices
    }


def _episode(path: Path, info: Info, row: dict[str, Any]) -> EpisodeRow:
    """One row of meta/episodes."""
    if empty := [name for name, value in row.items() if value is None]:
        raise ValueError(
            f"{path / 'meta/episodes'}: episode {row['episode_index']} has no {', '.join(empty)}."
        )
    data = info.data_path.format(
        chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
    )
    return EpisodeRow(
        index=row["episode_index"],
        num_frames=row["length"],
        instruction=row["tasks"][0] if row["tasks"] else "",
        rows=path / data,
        frames={key.removeprefix(IMAGES): _video(path, info, row, key) for key in info.video_keys},
    )


def _video(path: Path, info: Info, row: dict[str, Any], key: str) -> VideoFrames:
    """The stretch of a shared video that is one episode."""
    chunk, file, start, stop = (
        row[f"videos/{key}/{end}"]
        for end in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    )
    mp4 = path / info.video_path.format(video_key=key, chunk_index=chunk, file_index=file)
    found = round((stop - start) * info.rate_hz)
    if found != row["length"]:
        raise ValueError(
            f"{mp4} gives episode {row['episode_index']} {found} frames, but it has "
            f"{row['length']} rows."
        )
    return VideoFrames(mp4, found, first=round(start * info.rate_hz))


def _read_table(file: Path, columns: list[str]) -> Any:
    """Some columns of a parquet file.

    Without threads: on a damaged file Arrow's reader threads have been seen to wait for ever.
    """
    try:
        table = pyarrow.parquet.ParquetFile(file)
        missing = set(columns) - set(table.schema_arrow.names)
        if missing:
            raise ValueError(f"it lacks the columns {', '.join(sorted(missing))}")
        return table.read(columns, use_threads=False)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())  # Arrow's run over several lines
        raise ValueError(f"{file} is not a readable table of LeRobot v3.0: {reason}.") from error


def _summarize(episodes: dict[str, EpisodeRow], episode_id: str) -> EpisodeSummary:
    episode = episodes[episode_id]
    return EpisodeSummary(
        num_frames=episode.num_frames, instruction=episode.instruction, success=None
    )


def _load(
    source: str, spec: ActionSpec, episodes: dict[str, EpisodeRow], episode_id: str
) -> Trajectory:
    episode = episodes[episode_id]
    names = [STATE, ACTION, "timestamp"]
    table = _read_table(episode.rows, [*names, "episode_index"])
    rows = np.flatnonzero(table["episode_index"].to_numpy() == episode.index)
    try:
        if len(rows) != episode.num_frames:
            raise ValueError(f"{len(rows)} rows, expected {episode.num_frames}.")
        table = table.take(rows)
        signals = {name: np.stack(table[name].to_numpy()) for name in names}
        poses = checked_rows(signals[STATE], dim=7, what=STATE)
        _check_next_state(checked_rows(signals[ACTION], dim=7, what=ACTION), poses)
    except ValueError as error:
        raise ValueError(f"{episode.rows}, episode {episode.index}: {error}") from error
    _check_videos(episode)
    actions, valid = AchievedActions(spec.gripper)(poses)
    return Trajectory(
        episode_id=episode_id,
        source=source,
        frames=episode.frames,
        actions=actions,
        action_valid=valid,
        states=PoseStates(spec.gripper)(poses),
        action_spec=spec,
        instruction=episode.instruction,
        rate_hz=spec.rate_hz,
        success=None,
        signals=signals,
    )


def _check_videos(episode: EpisodeRow) -> None:
    """Open every video once, so that damage shows now and not in the middle of a conversion."""
    for frames in episode.frames.values():
        if not all(frames.size):
            raise ValueError(f"{frames.path} holds no pictures.")


def _check_next_state(actions: np.ndarray, poses: np.ndarray) -> None:
    """Raise unless every action is the state one frame later."""
    gap = float(np.abs(actions[:-1] - poses[1:]).max(initial=0.0))
    if gap > NEXT_STATE_TOLERANCE:
        raise ValueError(
            f"`{ACTION}` differs from the next `{STATE}` by up to {gap:.3g}; LeRobot does not say "
            "what else it means, so only next-state actions can be read."
        )
