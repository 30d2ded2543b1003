"""Pose columns: the columns of a table that hold poses, and the meaning of their gripper values.

The meaning is declared by the column names, by the layout of a published data set, or by the user's
file (`--action-spec`). It is never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from worldmodel.structured_files import read_toml

GRIPPERS = ("open_is_one", "closed_is_one", "open_is_minus_one")
AXES = ("x", "y", "z", "roll", "pitch", "yaw")
GRIPPER_NAMES = {
    "gripper_open": "open_is_one",
    "gripper_opening": "open_is_one",
    "gripper_closed": "closed_is_one",
    "gripper_close": "closed_is_one",
}
"""Names of a gripper column that declare its convention."""
REACH_M = 2.0
"""Reach of any arm in metres; larger values are not positions in metres."""
DRAFT = """\
columns = ["observation.state"]  # joined: x y z (m), roll pitch yaw (extrinsic xyz, rad), gripper
gripper = "closed_is_one"  # or "open_is_one", "open_is_minus_one"
"""
"""Draft of a file for `--action-spec`."""


class StoredColumns(msgspec.Struct, forbid_unknown_fields=True):
    """Content of a file for `--action-spec`."""

    columns: Annotated[list[str], msgspec.Meta(min_length=1)]
    gripper: str


@dataclass(frozen=True, kw_only=True)
class PoseColumns:
    """Columns whose concatenation is x y z (m), roll pitch yaw (extrinsic xyz, rad), gripper."""

    columns: tuple[str, ...]
    gripper: str
    """Convention of the gripper values, as in `ActionSpec`."""

    def __post_init__(self) -> None:
        if self.gripper not in GRIPPERS:
            raise ValueError(
                f"`gripper` must be one of {', '.join(GRIPPERS)}, got {self.gripper!r}."
            )

    @classmethod
    def read(cls, file: Path) -> PoseColumns:
        """Read a TOML file with `columns` and `gripper`.

        Raises:
            ValueError: if the file is invalid; names the file and the problem.
        """
        advice = (
            f"it must hold `columns` (a list of column names) and `gripper` (one of "
            f"{', '.join(GRIPPERS)}); only Cartesian poses can be declared, joints are not read"
        )
        stored = read_toml(file, StoredColumns, advice)
        return cls(columns=tuple(stored.columns), gripper=stored.gripper)

    def refuse_joints(self, where: Path, names: Mapping[str, Sequence[str] | None]) -> None:
        """Raise if columns are joints by the names of their entries.

        Args:
            where: File with the names, for the message.
            names: Column -> names of its entries; None: not declared.
        """
        for column in self.columns:
            if joints := [name for name in names.get(column) or () if "joint" in name.lower()]:
                raise ValueError(
                    f"{where} names the numbers of `{column}` {', '.join(joints[:3])}, ...: they "
                    "are joints and no Cartesian poses. Actions in joint space are not read; "
                    "declare columns with poses, or add some by forward kinematics."
                )

    def poses(self, signals: Mapping[str, np.ndarray]) -> np.ndarray:
        """Pose rows of an episode.

        Raises:
            ValueError: if a column is missing, the rows do not have 7 numbers, or a position is
                beyond the reach of an arm.
        """
        if missing := [name for name in self.columns if name not in signals]:
            raise ValueError(f"column {missing[0]!r} is missing; it holds {', '.join(signals)}.")
        parts = [signals[name].reshape(len(signals[name]), -1) for name in self.columns]
        rows = np.concatenate(parts, axis=1).astype(np.float64)
        if rows.shape[1] != 7:
            raise ValueError(
                f"columns {', '.join(self.columns)} hold {rows.shape[1]} numbers, a pose and a "
                "gripper have 7."
            )
        farthest = float(np.abs(rows[:, :3]).max(initial=0.0))
        if farthest > REACH_M:
            raise ValueError(
                f"columns {', '.join(self.columns)} put the gripper {farthest:.3g} m from the "
                f"base, beyond any arm's reach ({REACH_M:g} m); they are not positions in metres."
            )
        return rows


def declared_poses(column: str, names: Sequence[str] | None, shape: Sequence[int]) -> PoseColumns:
    """Pose columns declared by the names of a column.

    Raises:
        ValueError: if the names do not declare poses and a gripper convention; says what was found.

    >>> declared_poses("state", [*AXES, "gripper_open"], [7]).gripper
    'open_is_one'
    """
    plain = [name.removesuffix(".pos").lower() for name in names or ()]
    if not plain:
        raise ValueError(f"column `{column}` has {list(shape)} numbers without names")
    found = f"column `{column}` holds {', '.join(names or ())}"
    if tuple(plain[:6]) != AXES or len(plain) != 7:
        raise ValueError(f"{found}: not x, y, z, roll, pitch, yaw and a gripper")
    if plain[6] not in GRIPPER_NAMES:
        raise ValueError(f"{found}, which does not say whether 1 is open or closed")
    return PoseColumns(columns=(column,), gripper=GRIPPER_NAMES[plain[6]])
