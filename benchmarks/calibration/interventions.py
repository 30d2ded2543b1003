"""Things that do not belong, put into tabletop episodes at known pixels.

An object of a shape never trained on stands in the scene, under the very same physics; a textured
patch covers part of every picture, still or drifting; or part of every picture is tampered with.
The mask holds the pixels that were changed: a heatmap should point there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float64, UInt8
from tqdm import tqdm

from benchmarks.calibration.localisation import MarkedEpisode
from worldmodel.datasets.trajectory import ArrayFrames, Trajectory
from worldmodel.envs.collect import Collection
from worldmodel.envs.episode_recorder import CAMERA, collect_episode
from worldmodel.envs.factors import as_rgb
from worldmodel.envs.layout import TRAIN_POOL, Distractor, Layout, free_position
from worldmodel.envs.policies import MIXED
from worldmodel.envs.scene import DISTRACTORS
from worldmodel.envs.tabletop import TabletopEnv
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel

Film = UInt8[np.ndarray, "time height width 3"]
Masks = Bool[np.ndarray, "time height width"]
Pair = tuple[int, int]
Content = UInt8[np.ndarray, "time h w 3"]
Fill = Callable[[Film, Pair, Pair, np.random.Generator], Content]
"""Frames, the patch's first row and column, its height and width -> its content [time, h, w, 3]."""

CLEARLY = 12
"""Grey levels, of 255, by which a pixel must differ in some colour to count as changed."""
LEAST_SHARE = 1 / 256
"""Share of the first picture that an inserted object must change, else it is drawn again."""
ATTEMPTS = 40
LEAST_CHANGED = 1 / 3
"""Share of a patch's pixels that must change clearly in the first picture, else it is drawn
again: bare table moved onto bare table is no intervention."""
PATCH = (0.15, 0.35)
"""Least and greatest side of a patch, as a share of the picture's."""
DRIFT = (0.01, 0.04)
"""Least and greatest speed of a drifting patch, per frame, as a share of the free way."""
INSERTED = "inserted object"


@dataclass(frozen=True)
class Intervention:
    """An episode with something in its pictures that does not belong."""

    trajectory: Trajectory
    """Actions and states are those of the episode as it truly was."""
    mask: Bool[np.ndarray, "time view height width"]
    """Where it is; all false before it comes and where the arm hides it."""


def interventions(
    env: TabletopEnv,
    *,
    seed: int,
    policy: str = MIXED,
    num_steps: int = 40,
    onset: int = 0,
) -> dict[str, Intervention]:
    """One nominal episode under every kind of intervention, each from frame `onset` on.

    Args:
        env: Its task and picture size are those of the episode.
        seed: Of the episode and of what is put into it.
        policy: Name of the scripted policy, or "mixed".
        num_steps: Frames.
        onset: First frame with the intervention; 0: it was always there.
    """
    if not 0 <= onset < num_steps:
        raise ValueError(f"`onset` must lie in [0, {num_steps}), a frame's index, got {onset}.")
    nominal = collect_episode(env, policy, seed=seed, num_steps=num_steps)
    frames = nominal.frames[CAMERA][:]
    changes: dict[str, Callable[[np.random.Generator], tuple[Film, Masks]]] = {
        INSERTED: partial(insert_object, env, nominal, seed)
    }
    changes |= {name: partial(change, frames) for name, change in PATCHES.items()}
    result = {}
    for number, (kind, change) in enumerate(changes.items()):
        changed, mask = change(np.random.default_rng([seed, 2, number]))
        changed = np.concatenate([frames[:onset], changed[onset:]])
        mask[:onset] = False
        trajectory = replace(
            nominal,
            episode_id=f"{nominal.episode_id}-{kind}",
            frames={CAMERA: ArrayFrames(changed)},
        )
        result[kind] = Intervention(trajectory, mask[:, None])
    return result


def marked_episodes(
    model: WorldModel, collection: Collection, *, number: int, num_steps: int
) -> list[MarkedEpisode]:
    """Every kind of intervention in the first `number` episodes of a collection, for a model."""
    env = TabletopEnv(collection.task, collection.size, collection.renderer)
    marked = []
    for index in tqdm(range(number), "interventions", unit="episode"):
        seed = collection.episode_seed(index)
        changed = interventions(env, seed=seed, policy=collection.policy, num_steps=num_steps)
        for kind, intervention in changed.items():
            episode = load_episode(model, intervention.trajectory, model.config.cameras)
            marked.append(
                MarkedEpisode(kind, collection.episode_id(index), episode, intervention.mask)
            )
    env.close()
    return marked


