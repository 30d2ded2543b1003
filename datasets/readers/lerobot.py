"""LeRobot data sets: v3.0 (files shared by many episodes) and v2.0/v2.1 (a file per episode).

    v3.0  meta/info.json, meta/episodes/chunk-<i>/file-<j>.parquet
          data/chunk-<i>/file-<j>.parquet, videos/<camera>/chunk-<i>/file-<j>.mp4
    v2.x  meta/info.json, meta/episodes.jsonl
          data/chunk-<i>/episode_<n>.parquet, videos/chunk-<i>/<camera>/episode_<n>.mp4

LeRobot does not declare the meaning of its numbers. Poses are read only if the column names declare
them, if the columns are those of the published DROID port, or if the user's file declares them
(`pose_columns`). Otherwise the frames can be viewed, but there are no states and no valid actions.
Canonical actions are the motion achieved between two states (see `poses`); the stored actions stay
in `signals`. The time stamp of an episode's first frame locates it in a shared video. Instructions
are kept as stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet

from worldmodel import budgets
from worldmodel.datasets.actions import ActionSpec, checked_rows
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.poses import AchievedActions, PoseStates
from worldmodel.datasets.readers.annotation_json import SPEC
from worldmodel.datasets.readers.lerobot_info import STATE, Info, camera_name
from worldmodel.datasets.readers.pose_columns import PoseColumns, declared_poses
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import VideoFrames, frame_times, matched_rows
from worldmodel.structured_files import Count, checked, read_json_lines

FORM = "lerobot"
MARK = "meta/info.json"
DROID = ("observation.state.cartesian_position", "observation.state.gripper_position")
"""Columns of the published DROID port: pose (m, extrinsic xyz, rad) and gripper, 1 = closed."""
SUCCESS = "is_episode_successful"
"""Column with the success of an episode."""
NEXT_SUCCESS = "next.success"
"""Column that says after each step whether the task is done."""
NUMBER_BYTES = 8
OTHER = "other"
"""Split of the episodes that no split names."""


class EpisodeLine(msgspec.Struct):
    """A line of meta/episodes.jsonl (v2), or the common part of a row of meta/episodes (v3)."""

    episode_index: Count
    tasks: list[str] | None
    length: Count | None = None
    data_chunk: Count | None = msgspec.field(default=None, name="data/chunk_index")
    data_file: Count | None = msgspec.field(default=None, name="data/file_index")

    @property
    def instruction(self) -> str:
        """The first task."""
        return self.tasks[0] if self.tasks else ""


class VideoPlace(msgspec.Struct):
    """Place of an episode in the videos of a camera (v3)."""

    chunk_index: Count | None
    file_index: Count | None
    from_timestamp: float | None
    to_timestamp: float | None


def matches(path: Path) -> bool:
    """Whether a folder has this form."""
    return (path / MARK).is_file()


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part of a video file that belongs to one episode."""

    path: Path
    start_s: float
    """Time stamp of its first frame."""
    stop_s: float | None
    """Time stamp of the next episode's first frame; None: the end of the file."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """Location of one episode in the data set's files."""

    index: int
    num_frames: int
    instruction: str
    rows: Path
    videos: Mapping[str, Part]
    """Camera -> part of its video, without cameras that the episode lacks."""


def open_lerobot(path: Path, columns: PoseColumns | None = None) -> FileDataset:
    """Open a LeRobot folder; `columns` declares its poses and overrides its column names."""
    info = Info.read(path / MARK)
    undeclared = None
    if columns is not None:
        columns.refuse_joints(path / MARK, {n: f.names for n, f in info.features.items()})
    try:
        columns = columns or _declared(info)
        gripper = columns.gripper
    except ValueError as error:
        undeclared, gripper = _undeclared(path, info, str(error)), SPEC.gripper
    episodes = _episodes(path, info)
    spec = replace(SPEC, name="LeRobot poses", gripper=gripper, rate_hz=info.rate_hz)
    return FileDataset(
        form=FORM,
        path=path,
        cameras=tuple(map(camera_name, info.video_keys)),
        action_spec=spec,
        episode_ids=tuple(episodes),
        load=partial(_load, f"{FORM} {path}", info, spec, columns, episodes),
        summarize=partial(_summarize, info, episodes),
        notes=(*info.left_out, *_split_notes(episodes)),
        undeclared=undeclared,
    )


