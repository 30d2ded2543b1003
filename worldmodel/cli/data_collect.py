"""Record episodes of the built-in tabletop simulator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel data collect`."""

    out: tyro.conf.Positional[Path]
    """Clip store to write (.zarr); a store begun with the same options is continued."""
    task: str = "pick_place"
    """"pick_place", "push", "lift", or "mixed": all three, the first in half of the episodes."""
    episodes: int = 100
    """Total number of episodes in the store."""
    policy: str = "mixed"
    """A scripted policy (clean, noise_010, bias_015, ...) or "mixed", the training mixture."""
    factor: str = "nominal"
    """Shift: "nominal" (none), a scene factor (lighting, ...) or an action fault (delay)."""
    severity: int = 1
    """Strength of the shift: 1 (just outside the nominal range), 2 or 3."""
    onset: int = 0
    """First shifted or faulty frame; 0: the whole episode."""
    seed: int = 0
    """Seed of the collection; every episode derives its own seed from it."""
    renderer: str = "ray"
    """"ray" (any machine; the shipped checkpoint was trained on it), "gl" (needs EGL or OSMesa) or
    "auto" ("gl" where it works)."""
    size: int = 64
    """Height and width of the frames in pixels."""
    num_steps: int = 40
    """Frames per episode, at 5 Hz."""
    workers: int = 1
    """Simulation processes, one thread each."""
    json: bool = False
    """Print the result as JSON."""


def run(command: Command) -> int:
    """Record the missing episodes; print the number of episodes and of successes."""
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
