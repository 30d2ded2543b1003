"""Describe a dataset folder: episodes, frames, rate, cameras, meaning of the actions."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from worldmodel.datasets.actions import ActionSpec
    from worldmodel.datasets.dataset import Dataset, EpisodeSummary


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel data info`."""

    path: tyro.conf.Positional[Path]
    """Folder of a dataset."""
    action_spec: Path | None = None
    """TOML file that declares the pose columns of a LeRobot dataset whose own metadata do not:
    `columns` and `gripper`; `data info` prints a draft."""
    json: bool = False
    """Print the result as JSON; rates in Hz, lengths in frames."""


def run(command: Command) -> int:
    """Print the contents of the folder."""
    from worldmodel.datasets.open_dataset import open_dataset

    dataset = open_dataset(command.path, action_spec=command.action_spec)
    episodes, unreadable = {}, {}
    for name in dataset.episode_ids:
        try:
            episodes[name] = dataset.summary(name)
        except (ValueError, OSError) as error:
            unreadable[name] = str(error)
    if command.json:
        print(json.dumps({**as_json(dataset, episodes), "unreadable": unreadable}, indent=2))
    else:
        print("\n".join(as_lines(dataset, episodes)))
    for name, reason in unreadable.items():
        print(f"Episode {name!r} cannot be read: {reason}", file=sys.stderr)
    return 1 if unreadable else 0


def as_json(dataset: Dataset, episodes: dict[str, EpisodeSummary]) -> dict[str, object]:
    """Dataset and episodes as JSON values."""
    from worldmodel.datasets.dataset import notes_of, undeclared_of

    return {
        "form": dataset.form,
        "num_episodes": len(episodes),
        "rate_hz": dataset.rate_hz,
        "cameras": list(dataset.cameras),
        "action_spec": None if undeclared_of(dataset) else dataset.action_spec.as_dict(),
        "undeclared": undeclared_of(dataset),
        "notes": list(notes_of(dataset)),
        "episodes": [
            {
                "id": name,
                "num_frames": summary.num_frames,
                "instruction": summary.instruction,
                "success": summary.success,
            }
            for name, summary in episodes.items()
        ],
    }


def as_lines(dataset: Dataset, episodes: dict[str, EpisodeSummary]) -> Iterator[str]:
    """Header about the dataset, then one line per episode."""
    from worldmodel.datasets.dataset import notes_of, undeclared_of
    from worldmodel.datasets.readers.pose_columns import DRAFT

    lengths = [summary.num_frames for summary in episodes.values()]
    yield f"form      {dataset.form}"
    yield f"episodes  {len(episodes)}{describe_splits(episodes)}"
    if lengths:
        yield f"frames    {sum(lengths)}, {min(lengths)} to {max(lengths)} per episode"
    yield f"rate      {dataset.rate_hz:g} Hz"
    yield f"cameras   {', '.join(dataset.cameras)}"
    if undeclared := undeclared_of(dataset):
        yield f"actions   not declared: {undeclared} Draft of the file:"
        yield from (f"            {line}" for line in DRAFT.splitlines())
    else:
        yield f"actions   {describe_actions(dataset.action_spec)}"
    yield from (f"note      {note}" for note in notes_of(dataset))
    yield ""
    width = max(map(len, [*episodes, "episode"]))
    yield f"{'episode':<{width}}  frames  success  instruction"
    for name, summary in episodes.items():
        success = {True: "yes", False: "no", None: "?"}[summary.success]
        facts = f"{name:<{width}}  {summary.num_frames:>6}  {success:<7}  {summary.instruction}"
        yield facts.rstrip()


def describe_splits(episode_ids: Iterable[str]) -> str:
    """Number of episodes per split, from ids such as "train/0".

    >>> describe_splits(["train/0", "train/1", "val/0"])
    ' (train 2, val 1)'
    """
    counts = Counter(name.partition("/")[0] for name in episode_ids if "/" in name)
    if not counts:
        return ""
    return f" ({', '.join(f'{split} {count}' for split, count in counts.items())})"


def describe_actions(spec: ActionSpec) -> str:
    """Meaning of the stored actions, in one line.

    >>> from worldmodel.datasets.actions import CANONICAL
    >>> describe_actions(CANONICAL)
    'canonical: delta_pose, base frame, rotation_vector, open_is_one, 7 columns, 5 Hz'
    """
    return (
        f"{spec.name}: {spec.space}, {spec.frame} frame, {spec.rotation}, {spec.gripper}, "
        f"{spec.dim} columns, {spec.rate_hz:g} Hz"
    )
