"""Action specs, which define the meaning of action arrays, and lossless conversions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from numpy.typing import ArrayLike

from worldmodel.structured_files import checked


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """Meaning of one row of an action array.

    Two specs are equivalent if all fields except `name` are equal.
    """

    name: str
    """Name of the convention, for display."""
    space: str
    """"delta_pose" (pose change), "absolute_pose" (target pose) or "joint_velocity"."""
    frame: str
    """"base" (robot base frame) or "end_effector"."""
    rotation: str
    """"rotation_vector" (rad), "euler_xyz" (extrinsic, rad) or "none"."""
    gripper: str
    """"open_is_one" (1 = open), "closed_is_one" (1 = closed) or "open_is_minus_one" (-1 = open,
    +1 = closed)."""
    dim: int
    """Length of one action, including all its rows."""
    scale: tuple[float, ...]
    """Multiply column i of a stored action by scale[i] to get metres, radians and gripper units."""
    rate_hz: float
    """Actions per second."""
    rows: int = 1
    """Successive commands concatenated in one action, oldest first, all of equal meaning."""

    def __post_init__(self) -> None:
        if len(self.scale) != self.dim:
            raise ValueError(f"`scale` needs {self.dim} entries, got {len(self.scale)}.")
        if self.rows < 1 or self.dim % self.rows:
            raise ValueError(f"`rows` must divide `dim` {self.dim}, got {self.rows}.")
        if not 0 < self.rate_hz < math.inf:
            raise ValueError(f"`rate_hz` must be positive, got {self.rate_hz}.")
        if not all(factor and math.isfinite(factor) for factor in self.scale):
            raise ValueError(f"`scale` must hold finite numbers other than 0, got {self.scale}.")

    def side_by_side(self, rows: int) -> ActionSpec:
        """Spec of `rows` successive actions concatenated into one, at 1 / `rows` of the rate.

        >>> spec = CANONICAL.side_by_side(3)
        >>> spec.dim, spec.rows, spec.rate_hz
        (21, 3, 1.66...)
        """
        return replace(
            self,
            dim=rows * self.dim,
            rows=rows * self.rows,
            scale=rows * self.scale,
            rate_hz=self.rate_hz / rows,
        )

    @property
    def one_row(self) -> ActionSpec:
        """Spec of a single command of the action; the inverse of `side_by_side`."""
        width = self.dim // self.rows
        rate = self.rate_hz * self.rows
        return replace(self, dim=width, rows=1, scale=self.scale[:width], rate_hz=rate)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**asdict(self), "scale": list(self.scale)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str = "The action spec") -> ActionSpec:
        """The inverse of `as_dict`; `where` names the source of the fields in messages.

        Raises:
            ValueError: a field is missing, unknown or has another type.
        """
        if unknown := sorted(fields.keys() - cls.__dataclass_fields__.keys()):
            raise ValueError(f"{where} has the unknown field {unknown[0]!r}.")
        return checked(dict(fields), cls, where)


CANONICAL = ActionSpec(
    name="canonical",
    space="delta_pose",
    frame="base",
    rotation="rotation_vector",
    gripper="open_is_one",
    dim=7,
    scale=(1.0,) * 7,
    rate_hz=5.0,
)
"""Δx Δy Δz (m), rotation vector (rad), gripper opening in [0, 1] (1 = open), base frame, 5 Hz."""

START_UP = 1e-6
"""Metres and radians below which a first row is no motion; Bridge's moving rows exceed 3e-3."""


def canonical_gripper(
    values: Float[np.ndarray, "*rows"], gripper: str
) -> Float[np.ndarray, "*rows"]:
    """Convert gripper values of a convention to the opening, 1 = open.

    >>> canonical_gripper(np.array([-1.0, 1.0]), "open_is_minus_one")
    array([1., 0.])
    """
    slope, offset = _gripper_line(gripper)
    return slope * values + offset


def source_gripper(opening: Float[np.ndarray, "*rows"], gripper: str) -> Float[np.ndarray, "*rows"]:
    """The inverse of `canonical_gripper`."""
    slope, offset = _gripper_line(gripper)
    return (opening - offset) / slope


def _gripper_line(gripper: str) -> tuple[float, float]:
    """Slope and offset of opening = slope · value + offset."""
    lines = {
        "open_is_one": (1.0, 0.0),
        "closed_is_one": (-1.0, 1.0),
        "open_is_minus_one": (-0.5, 0.5),
    }
    if gripper not in lines:
        raise ValueError(f"`gripper` must be one of {', '.join(lines)}, got {gripper!r}.")
    return lines[gripper]


