"""Checks of one episode, as pure functions of its arrays and frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from worldmodel.datasets.stored_frames import blocks
from worldmodel.datasets.trajectory import Frames, Trajectory

Severity = Literal["error", "warning", "info"]

BLACK = 4.0
"""Mean grey level (0 to 255) up to which a frame counts as black."""
FROZEN = 0.02
"""Mean change of grey level up to which two frames count as equal; idle DROID has 0.2."""
FROZEN_STEPS = 5
FROZEN_TRAVEL_M = 0.02
"""A view is frozen if it repeats for this many steps while the arm travels this far."""
IDLE_M = 1e-3
IDLE_RAD = float(np.radians(0.5))
IDLE_GRIPPER = 0.02
"""An action below all three is idle."""
MAX_IDLE_SHARE = 0.5


@dataclass(frozen=True)
class Issue:
    """Result of a check: its name, severity and message."""

    check: str
    severity: Severity
    """"error": makes training wrong. "warning": worth a look. "info": the reader deals with it."""
    message: str


@dataclass(frozen=True)
class ViewStatistics:
    """Grey level statistics of one camera."""

    brightness: Float64[np.ndarray, " time"]
    """Mean grey level of each frame."""
    change: Float64[np.ndarray, " steps"]
    """Mean absolute change from frame t to t + 1."""


def view_statistics(frames: Frames) -> ViewStatistics:
    """Statistics of one camera; decodes every frame once, in blocks."""
    brightness: list[float] = []
    change: list[float] = []
    last: np.ndarray | None = None
    for block in blocks(frames, 1):
        for frame in frames[block].astype(np.int16):
            brightness.append(float(frame.mean()))
            if last is not None:
                change.append(float(np.abs(frame - last).mean()))
            last = frame
    return ViewStatistics(np.array(brightness), np.array(change))


def view_issues(camera: str, view: ViewStatistics, trajectory: Trajectory) -> Iterator[Issue]:
    """Black and frozen frames of one camera."""
    black = view.brightness <= BLACK
    if black.any():
        message = f"{camera} is black in {black.sum()} of {len(black)} frames."
        yield Issue("black-view", "warning", message)
        return
    moves = travel(trajectory) > FROZEN_TRAVEL_M
    still = view.change <= FROZEN
    if len(still) and still.all() and moves:
        message = f"{camera} shows one picture throughout while the arm moves."
        yield Issue("frozen-view", "error", message)
        return
    for start, stop in runs(still):
        if stop - start >= FROZEN_STEPS and travel(trajectory, start, stop) > FROZEN_TRAVEL_M:
            message = f"{camera} stands still from frame {start} to {stop} while the arm moves."
            yield Issue("frozen-view", "warning", message)


def travel(trajectory: Trajectory, start: int = 0, stop: int | None = None) -> float:
    """Path length of the actions in a window, in metres."""
    return float(np.linalg.norm(trajectory.actions[start:stop, :3], axis=1).sum())


def runs(flags: Bool[np.ndarray, " steps"]) -> list[tuple[int, int]]:
    """Start and stop index of every run of True.

    >>> runs(np.array([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def row_issues(trajectory: Trajectory) -> Iterator[Issue]:
    """Issues that can be found without decoding frames."""
    if not trajectory.instruction.strip():
        yield Issue("empty-language", "warning", "There is no instruction.")
    yield from first_action_issues(trajectory)
    yield from idle_issues(trajectory)
    yield from finite_issues(trajectory)
    yield from wrap_issues(trajectory)


def first_action_issues(trajectory: Trajectory) -> Iterator[Issue]:
    """Zero first action: the recorder's start-up, not a command."""
    if not trajectory.action_valid[0]:
        yield Issue("zero-first-action", "info", "The first action is zero and marked invalid.")
    elif np.abs(trajectory.actions[0, :6]).max() < 1e-9 and len(trajectory) > 1:
        yield Issue("zero-first-action", "warning", "The first action is zero but counts as valid.")


def idle_issues(trajectory: Trajectory) -> Iterator[Issue]:
    """Mostly idle episodes, which teach a model to copy the last frame."""
    actions = trajectory.actions[trajectory.action_valid]
    if len(actions) == 0:
        yield Issue("no-action", "error", "No action is valid.")
        return
    turned = np.abs(np.diff(actions[:, 6], prepend=actions[0, 6]))
    idle = np.linalg.norm(actions[:, :3], axis=1) < IDLE_M
    idle &= np.linalg.norm(actions[:, 3:6], axis=1) < IDLE_RAD
    idle &= turned < IDLE_GRIPPER
    if (share := idle.mean()) > MAX_IDLE_SHARE:
        yield Issue("idle", "warning", f"The arm stands still in {share:.0%} of the steps.")


def finite_issues(trajectory: Trajectory) -> Iterator[Issue]:
    """NaN and infinity in states and signals; actions are checked when the episode is opened."""
    if trajectory.states is not None and not np.isfinite(trajectory.states).all():
        yield Issue("not-finite", "error", "The states hold NaN or infinity.")
    for name, signal in trajectory.signals.items():
        if signal.dtype.kind == "f" and not np.isfinite(signal).all():
            yield Issue("not-finite", "warning", f"Signal `{name}` holds NaN or infinity.")


def wrap_issues(trajectory: Trajectory) -> Iterator[Issue]:
    """Euler angles in columns 3 to 5 that jump at ±π between two rows."""
    if trajectory.action_spec.rotation != "euler_xyz":
        return
    wraps = {name: count_wraps(signal) for name, signal in trajectory.signals.items()}
    if found := [f"`{name}` {count} times" for name, count in wraps.items() if count]:
        message = f"Angles jump at ±π: {', '.join(found)}; actions compose them and are right."
        yield Issue("wrapped-rotation", "info", message)


def count_wraps(signal: np.ndarray) -> int:
    """Number of steps in which an angle in columns 3 to 5 jumps by more than π.

    >>> count_wraps(np.array([[0, 0, 0, 3.1, 0, 0], [0, 0, 0, -3.1, 0, 0]]))
    1
    """
    if signal.dtype.kind != "f" or signal.ndim != 2 or not 6 <= signal.shape[1] <= 7:
        return 0
    return int((np.abs(np.diff(signal[:, 3:6], axis=0)) > np.pi).any(axis=1).sum())
