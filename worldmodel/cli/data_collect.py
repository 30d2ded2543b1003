"""Record episodes of the embedded tabletop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Record episodes of the embedded tabletop."""

    out: tyro.conf.Positional[Path]
    """Clip store to write (.zarr); one that was begun with the same options is continued."""
    task: str = "pick_place"
    """"pick_place", "push" or "lift"."""
    episodes: int = 100
    """Number of episodes the store holds in the end."""
    policy: str = "mixed"
    """A scripted policy (clean, noise_010, bias_015, ...) or "mixed", the training mixture."""
    factor: str = "nominal"
    """What is shifted: "nominal", a scene factor (lighting, ...) or an action fault (delay)."""
    severity: int = 1
    """How strongly: 1 (just outside the nominal range), 2 or 3."""
    onset: int = 0
    """Frame from which the scene is shifted, or the fault strikes; 0: from the start."""
    seed: int = 0
    """Seed of the collection; each episode derives its own."""
    renderer: str = "auto"
    """"ray" (runs everywhere), "gl" (EGL or OSMesa) or "auto" (gl where it works)."""
    size: int = 64
    """Height and width of the frames in pixels."""
    num_steps: int = 40
    """Frames per episode, at 5 Hz."""
    workers: int = 1
    """Processes that simulate, one thread each."""
    json: bool = False
    """Print what was recorded as JSON."""


def run(command: Command) -> int:
    """Record what is missing and print the number of episodes and of successes."""
    from tqdm import tqdm

    from worldmodel.envs.collect import Collection, collect
    from worldmodel.envs.renderers import resolve_renderer

    collection = Collection(
        task=command.task,
        policy=command.policy,
        factor=command.factor,
        severity=command.severity,
        onset=command.onset,
        seed=command.seed,
        renderer=resolve_renderer(command.renderer),
        size=command.size,
        num_steps=command.num_steps,
    )
    with tqdm(total=command.episodes, unit="episode") as bar:
        store = collect(
            command.out,
            collection,
            episodes=command.episodes,
            workers=command.workers,
            progress=bar.update,
        )
    successes = sum(bool(store.summary(episode).success) for episode in store.episode_ids)
    if command.json:
        print(
            json.dumps({"path": str(command.out), "episodes": len(store), "successes": successes})
        )
    else:
        print(f"{command.out}: {len(store)} episodes, {successes} successful")
    return 0