@dataclass(frozen=True)
class DeltaPose:
    """Stored pose changes in the base frame <-> canonical actions, row by row and lossless."""

    spec: ActionSpec
    """Meaning of the stored rows; columns after the seventh belong to a mobile base at rest."""

    def __post_init__(self) -> None:
        spec = self.spec
        known = spec.rotation in ("rotation_vector", "euler_xyz") and spec.dim >= 7
        known = known and spec.rows == 1
        if not (known and spec.space == "delta_pose" and spec.frame == "base"):
            raise ValueError(
                f"`spec` must be a pose change in the base frame of 7 columns or more, got {spec}."
            )

    def __call__(self, stored: Float[np.ndarray, "time dim"]) -> Float32[np.ndarray, "time 7"]:
        """Convert stored rows to canonical actions."""
        rows = checked_rows(stored, dim=self.spec.dim, what="actions") * np.array(self.spec.scale)
        if np.any(rows[:, 7:]):
            raise ValueError(
                "`actions` move the mobile base (columns after the seventh); no canonical form."
            )
        if self.spec.rotation == "euler_xyz":
            from worldmodel.datasets.rotations import euler_to_rotation_vector

            rows[:, 3:6] = euler_to_rotation_vector(rows[:, 3:6])
        rows[:, 6] = canonical_gripper(rows[:, 6], self.spec.gripper)
        return rows[:, :7].astype(np.float32)

    def inverse(self, actions: Float[np.ndarray, "time 7"]) -> Float32[np.ndarray, "time dim"]:
        """Convert canonical actions to stored rows."""
        rows = np.zeros((len(actions), self.spec.dim))
        rows[:, :7] = checked_rows(actions, dim=7, what="actions")
        if self.spec.rotation == "euler_xyz":
            from worldmodel.datasets.rotations import rotation_vector_to_euler

            rows[:, 3:6] = rotation_vector_to_euler(rows[:, 3:6])
        rows[:, 6] = source_gripper(rows[:, 6], self.spec.gripper)
        return (rows / np.array(self.spec.scale)).astype(np.float32)


def checked_rows(values: ArrayLike, *, dim: int, what: str) -> Float64[np.ndarray, "time dim"]:
    """Rows of `dim` finite numbers as a fresh float64 array.

    Raises:
        ValueError: if the rows are ragged, of another width, NaN or infinite; names `what`.

    >>> checked_rows([[1, 2]], dim=2, what="points")
    array([[1., 2.]])
    """
    try:
        rows = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{what}` must be rows of {dim} numbers, got ragged or non-numeric rows."
        ) from error
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(
            f"`{what}` must be rows of {dim} numbers, got an array of shape {rows.shape}."
        )
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if broken.size:
        raise ValueError(
            f"`{what}` holds NaN or infinity, first in row {broken[0]} of {len(rows)}."
        )
    return rows


def convert(
    actions: Float[np.ndarray, "time source_dim"], source: ActionSpec, target: ActionSpec
) -> Float32[np.ndarray, "time target_dim"]:
    """Convert actions from spec `source` to spec `target` without loss.

    Raises:
        ValueError: unless the specs are equivalent, or both are pose changes in the base frame at
            the same rate. Other rows cannot be converted without the pose they start from. The
            message prints both specs.
    """
    if replace(source, name=target.name) == target:
        return checked_rows(actions, dim=source.dim, what="actions").astype(np.float32)
    try:
        if source.rate_hz != target.rate_hz:
            raise ValueError("the rates differ")
        read, write = DeltaPose(source), DeltaPose(target)
    except ValueError as error:
        raise ValueError(f"No lossless conversion of actions from {source} to {target}.") from error
    return write.inverse(read(actions))


def sum_actions(
    actions: Float[np.ndarray, "chunk row 7"],
) -> Float32[np.ndarray, "chunk 7"]:
    """Compose the rows of each chunk into one canonical action.

    Translations are summed in the base frame, rotations composed; the last gripper opening is kept.
    """
    from worldmodel.datasets.rotations import compose_rotation_vectors

    summed = np.empty((len(actions), 7), np.float32)
    summed[:, :3] = actions[:, :, :3].sum(axis=1, dtype=np.float64)
    summed[:, 3:6] = compose_rotation_vectors(actions[:, :, 3:6])
    summed[:, 6] = actions[:, -1, 6]
    return summed


def commanded_actions(
    stored: Float[np.ndarray, "time dim"], to_canonical: DeltaPose
) -> tuple[Float32[np.ndarray, "time 7"], Bool[np.ndarray, " time"]]:
    """Canonical actions of a Bridge episode and their validity mask; invalid rows are zero.

    The last row is invalid, because no frame follows. A first row without motion (every component
    below 1e-6 m or rad) is invalid, because it is the recorder's start-up and not a command.
    """
    actions = to_canonical(stored)
    valid = np.arange(len(actions)) < len(actions) - 1
    valid[:1] &= np.any(np.abs(actions[:1, :6]) >= START_UP, axis=1)
    actions[~valid] = 0
    return actions, valid