def _declared(info: Info) -> PoseColumns:
    """The pose columns that info.json declares."""
    features = info.features
    if all(name in features for name in DROID):
        return PoseColumns(columns=DROID, gripper="closed_is_one")
    if STATE not in features:
        raise ValueError(f"there is no column `{STATE}`")
    return declared_poses(STATE, features[STATE].names, features[STATE].shape)


def _undeclared(path: Path, info: Info, found: str) -> str:
    """Message for data without a declared meaning."""
    numbers = [n for n, f in info.features.items() if n.startswith((STATE, "action"))]
    return (
        f"{path / MARK} does not declare what its numbers mean: {found}; declare the pose columns "
        f"(of {', '.join(numbers)}) in a TOML file for `--action-spec` (`worldmodel data info` "
        "prints a draft)."
    )


def _split_notes(episodes: Mapping[str, EpisodeRow]) -> list[str]:
    """Note on episodes outside all splits."""
    outside = [episode.index for name, episode in episodes.items() if name.startswith(OTHER)]
    if not outside:
        return []
    named = ", ".join(map(str, outside[:5])) + (", ..." if len(outside) > 5 else "")
    return [f"Episodes in no split of {MARK}, given the split `other`: {len(outside)} ({named})."]


def _episodes(path: Path, info: Info) -> dict[str, EpisodeRow]:
    """Episodes by id, with the split as prefix, in the order of the metadata."""
    rows = _rows_v3(path, info) if info.version == "v3" else _rows_v2(path)
    numbers = [row.episode_index for row, _ in rows]
    if len(rows) != info.total_episodes or numbers != list(range(len(rows))):
        raise ValueError(
            f"{path / 'meta'} lists {len(rows)} episodes, but {MARK} declares "
            f"{info.total_episodes}, numbered from 0."
        )
    build = _episode_v3 if info.version == "v3" else _episode_v2
    return {
        f"{info.split_of(index) or OTHER}/{index}": build(path, info, *rows[index])
        for index in range(info.total_episodes)
    }


def _rows_v3(path: Path, info: Info) -> list[tuple[EpisodeLine, dict[str, VideoPlace]]]:
    """Rows of meta/episodes, with the places in the videos by camera."""
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    ends = VideoPlace.__struct_fields__
    columns += [f"videos/{key}/{end}" for key in info.video_keys for end in ends]
    rows = []
    for file in sorted(path.glob("meta/episodes/*/*.parquet")):
        for number, row in enumerate(_read_table(file, columns).to_pylist()):
            where = f"{file}, row {number}"
            places = {
                key: checked({end: row[f"videos/{key}/{end}"] for end in ends}, VideoPlace, where)
                for key in info.video_keys
            }
            rows.append((checked(row, EpisodeLine, where), places))
    return rows


def _rows_v2(path: Path) -> list[tuple[EpisodeLine, dict[str, VideoPlace]]]:
    """Lines of meta/episodes.jsonl."""
    file = path / "meta" / "episodes.jsonl"
    return [(line, {}) for line in read_json_lines(file, EpisodeLine)]