def insert_object(
    env: TabletopEnv, nominal: Trajectory, seed: int, rng: np.random.Generator
) -> tuple[Film, Masks]:
    """The episode rendered again with one more object, which nothing touches."""
    for _ in range(ATTEMPTS):
        picture = env.reset(seed=seed, options={"factor": "nominal"})[0]["image"]
        distractor = _novel_distractor(env, rng)
        if distractor is None:
            continue
        env.simulation.show(distractor)
        first = env.renderer.render(env.simulation.data, env.domain)
        if _changed(first, picture).mean() >= LEAST_SHARE:
            break
    else:
        raise ValueError(f"`seed` {seed} leaves no place for an object in view; take another seed.")
    later = [env.step(action)[0]["image"] for action in nominal.actions[:-1]]
    changed = np.stack([first, *later])
    return changed, _changed(changed, nominal.frames[CAMERA][:])


def _novel_distractor(env: TabletopEnv, rng: np.random.Generator) -> Distractor | None:
    """A shape outside the training pool, of any colour, where there is room; None: found none."""
    scene = env.simulation.scene()
    layout = Layout(scene.object[:2], scene.object_yaw, scene.zone, scene.gripper)
    index = int(rng.integers(TRAIN_POOL, len(DISTRACTORS)))
    color = as_rgb(rng.uniform(0, 1, 3))
    position = free_position(layout, env.simulation.distractor_positions(), rng)
    return None if position is None else Distractor(index, position, color)


def _changed(
    a: UInt8[np.ndarray, "*time height width 3"], b: UInt8[np.ndarray, "*time height width 3"]
) -> Bool[np.ndarray, "*time height width"]:
    return (np.abs(a.astype(int) - b) > CLEARLY).any(axis=-1)


def patch(
    frames: Film, rng: np.random.Generator, *, fill: Fill, drifts: bool = False
) -> tuple[Film, Masks]:
    """A rectangle of every picture replaced by what `fill` makes; drifting, it turns at borders."""
    time, height, width, _ = frames.shape
    for _ in range(ATTEMPTS):
        sides = np.round(rng.uniform(*PATCH, 2) * (height, width)).clip(1)
        h, w = sides.astype(int).tolist()
        speed = rng.choice([-1, 1], 2) * rng.uniform(*DRIFT, 2) * drifts
        place = bounced(rng.uniform(0, 1, 2) + speed * np.arange(time)[:, None])
        corners = np.round(place * (height - h, width - w)).astype(int).tolist()
        content = fill(frames, tuple(corners[0]), (h, w), rng)
        changed, mask = frames.copy(), np.zeros(frames.shape[:3], dtype=bool)
        for t, (y, x) in enumerate(corners):
            changed[t, y : y + h, x : x + w] = content[t]
            mask[t, y : y + h, x : x + w] = True
        if _changed(changed[0], frames[0])[mask[0]].mean() >= LEAST_CHANGED:
            return changed, mask
    raise ValueError("`frames` look the same everywhere: no patch of them would change anything.")


def bounced(place: Float64[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
    """Positions folded back into [0, 1], as a ball between walls.

    >>> bounced(np.array([0.5, 1.25, -0.5]))
    array([0.5 , 0.75, 0.5 ])
    """
    return 1 - np.abs(1 - place % 2)


def occluder(frames: Film, corner: Pair, size: Pair, rng: np.random.Generator) -> Content:
    """Checks or stripes of two colours at least a third of the range apart."""
    rows, columns = np.indices(size) // int(rng.integers(2, 5))
    marked = (rows + columns) % 2 if rng.random() < 0.5 else columns % 2
    first = rng.integers(0, 256, 3)
    second = (first + rng.integers(85, 171, 3)) % 256
    texture = np.where(marked[..., None], first, second).astype(np.uint8)
    return np.broadcast_to(texture, (len(frames), *texture.shape))


def moved(frames: Film, corner: Pair, size: Pair, rng: np.random.Generator) -> Content:
    """What the same picture shows at another place."""
    (h, w), (height, width) = size, frames.shape[1:3]
    y, x = rng.integers((height - h + 1, width - w + 1)).tolist()
    return frames[:, y : y + h, x : x + w]


def shuffled(frames: Film, corner: Pair, size: Pair, rng: np.random.Generator) -> Content:
    """The patch's own pixels in another order, the same in every picture."""
    (y, x), (h, w) = corner, size
    pixels = rearrange(frames[:, y : y + h, x : x + w], "t h w c -> t (h w) c")
    return rearrange(pixels[:, rng.permutation(h * w)], "t (h w) c -> t h w c", h=h)


def noise(frames: Film, corner: Pair, size: Pair, rng: np.random.Generator) -> Content:
    """Every value by chance, fresh in every picture."""
    return rng.integers(0, 256, (len(frames), *size, 3), dtype=np.uint8)


PATCHES: dict[str, Callable[[Film, np.random.Generator], tuple[Film, Masks]]] = {
    "still occluder": partial(patch, fill=occluder),
    "drifting occluder": partial(patch, fill=occluder, drifts=True),
    "moved patch": partial(patch, fill=moved),
    "shuffled patch": partial(patch, fill=shuffled),
    "noise patch": partial(patch, fill=noise),
}
"""Kind -> what it makes of an episode's pictures."""
