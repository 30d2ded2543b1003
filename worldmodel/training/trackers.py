"""Experiment trackers beside the TensorBoard events, through Accelerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TRACKERS = ("tensorboard", "wandb", "trackio")
"""Names of trackers; TensorBoard events are always written."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise if a tracker is unknown or its package is not installed.

    Raises:
        ImportError: The package is missing.
        ValueError: The name is unknown.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"`--log-with` must be one of {', '.join(TRACKERS)}, got {name!r}.")
        if find_spec(name) is None:
            raise ImportError(f"`--log-with {name}` needs its package: pip install {name}.")


def start_trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Any]:
    """Started trackers of one stage, without TensorBoard.

    The run is named after the run folder and the stage, and belongs to the project "worldmodel".
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    started = []
    for name in names:
        if name == "tensorboard":
            continue
        tracker = LOGGER_TYPE_TO_CLASS[name](
            "worldmodel", name=f"{folder.parent.name}-{folder.name}"
        )
        tracker.start()
        tracker.store_init_configuration(dict(settings))
        started.append(tracker)
    return started


class Writers:
    """Event writer that passes everything on to trackers, too."""

    def __init__(self, events: Any, trackers: Sequence[Any]) -> None:
        self.events, self.trackers = events, trackers

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Log one figure."""
        self.add_scalars({name: value}, step)

    def add_scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures of the same step."""
        for name, value in figures.items():
            self.events.add_scalar(name, value, step)
        for tracker in self.trackers:
            tracker.log(dict(figures), step=step)

    def add_image(self, name: str, image: Any, step: int, *, dataformats: str) -> None:
        """Log an image; a tracker without images goes without."""
        self.events.add_image(name, image, step, dataformats=dataformats)
        for tracker in self.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({name: [image]}, step=step)

    def close(self) -> None:
        """Write what is left, and end the runs of all trackers."""
        self.events.close()
        for tracker in self.trackers:
            tracker.finish()
