"""Convert a dataset folder to the project's clip store (Zarr).

To continue an interrupted run, start it again with the same arguments.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel data convert`."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Dataset folder in any format that `worldmodel data info` reads."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET.zarr")]
    """Clip store to write: a new folder, or that of an interrupted run of this command."""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    """"jpeg": quality 95; JPEG frames of the source are copied. "raw": lossless pixels."""
    height: int | None = None
    """Height of the stored frames in pixels, width in proportion; None: as in the source."""
    workers: int = 1
    """Threads that decode and encode."""
    action_spec: Path | None = None
    """TOML file that declares the pose columns of a LeRobot dataset whose own metadata do not:
    `columns` and `gripper`; `data info` prints a draft."""
    skip_bad: bool = False
    """Skip and list episodes that cannot be read (exit code 1); default: stop at the first."""


def run(command: Command) -> int:
    """Convert the dataset; return 1 if episodes were skipped."""
    from tqdm import tqdm

    from worldmodel.datasets.convert import convert, open_target
    from worldmodel.datasets.dataset import notes_of, require_declared
    from worldmodel.datasets.open_dataset import open_dataset

    if command.workers < 1 or (command.height is not None and command.height < 1):
        raise ValueError("`--workers` and `--height` must be positive.")
    source = open_dataset(command.source, action_spec=command.action_spec)
    require_declared(source)
    for note in notes_of(source):
        print(f"note: {note}", file=sys.stderr)
    store = open_target(command.target, source, encoding=command.encoding, height=command.height)
    bad: list[str] = []

    def on_bad(episode_id: str, error: Exception) -> None:
        if not command.skip_bad:
            raise ValueError(
                f"Episode {episode_id!r} cannot be converted: {error} {command.target} keeps the "
                f"{len(store)} episodes before it; `--skip-bad` skips it."
            ) from error
        bad.append(f"skipped {episode_id}: {' '.join(str(error).split())}")

    notes: list[str] = []
    done = convert(
        source,
        store,
        height=command.height,
        workers=command.workers,
        on_bad=on_bad,
        on_note=lambda episode_id, note: notes.append(f"note: {episode_id}: {note}"),
    )
    for _ in tqdm(done, "convert", total=len(source), initial=len(store), unit="episode"):
        pass
    for line in (*notes, *bad):
        print(line, file=sys.stderr)
    frames = sum(store.summary(index).num_frames for index in range(len(store)))
    print(f"{command.target}: {len(store)} episodes, {frames} frames, {len(bad)} skipped")
    return 1 if bad else 0
