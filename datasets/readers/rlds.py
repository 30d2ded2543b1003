"""Bridge and DROID as RLDS stores them: TFDS tfrecords, one record per episode, JPEG or PNG frames.

    dataset_info.json, features.json
    <name>-<split>.tfrecord-<shard>-of-<shards>

`action` holds the commanded pose change (m; Euler angles, rad; robot base) and gripper, 1 = open.
Which step does row t command? Over 25 real episodes its correlation, per axis, with the pose change
from frame t - 1 to t is 0.34 to 0.70; from t to t + 1, 0.81 to 0.96; from t + 1 to t + 2, 0.86 to
0.94; and with the mean of the last two, 0.93 to 0.98. So the command is given at frame t and the
arm follows half a step late: row t takes frame t to frame t + 1, as stored, without a shift.
Rotations taken in the gripper's frame correlate less (0.75 to 0.90): the base frame is right.

DROID (15 Hz) holds absolute poses instead: `observation/cartesian_position` (m; extrinsic xyz, rad;
robot base) and `gripper_position`, 1 = closed; `action_dict` holds the commanded targets, which
lead it. Canonical actions are the motion achieved between two poses (see `poses`); the commands
stay in `signals`. An episode succeeded if its file path says so.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from worldmodel.datasets.actions import ActionSpec, DeltaPose, checked_rows, commanded_actions
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.poses import AchievedActions, PoseStates
from worldmodel.datasets.readers.annotation_json import SPEC as ANNOTATED
from worldmodel.datasets.readers.tfds import Builder
from worldmodel.datasets.readers.tfrecord import Values
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import EncodedFrames, encoded_frames

FORM = "rlds"
MARK = "features.json and dataset_info.json"
ACTION, STATE = "steps/action", "steps/observation/state"
TEXT, IMAGES = "steps/language_instruction", "steps/observation/"
PATH = "episode_metadata/file_path"
POSE, GRIPPER = "steps/observation/cartesian_position", "steps/observation/gripper_position"
MAX_PROBED = 512
"""Evenly spaced episodes that are read to find the cameras of a data set."""

SPEC = ActionSpec(
    name="Bridge RLDS",
    space="delta_pose",
    frame="base",
    rotation="euler_xyz",
    gripper="open_is_one",
    dim=7,
    scale=(1.0,) * 7,
    rate_hz=5.0,
)
DROID_SPEC = replace(ANNOTATED, name="DROID RLDS", rate_hz=15.0)


def matches(path: Path) -> bool:
    """Whether a folder has this form."""
    return all((path / name).is_file() for name in ("features.json", "dataset_info.json"))


def open_rlds(path: Path) -> FileDataset:
    """Open the folder of one version of a Bridge or DROID data set."""
    builder = Builder.read(path)
    if not (_is_bridge(builder) or _is_droid(builder)):
        raise ValueError(
            f"{path} holds `{builder.name}`, but RLDS does not declare what an action means; only "
            f"Bridge (7 numbers in `{ACTION}` and `{STATE}`, and `{TEXT}`) and DROID (`{POSE}`, "
            f"`{GRIPPER}`) are known."
        )
    probed = _probed(builder)
    cameras = sorted(set().union(*(_lit_cameras(builder, name) for name in probed)))
    notes = list(builder.notes)
    if len(probed) < len(builder.episode_ids):
        notes.append(
            f"The cameras are those lit in {len(probed)} of {len(builder.episode_ids)} episodes."
        )
    return FileDataset(
        form=FORM,
        path=path,
        cameras=tuple(cameras),
        action_spec=DROID_SPEC if _is_droid(builder) else SPEC,
        episode_ids=builder.episode_ids,
        load=partial(_load, builder, path, tuple(cameras)),
        summarize=partial(_summarize, builder),
        notes=tuple(notes),
    )


def _numbers(builder: Builder) -> dict[str, tuple[int, ...]]:
    return {leaf.name: leaf.shape for leaf in builder.leaves.values() if leaf.is_number}


def _is_bridge(builder: Builder) -> bool:
    """Whether name and features match Bridge."""
    numbers = _numbers(builder)
    poses = numbers.get(ACTION) == numbers.get(STATE) == (7,)
    return builder.name.startswith("bridge") and poses and TEXT in builder.leaves


def _is_droid(builder: Builder) -> bool:
    """Whether name and features match DROID."""
    numbers = _numbers(builder)
    poses = numbers.get(POSE) == (6,) and numbers.get(GRIPPER) == (1,)
    return builder.name.startswith("droid") and poses and TEXT in builder.leaves


def _probed(builder: Builder) -> list[str]:
    """Every episode of a small data set, evenly spaced ones of a large one."""
    names = builder.episode_ids
    chosen = np.linspace(0, len(names) - 1, min(len(names), MAX_PROBED)).round().astype(int)
    return [names[i] for i in chosen]


def _lit_cameras(builder: Builder, episode_id: str) -> set[str]:
    """Cameras that an episode shows.

    Bridge fills cameras that a scene does not have with black images, and its flags `has_image_*`
    are false throughout, a fault of the original builder. So the pixels decide: a camera whose
    first, middle and last frames are all black is missing.
    """
    where, record = builder.record(episode_id)
    names = [leaf.name for leaf in builder.leaves.values() if leaf.kind == "Image"]
    return {name.removeprefix(IMAGES) for name in names if _is_lit(_images(where, record, name))}


def _is_lit(frames: EncodedFrames) -> bool:
    last = len(frames) - 1
    return any(frames[i : i + 1].any() for i in sorted({0, last // 2, last}))


def _images(where: str, record: dict[str, Values], name: str) -> EncodedFrames:
    """The images of one camera."""
    payloads = record.get(name)
    if not isinstance(payloads, list) or not payloads:
        raise ValueError(f"{where} has no images `{name}`.")
    return encoded_frames(tuple(payloads), f"{where}, `{name}`")


def _text(where: str, record: dict[str, Values], name: str) -> str:
    """A text feature, of the first step where steps repeat it."""
    texts = record.get(name)
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"{where} has no text `{name}`.")
    try:
        return str(texts[0], "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: `{name}` is not UTF-8 ({error}).") from error


def _success(builder: Builder, where: str, record: dict[str, Values]) -> bool | None:
    """DROID sorts its episodes into folders `success` and `failure`."""
    if not _is_droid(builder) or PATH not in builder.leaves:
        return None
    parts = _text(where, record, PATH).split("/")
    said = {name for name in ("success", "failure") if name in parts}
    return said == {"success"} if len(said) == 1 else None


def _summarize(builder: Builder, episode_id: str) -> EpisodeSummary:
    where, record = builder.record(episode_id)
    return EpisodeSummary(
        num_frames=len(record.get(TEXT, [])),
        instruction=_text(where, record, TEXT),
        success=_success(builder, where, record),
    )


def _load(builder: Builder, path: Path, cameras: tuple[str, ...], episode_id: str) -> Trajectory:
    where, record = builder.record(episode_id)
    instruction = _text(where, record, TEXT)
    lit = _lit_cameras(builder, episode_id)
    if not lit:
        raise ValueError(f"{where} shows nothing: all its cameras are black.")
    spec = DROID_SPEC if _is_droid(builder) else SPEC
    try:
        signals = _signals(builder, record)
        if spec is SPEC:
            actions, valid = commanded_actions(signals["action"], DeltaPose(SPEC))
            poses = checked_rows(signals["observation/state"], dim=7, what="observation/state")
        else:
            parts = [signals[name.removeprefix("steps/")] for name in (POSE, GRIPPER)]
            poses = checked_rows(np.concatenate(parts, axis=1), dim=7, what="observation")
            actions, valid = AchievedActions(spec.gripper)(poses)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Trajectory(
        episode_id=episode_id,
        source=f"{FORM} {path}",
        frames={c: _images(where, record, IMAGES + c) for c in cameras if c in lit},
        actions=actions,
        action_valid=valid,
        states=PoseStates(spec.gripper)(poses),
        action_spec=spec,
        instruction=instruction,
        rate_hz=spec.rate_hz,
        success=_success(builder, where, record),
        signals=signals,
    )


def _signals(builder: Builder, record: dict[str, Values]) -> dict[str, np.ndarray]:
    """All numeric features of the record by name without "steps/", unchanged."""
    numbers = [leaf for leaf in builder.leaves.values() if leaf.is_number]
    num_steps = len(record.get(TEXT, []))
    return {
        leaf.name.removeprefix("steps/"): leaf.decode(record.get(leaf.name, []), num_steps)
        for leaf in numbers
    }