def _episode_v3(
    path: Path, info: Info, row: EpisodeLine, places: Mapping[str, VideoPlace]
) -> EpisodeRow:
    """Location of an episode from a row of meta/episodes."""
    length, chunk, file = row.length, row.data_chunk, row.data_file
    if length is None or chunk is None or file is None:
        raise ValueError(
            f"{path / 'meta/episodes'}: episode {row.episode_index} has no length, "
            "data/chunk_index or data/file_index."
        )
    videos = {}
    for key, place in places.items():
        numbers = (place.chunk_index, place.file_index, place.from_timestamp)
        if None not in numbers:
            mp4 = info.path(
                path, info.video_path,
                video_key=key, chunk_index=place.chunk_index, file_index=place.file_index,
            )  # fmt: skip
            start = place.from_timestamp or 0.0
            videos[camera_name(key)] = Part(path=mp4, start_s=start, stop_s=place.to_timestamp)
    return EpisodeRow(
        index=row.episode_index,
        num_frames=length,
        instruction=row.instruction,
        rows=info.path(path, info.data_path, chunk_index=chunk, file_index=file),
        videos=videos,
    )


def _episode_v2(
    path: Path, info: Info, row: EpisodeLine, _: Mapping[str, VideoPlace]
) -> EpisodeRow:
    """Location of an episode from a line of meta/episodes.jsonl."""
    index = row.episode_index
    if row.length is None:
        raise ValueError(f"{path / 'meta/episodes.jsonl'}: episode {index} has no length.")
    place = {"episode_chunk": index // info.chunk_size, "episode_index": index}
    files = {k: info.path(path, info.video_path, video_key=k, **place) for k in info.video_keys}
    return EpisodeRow(
        index=index,
        num_frames=row.length,
        instruction=row.instruction,
        rows=info.path(path, info.data_path, **place),
        videos={
            camera_name(key): Part(path=file, start_s=0.0, stop_s=None)
            for key, file in files.items()
            if file.is_file()
        },
    )


def _read_table(file: Path, columns: list[str]) -> Any:
    """Read columns of a parquet file.

    Without threads, because Arrow's reader threads can hang on a damaged file.
    """
    try:
        table = pyarrow.parquet.ParquetFile(file)
        missing = set(columns) - set(table.schema_arrow.names)
        if missing:
            raise ValueError(f"it lacks the columns {', '.join(sorted(missing))}")
        claimed = table.metadata.num_rows * max(1, len(columns)) * NUMBER_BYTES
        budgets.require(claimed, budgets.ARRAY_BYTES, "its table in bytes")
        return table.read(columns, use_threads=False)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())  # Arrow's messages have several lines
        raise ValueError(f"{file} is not a readable table of LeRobot: {reason}.") from error


def _columns(info: Info) -> list[str]:
    """Numeric columns, which are kept in `signals`."""
    kinds = ("float32", "float64", "int64", "int32", "bool")
    return [n for n, f in info.features.items() if f.dtype in kinds and n != "episode_index"]


def _signals(info: Info, episode: EpisodeRow) -> dict[str, np.ndarray]:
    """Rows of an episode, for every numeric column."""
    names = _columns(info)
    table = _read_table(episode.rows, [*names, "episode_index"])
    rows = np.flatnonzero(table["episode_index"].to_numpy() == episode.index)
    if len(rows) != episode.num_frames:
        raise ValueError(f"{len(rows)} rows, expected {episode.num_frames}.")
    table = table.take(rows)
    signals = {name: np.stack(table[name].to_numpy()) for name in names} if len(rows) else {}
    for name, values in signals.items():
        if values.dtype.kind not in "biuf":
            raise ValueError(f"column `{name}` holds something else than numbers.")
    return signals


def _summarize(info: Info, episodes: dict[str, EpisodeRow], episode_id: str) -> EpisodeSummary:
    episode = episodes[episode_id]
    success = None
    if SUCCESS in info.features or NEXT_SUCCESS in info.features:
        success = _success(_signals(info, episode))
    return EpisodeSummary(
        num_frames=episode.num_frames, instruction=episode.instruction, success=success
    )


