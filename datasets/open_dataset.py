"""Detect the form of a dataset folder and open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worldmodel.datasets.dataset import Dataset
from worldmodel.datasets.readers import (
    annotation_json,
    droid_raw,
    irasim_bridge,
    lerobot,
    mp4_npz,
    rlds,
)
from worldmodel.datasets.readers.pose_columns import PoseColumns
from worldmodel.structured_files import read_json


@dataclass(frozen=True)
class Form:
    """An on-disk form: how to recognise and open it."""

    name: str
    mark: str
    """Files that identify the form, for messages."""
    matches: Callable[[Path], bool]
    open: Callable[[Path], Dataset]


def _is_clip_store(path: Path) -> bool:
    try:
        attributes = read_json(path / "zarr.json", dict).get("attributes")
    except (OSError, ValueError):
        return False
    return isinstance(attributes, dict) and attributes.get("worldmodel_form") == "clip-store"


def _open_clip_store(path: Path) -> Dataset:
    from worldmodel.datasets.clip_store import ClipStore  # Zarr loads only when a store is opened

    return ClipStore.open(path)


FORMS = (
    Form("clip-store", "zarr.json with `worldmodel_form`", _is_clip_store, _open_clip_store),
    Form(
        irasim_bridge.FORM,
        irasim_bridge.MARK,
        irasim_bridge.matches,
        irasim_bridge.open_irasim_bridge,
    ),
    Form(
        annotation_json.FORM,
        annotation_json.MARK,
        annotation_json.matches,
        annotation_json.open_annotation_json,
    ),
    Form(mp4_npz.FORM, mp4_npz.MARK, mp4_npz.matches, mp4_npz.open_mp4_npz),
    Form(droid_raw.FORM, droid_raw.MARK, droid_raw.matches, droid_raw.open_droid_raw),
    Form(rlds.FORM, rlds.MARK, rlds.matches, rlds.open_rlds),
    Form(lerobot.FORM, lerobot.MARK, lerobot.matches, lerobot.open_lerobot),
)


def open_dataset(path: str | Path, *, action_spec: Path | None = None) -> Dataset:
    """Open the dataset in a folder.

    Args:
        path: The folder, in any known form.
        action_spec: TOML file that declares the pose columns of a form that does not declare them
            itself (LeRobot; see `pose_columns`).

    Raises:
        FileNotFoundError, NotADirectoryError: if `path` is no folder.
        ValueError: if the folder is empty, has no known form, or is broken at first look.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the folder of a dataset.")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; give the folder of a dataset.")
    if not any(path.iterdir()):
        raise ValueError(f"{path} is empty; give the folder of a dataset.")
    for form in FORMS:
        if form.matches(path):
            if action_spec is None:
                return form.open(path)
            if form.name != lerobot.FORM:
                raise ValueError(f"{path} is {form.name}, which declares its actions itself.")
            return lerobot.open_lerobot(path, PoseColumns.read(action_spec))
    looked_for = "; ".join(f"{form.name} ({form.mark})" for form in FORMS)
    raise ValueError(f"{path} has no known form; looked for {looked_for}.")
