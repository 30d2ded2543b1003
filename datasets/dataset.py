"""Common interface of all dataset readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from worldmodel.datasets.actions import ActionSpec
from worldmodel.datasets.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class EpisodeSummary:
    """Facts about an episode that are known without decoding frames."""

    num_frames: int
    instruction: str
    success: bool | None
    """None if the source does not say."""


@runtime_checkable
class Dataset(Protocol):
    """Episodes by id ("train/0") or by position."""

    @property
    def form(self) -> str:
        """Name of the on-disk form, such as "annotation-json"."""
        ...

    @property
    def path(self) -> Path: ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, without those that are always black."""
        ...

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning of the stored actions; `Trajectory.actions` are already canonical."""
        ...

    @property
    def rate_hz(self) -> float:
        """Frames and actions per second, as the form declares it; video rate tags are ignored."""
        ...

    @property
    def episode_ids(self) -> tuple[str, ...]:
        """Unique ids with the split as prefix: "train/0"."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Trajectory]: ...

    def episode(self, key: str | int) -> Trajectory:
        """Open one episode by id or position; its frames are decoded only when indexed."""
        ...

    def summary(self, key: str | int) -> EpisodeSummary:
        """Length, instruction and outcome of one episode, without decoding frames."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileDataset:
    """`Dataset` over one folder; a reader supplies `load` and `summarize`."""

    form: str
    path: Path
    cameras: tuple[str, ...]
    action_spec: ActionSpec
    episode_ids: tuple[str, ...]
    load: Callable[[str], Trajectory]
    """Episode id -> trajectory."""
    summarize: Callable[[str], EpisodeSummary]
    """Episode id -> summary."""
    notes: tuple[str, ...] = ()
    """Parts of the data set that the reader left out, one sentence each."""
    undeclared: str | None = None
    """Reason why there are no actions (their meaning is not declared); None: they are declared."""

    @property
    def rate_hz(self) -> float:
        """Frames and actions per second: one of each per step."""
        return self.action_spec.rate_hz

    def __len__(self) -> int:
        return len(self.episode_ids)

    def __iter__(self) -> Iterator[Trajectory]:
        return map(self.load, self.episode_ids)

    def episode(self, key: str | int) -> Trajectory:
        """Open one episode by id or position."""
        return self.load(self._episode_id(key))

    def summary(self, key: str | int) -> EpisodeSummary:
        """Length, instruction and outcome of one episode."""
        return self.summarize(self._episode_id(key))

    def _episode_id(self, key: str | int) -> str:
        """The id at a position, or the id itself if it exists."""
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise ValueError(
                    f"`key`={key} is out of range: {self.path} holds {len(self)} episodes."
                )
            return self.episode_ids[key]
        if key not in self.episode_ids:
            raise ValueError(
                f"{self.path} has no episode {key!r}; it holds {len(self)}, "
                f"the first {self.episode_ids[0]!r}."
            )
        return key


def notes_of(dataset: Dataset) -> tuple[str, ...]:
    """Parts of a data set that its reader left out, one sentence each."""
    return getattr(dataset, "notes", ())


def undeclared_of(dataset: Dataset) -> str | None:
    """Why a data set has no actions: their meaning is not declared; None: it is."""
    return getattr(dataset, "undeclared", None)


def require_declared(dataset: Dataset) -> None:
    """Raise if the source of a data set does not declare the meaning of its numbers.

    Raises:
        ValueError: with what was found and how to declare it.
    """
    if undeclared := undeclared_of(dataset):
        raise ValueError(undeclared)