def _success(signals: Mapping[str, np.ndarray]) -> bool | None:
    """Success of the episode, as the last row says; None if it is not recorded.

    Rewards are no successes: LeRobot does not declare from which value on the task is done.
    """
    for name in (SUCCESS, NEXT_SUCCESS):
        rows = signals.get(name, np.empty(0)).reshape(-1)
        if len(rows):
            if rows[-1] not in (0, 1):
                raise ValueError(f"`{name}` ends in {rows[-1]}, expected true or false.")
            return bool(rows[-1])
    return None


def _load(
    source: str,
    info: Info,
    spec: ActionSpec,
    columns: PoseColumns | None,
    episodes: dict[str, EpisodeRow],
    episode_id: str,
) -> Trajectory:
    episode = episodes[episode_id]
    poses = None
    try:
        signals = _signals(info, episode)
        _check_clock(signals, info.rate_hz)
        if columns is not None:
            poses = checked_rows(columns.poses(signals), dim=7, what=", ".join(columns.columns))
    except ValueError as error:
        raise ValueError(f"{episode.rows}, episode {episode.index}: {error}") from error
    parts = {camera: _part(part, episode) for camera, part in episode.videos.items()}
    if not parts:
        raise ValueError(f"{episode.rows}, episode {episode.index}: no camera has a video of it.")
    num_rows, notes = matched_rows(
        episode.num_frames, {camera: count for camera, (_, _, count) in parts.items()}
    )
    if poses is None:
        notes = (*notes, "No action is valid and there are no states: their meaning is undeclared.")
        actions, valid = np.zeros((num_rows, 7), np.float32), np.zeros(num_rows, bool)
    else:
        actions, valid = AchievedActions(spec.gripper)(poses[:num_rows])
    return Trajectory(
        episode_id=episode_id,
        source=source,
        frames={c: VideoFrames(file, num_rows, first) for c, (file, first, _) in parts.items()},
        actions=actions,
        action_valid=valid,
        states=None if poses is None else PoseStates(spec.gripper)(poses[:num_rows]),
        action_spec=spec,
        instruction=episode.instruction,
        rate_hz=spec.rate_hz,
        success=_success(signals),
        signals={name: values[:num_rows] for name, values in signals.items()},
        notes=notes,
    )


def _part(part: Part, episode: EpisodeRow) -> tuple[Path, int, int]:
    """File, first frame and number of frames of a part of a video."""
    ticks, seconds_per_tick = frame_times(part.path)
    times = ticks * seconds_per_tick
    half = float(np.diff(times).min(initial=np.inf)) / 2 if len(times) > 1 else 0.5
    first = int(np.abs(times - part.start_s).argmin())
    if abs(times[first] - part.start_s) > half:
        raise ValueError(
            f"{part.path} has no frame at {part.start_s:.6f} s, where episode {episode.index} "
            "begins; the video and meta/episodes do not belong together."
        )
    stop = len(times)
    if part.stop_s is not None and part.stop_s < times[-1] + half:
        stop = int(np.abs(times - part.stop_s).argmin())
    return part.path, first, stop - first


def _check_clock(signals: Mapping[str, np.ndarray], rate_hz: float) -> None:
    """Raise unless the rows are consecutive at the declared rate, without gaps or restarts."""
    numbers = signals.get("frame_index")
    if numbers is not None and (numbers.reshape(-1) != np.arange(len(numbers))).any():
        row = int(np.flatnonzero(numbers.reshape(-1) != np.arange(len(numbers)))[0])
        raise ValueError(
            f"`frame_index` is {numbers.reshape(-1)[row]} in row {row}: rows are missing, "
            "repeated or out of order."
        )
    stamps = signals.get("timestamp")
    if stamps is not None and len(stamps) > 1:
        steps = np.diff(stamps.reshape(-1).astype(np.float64)) * rate_hz
        wrong = np.flatnonzero(np.abs(steps - 1) > 0.5)
        if len(wrong):
            raise ValueError(
                f"`timestamp` steps by {steps[wrong[0]] / rate_hz:.3g} s after row {wrong[0]}, "
                f"but `fps` says {1 / rate_hz:.3g} s: a hole, a restart or another rate."
            )
