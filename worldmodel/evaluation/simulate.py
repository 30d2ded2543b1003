"""Simulated tabletop episodes, at the model's size and rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from tqdm import tqdm

from worldmodel.calibration.calibrated import Checkpoint
from worldmodel.envs.collect import Collection, record
from worldmodel.envs.policies import policy_family
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.load import load_episode, trained_renderer, warn_of_renderer
from worldmodel.evaluation.evaluate import Evaluation, evaluate
from worldmodel.model import WorldModel

Key = tuple[str, int]
"""Factor and severity; nominal has severity 0."""
Name = TypeVar("Name", Key, str)
RENDERER = "ray"
"""Renderer of the episodes; it needs no OpenGL, so figures are the same on every machine."""


def policy_episodes(
    model: WorldModel,
    policies: Sequence[str],
    *,
    task: str,
    episodes: int,
    seed: int,
    workers: int,
) -> dict[str, list[Episode]]:
    """Simulated episodes of each policy; episode i of every policy starts in the same scene.

    Warns if the model was trained on frames of another renderer.
    """
    trained = trained_renderer(model)
    warn_of_renderer("the simulated episodes", RENDERER, trained, "the model was trained")
    base = Collection(task=task, renderer=RENDERER, seed=seed)
    plan = [(name, replace(base, policy=name), episodes) for name in policies]
    return simulate(model, plan, workers=workers)


def simulate(
    model: WorldModel, plan: Sequence[tuple[Name, Collection, int]], *, workers: int
) -> dict[Name, list[Episode]]:
    """Record episodes for a plan: key, scene settings and number of episodes of each entry."""
    jobs = [(name, scene, index) for name, scene, number in plan for index in range(number)]
    recorded = record([(scene, index) for _, scene, index in jobs], workers=workers)
    episodes: dict[Name, list[Episode]] = {name: [] for name, _, _ in plan}
    for (name, _, _), trajectory in zip(jobs, tqdm(recorded, "simulate", len(jobs)), strict=True):
        episodes[name].append(load_episode(model, trajectory, model.config.cameras))
    return episodes


def evaluate_simulated(
    checkpoint: Checkpoint,
    policies: Sequence[str],
    *,
    task: str,
    episodes: int,
    seed: int,
    workers: int,
) -> Evaluation:
    """Simulate policies in the same scenes and evaluate them in imagination."""
    recorded = policy_episodes(
        checkpoint.model, policies, task=task, episodes=episodes, seed=seed, workers=workers
    )
    return evaluate(
        checkpoint.model,
        checkpoint.gate,
        recorded,
        seed=seed,
        families={name: policy_family(name) for name in policies},
        shared_scenes=True,
    )
