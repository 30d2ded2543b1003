"""Resampling of episodes to a lower rate, with composed or concatenated actions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from worldmodel.datasets.actions import CANONICAL, ActionSpec, DeltaPose, convert, sum_actions
from worldmodel.datasets.dataset import (
    Dataset,
    EpisodeSummary,
    FileDataset,
    notes_of,
    undeclared_of,
)
from worldmodel.datasets.trajectory import Frames, Trajectory

TOLERANCE = 1e-6
"""Relative difference up to which two rates count as equal."""


@dataclass(frozen=True)
class EveryNthFrame:
    """Frames 0, n, 2n, ... of a camera."""

    frames: Frames
    stride: int

    def __len__(self) -> int:
        return frames_left(len(self.frames), self.stride)

    def __getitem__(self, window: slice) -> UInt8[np.ndarray, "time height width 3"]:
        numbers = range(len(self))[window]
        if not numbers:
            return self.frames[0:0]
        first, last = numbers[0] * self.stride, numbers[-1] * self.stride
        return self.frames[first : last + 1][:: self.stride]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.frames.size


def frames_left(num_frames: int, stride: int) -> int:
    """Number of frames if every `stride`-th is kept, starting with the first.

    >>> [frames_left(n, 3) for n in (1, 3, 4)]
    [1, 1, 2]
    """
    return -(-num_frames // stride)


def frame_stride(source: ActionSpec, target: ActionSpec) -> int:
    """Stride from the frames of a dataset to those of a model.

    Raises:
        ValueError: unless the rate of the data is an integer multiple of the rate of the model and
            of the rate of its rows. The message prints both specs.
    """
    ratio = source.rate_hz / target.rate_hz
    stride = round(ratio)
    if stride < 1 or abs(ratio - stride) > TOLERANCE * ratio or stride % target.rows:
        raise ValueError(
            f"No lossless conversion of actions from {source} to {target}: a model needs data at "
            f"its own rate or a whole multiple of it, and of {target.rows} rows per frame."
        )
    return stride


def resample(trajectory: Trajectory, spec: ActionSpec) -> Trajectory:
    """Resample an episode to the rate and the actions of `spec`.

    The actions between two kept frames are composed into `spec.rows` rows, which are concatenated.
    A resampled action is valid if all its parts are.

    Raises:
        ValueError: if there is no lossless conversion. The message prints both specs.
    """
    if trajectory.spec == spec:
        return trajectory
    stride = frame_stride(trajectory.spec, spec)
    actions, valid = chunked_actions(trajectory, spec, stride)
    length = len(trajectory)
    return replace(
        trajectory,
        frames={name: EveryNthFrame(f, stride) for name, f in trajectory.frames.items()},
        actions=actions,
        action_valid=valid,
        states=None if trajectory.states is None else trajectory.states[::stride],
        signals={
            name: values[::stride] if values.shape[:1] == (length,) else values
            for name, values in trajectory.signals.items()
        },
        rate_hz=spec.rate_hz,
        row_spec=spec,
    )


def chunked_actions(
    trajectory: Trajectory, spec: ActionSpec, stride: int
) -> tuple[Float32[np.ndarray, "time action"], Bool[np.ndarray, " time"]]:
    """Actions between every `stride`-th frame and their validity mask; invalid rows are zero."""
    num_frames = frames_left(len(trajectory), stride)
    missing = num_frames * stride - len(trajectory)
    rows = np.pad(trajectory.actions, ((0, missing), (0, 0)))
    known = np.pad(trajectory.action_valid, (0, missing)).reshape(num_frames, stride)
    valid = np.logical_and.reduce(known, axis=1)
    group = stride // spec.rows
    source = trajectory.spec
    if group > 1:
        rows, source = composed(rows, source, group)
    converted = convert(rows, source, replace(spec.one_row, rate_hz=source.rate_hz))
    actions = converted.reshape(num_frames, spec.dim)
    actions[~valid] = 0
    return actions, valid


def composed(
    rows: Float32[np.ndarray, "time action"], source: ActionSpec, group: int
) -> tuple[Float32[np.ndarray, "chunks 7"], ActionSpec]:
    """Compose every `group` rows into one canonical action; returns actions and their spec."""
    try:
        canonical = DeltaPose(source)(rows)
    except ValueError as error:
        raise ValueError(
            f"Only pose changes in the base frame can be composed over {group} rows, not actions "
            f'of {source}; train with `action_chunk` "encode", or on data of a lower rate.'
        ) from error
    chunks = sum_actions(canonical.reshape(-1, group, 7))
    return chunks, replace(CANONICAL, rate_hz=source.rate_hz / group)


def resampled(dataset: Dataset, spec: ActionSpec) -> Dataset:
    """Dataset of resampled episodes; the dataset itself if its rate is that of `spec`.

    Raises:
        ValueError: if the rates do not fit. The message prints both specs.
    """
    stride = frame_stride(replace(CANONICAL, rate_hz=dataset.rate_hz), spec)
    if stride == 1:
        return dataset

    def summarize(episode_id: str) -> EpisodeSummary:
        summary = dataset.summary(episode_id)
        return replace(summary, num_frames=frames_left(summary.num_frames, stride))

    return FileDataset(
        form=dataset.form,
        path=dataset.path,
        cameras=dataset.cameras,
        action_spec=replace(dataset.action_spec, rate_hz=spec.rate_hz),
        episode_ids=dataset.episode_ids,
        load=lambda episode_id: resample(dataset.episode(episode_id), spec),
        summarize=summarize,
        notes=notes_of(dataset),
        undeclared=undeclared_of(dataset),
    )
