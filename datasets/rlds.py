"""Bridge as RLDS stores it: TFDS tfrecords, one record per episode, JPEG frames, 5 Hz.

    dataset_info.json, features.json
    <name>-<split>.tfrecord-<shard>-of-<shards>

`action` holds the commanded pose change (m; Euler angles, rad; robot base) and gripper, 1 = open.
Which step does row t command? Over 25 real episodes its correlation, per axis, with the pose change
from frame t - 1 to t is 0.34 to 0.70; from t to t + 1, 0.81 to 0.96; from t + 1 to t + 2, 0.86 to
0.94; and with the mean of the last two, 0.93 to 0.98. So the command is given at frame t and the
arm follows half a step late: row t takes frame t to frame t + 1, as stored, without a shift.
Rotations taken in the gripper's frame correlate less (0.75 to 0.90): the base frame is right.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from worldmodel.datasets.actions import ActionSpec, DeltaPose, checked_rows, commanded_actions
from worldmodel.datasets.dataset import EpisodeSummary, FileDataset
from worldmodel.datasets.poses import PoseStates
from worldmodel.datasets.tfds import Builder
from worldmodel.datasets.tfrecord import Values
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.datasets.video import JpegFrames

FORM = "rlds"
MARK = "features.json and dataset_info.json"
ACTION, STATE = "steps/action", "steps/observation/state"
TEXT, IMAGES = "steps/language_instruction", "steps/observation/"
PROBED_EPISODES = 8

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


def matches(path: Path) -> bool:
    """Whether a folder has this form."""
    return all((path / name).is_file() for name in ("features.json", "dataset_info.json"))


def open_rlds(path: Path) -> FileDataset:
    """Open the folder of one version of a Bridge dataset."""
    builder = Builder.read(path)
    if not _is_bridge(builder):
        raise ValueError(
            f"{path} holds `{builder.name}`, but RLDS does not say what an action means and only "
            f"Bridge is known, with 7 numbers in `{ACTION}` and `{STATE}`, and `{TEXT}`."
        )
    cameras = _cameras(builder)
    return FileDataset(
        form=FORM,
        path=path,
        cameras=cameras,
        action_spec=SPEC,
        episode_ids=builder.episode_ids,
        load=partial(_load, builder, path, cameras),
        summarize=partial(_summarize, builder),
    )


def _is_bridge(builder: Builder) -> bool:
    """Whether the name and the features are Bridge's."""
    numbers = {leaf.name: leaf.shape for leaf in builder.leaves.values() if leaf.is_number}
    poses = numbers.get(ACTION) == numbers.get(STATE) == (7,)
    return builder.name.startswith("bridge") and poses and TEXT in builder.leaves


def _cameras(builder: Builder) -> tuple[str, ...]:
    """The cameras that show something.

    Bridge fills cameras that a scene does not have with black images (image_3 nearly always), and
    its flags `has_image_*` are false throughout, a fault of the original builder. So the pixels
    decide: a camera that begins the first few episodes all black is left out.
    """
    names = [leaf.name for leaf in builder.leaves.values() if leaf.kind == "Image"]
    probed = [builder.record(episode_id) for episode_id in builder.episode_ids[:PROBED_EPISODES]]
    lit = [n for n in names if any(_images(where, record, n)[:1].any() for where, record in probed)]
    return tuple(sorted(name.removeprefix(IMAGES) for name in lit))


def _images(where: str, record: dict[str, Values], name: str) -> JpegFrames:
    """The images of one camera."""
    payloads = record.get(name)
    if not isinstance(payloads, list) or not payloads:
        raise ValueError(f"{where} has no images `{name}`.")
    return JpegFrames(tuple(payloads), where=f"{where}, `{name}`")


def _instruction(where: str, record: dict[str, Values]) -> str:
    """The text of the first step; Bridge repeats it in every step."""
    texts = record.get(TEXT)
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"{where} has no text `{TEXT}`.")
    try:
        return str(texts[0], "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: `{TEXT}` is not UTF-8 ({error}).") from error


def _summarize(builder: Builder, episode_id: str) -> EpisodeSummary:
    where, record = builder.record(episode_id)
    return EpisodeSummary(
        num_frames=len(record.get(TEXT, [])),
        instruction=_instruction(where, record),
        success=None,
    )


def _load(builder: Builder, path: Path, cameras: tuple[str, ...], episode_id: str) -> Trajectory:
    where, record = builder.record(episode_id)
    instruction = _instruction(where, record)
    try:
        signals = _signals(builder, record)
        actions, valid = commanded_actions(signals["action"], DeltaPose(SPEC))
        poses = checked_rows(signals["observation/state"], dim=7, what="observation/state")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Trajectory(
        episode_id=episode_id,
        source=f"{FORM} {path}",
        frames={camera: _images(where, record, IMAGES + camera) for camera in cameras},
        actions=actions,
        action_valid=valid,
        states=PoseStates(SPEC.gripper)(poses),
        action_spec=SPEC,
        instruction=instruction,
        rate_hz=SPEC.rate_hz,
        success=None,
        signals=signals,
    )


def _signals(builder: Builder, record: dict[str, Values]) -> dict[str, np.ndarray]:
    """Every number of the record by its name without "steps/", as declared and untouched."""
    numbers = [leaf for leaf in builder.leaves.values() if leaf.is_number]
    num_steps = len(record.get(TEXT, []))
    return {
        leaf.name.removeprefix("steps/"): leaf.decode(record.get(leaf.name, []), num_steps)
        for leaf in numbers
    }
