"""Interventions on tabletop episodes with pixel masks, as ground truth for heatmaps.

Kinds: an inserted object of an unknown shape, with unchanged physics; a textured patch that covers
part of every frame, still or drifting; and a manipulated part of every frame. The mask marks the
changed pixels.
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

Video = UInt8[np.ndarray, "time height width 3"]
Masks = Bool[np.ndarray, "time height width"]
Pair = tuple[int, int]
Content = UInt8[np.ndarray, "time h w 3"]
Fill = Callable[[Video, Pair, Pair, np.random.Generator], Content]
"""(video, first row and column, height and width, rng) -> patch content [time, h, w, 3]."""

CLEARLY = 12
"""Minimum change of a pixel in any channel, in grey levels of 255, to count as changed."""
LEAST_SHARE = 1 / 256
"""Minimum share of the first frame that an inserted object must change, else resample."""
ATTEMPTS = 40
LEAST_CHANGED = 1 / 3
"""Minimum share of changed pixels in a patch of the first frame, else resample: table copied onto
table is no intervention."""
PATCH = (0.15, 0.35)
"""Range of a patch's sides, as a share of the frame."""
DRIFT = (0.01, 0.04)
"""Range of the speed of a drifting patch per frame, as a share of its free path."""
INSERTED = "inserted object"


@dataclass(frozen=True)
class Intervention:
    """Episode with an intervention in its frames."""

    trajectory: Trajectory
    """Original actions and states, changed frames."""
    mask: Bool[np.ndarray, "time view height width"]
    """Changed pixels; false before the onset and where the arm occludes the intervention."""


def interventions(
    env: TabletopEnv,
    *,
    seed: int,
    policy: str = MIXED,
    num_steps: int = 40,
    onset: int = 0,
) -> dict[str, Intervention]:
    """Apply every kind of intervention to one nominal episode, from frame `onset` on.

    Args:
        env: Environment with the task and frame size of the episode.
        seed: Seed of the episode and the interventions.
        policy: Name of the scripted policy, or "mixed".
        num_steps: Number of frames.
        onset: First frame with the intervention.
    """
    if not 0 <= onset < num_steps:
        raise ValueError(f"`onset` must be a frame index in [0, {num_steps}), got {onset}.")
    nominal = collect_episode(env, policy, seed=seed, num_steps=num_steps)
    frames = nominal.frames[CAMERA][:]
    changes: dict[str, Callable[[np.random.Generator], tuple[Video, Masks]]] = {
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
    """Apply every intervention to the first `number` episodes of a collection and encode them."""
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
) -> tuple[Video, Masks]:
    """Render the episode again with one more object, which nothing touches."""
    for _ in range(ATTEMPTS):
        original = env.reset(seed=seed, options={"factor": "nominal"})[0]["image"]
        distractor = _novel_distractor(env, rng)
        if distractor is None:
            continue
        env.simulation.show(distractor)
        first = env.renderer.render(env.simulation.data, env.domain)
        if _changed(first, original).mean() >= LEAST_SHARE:
            break
    else:
        raise ValueError(f"`seed` {seed} leaves no room for a visible object; choose another seed.")
    later = [env.step(action)[0]["image"] for action in nominal.actions[:-1]]
    changed = np.stack([first, *later])
    return changed, _changed(changed, nominal.frames[CAMERA][:])


def _novel_distractor(env: TabletopEnv, rng: np.random.Generator) -> Distractor | None:
    """Sample a shape outside the training pool at a free position; None if no position is free."""
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
    frames: Video, rng: np.random.Generator, *, fill: Fill, drifts: bool = False
) -> tuple[Video, Masks]:
    """Replace a rectangle of every frame by `fill`; a drifting patch bounces at the borders."""
    time, height, width, _ = frames.shape
    for _ in range(ATTEMPTS):
        sides = np.round(rng.uniform(*PATCH, 2) * (height, width)).clip(1)
        h, w = sides.astype(int).tolist()
        speed = rng.choice([-1, 1], 2) * rng.uniform(*DRIFT, 2) * drifts
        position = bounced(rng.uniform(0, 1, 2) + speed * np.arange(time)[:, None])
        corners = np.round(position * (height - h, width - w)).astype(int).tolist()
        content = fill(frames, tuple(corners[0]), (h, w), rng)
        changed, mask = frames.copy(), np.zeros(frames.shape[:3], dtype=bool)
        for t, (y, x) in enumerate(corners):
            changed[t, y : y + h, x : x + w] = content[t]
            mask[t, y : y + h, x : x + w] = True
        if _changed(changed[0], frames[0])[mask[0]].mean() >= LEAST_CHANGED:
            return changed, mask
    raise ValueError("`frames` must not be uniform: no patch changes them.")


def bounced(position: Float64[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
    """Reflect positions at the borders of [0, 1].

    >>> bounced(np.array([0.5, 1.25, -0.5]))
    array([0.5 , 0.75, 0.5 ])
    """
    return 1 - np.abs(1 - position % 2)


def occluder(frames: Video, corner: Pair, size: Pair, rng: np.random.Generator) -> Content:
    """Checkerboard or stripes of two colours that differ by at least a third of the range."""
    rows, columns = np.indices(size) // int(rng.integers(2, 5))
    pattern = (rows + columns) % 2 if rng.random() < 0.5 else columns % 2
    first = rng.integers(0, 256, 3)
    second = (first + rng.integers(85, 171, 3)) % 256
    texture = np.where(pattern[..., None], first, second).astype(np.uint8)
    return np.broadcast_to(texture, (len(frames), *texture.shape))


def moved(frames: Video, corner: Pair, size: Pair, rng: np.random.Generator) -> Content:
    """Content of another region of the same frame."""
    (h, w), (height, width) = size, frames.shape[1:3]
    y, x = rng.integers((height - h + 1, width - w + 1)).tolist()
    return frames[:, y : y + h, x : x + w]


def shuffled(frames: Video, corner: Pair, size: Pair, rng: np.random.Generator) -> Content:
    """Pixels of the patch in a random order, the same for every frame."""
    (y, x), (h, w) = corner, size
    pixels = rearrange(frames[:, y : y + h, x : x + w], "t h w c -> t (h w) c")
    return rearrange(pixels[:, rng.permutation(h * w)], "t (h w) c -> t h w c", h=h)


def noise(frames: Video, corner: Pair, size: Pair, rng: np.random.Generator) -> Content:
    """Uniform random values, new in every frame."""
    return rng.integers(0, 256, (len(frames), *size, 3), dtype=np.uint8)


PATCHES: dict[str, Callable[[Video, np.random.Generator], tuple[Video, Masks]]] = {
    "still occluder": partial(patch, fill=occluder),
    "drifting occluder": partial(patch, fill=occluder, drifts=True),
    "moved patch": partial(patch, fill=moved),
    "shuffled patch": partial(patch, fill=shuffled),
    "noise patch": partial(patch, fill=noise),
}
"""Kind -> function that applies it to a video."""
