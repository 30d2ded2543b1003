"""Policies compared in imagination: success of each, which rollouts to believe, and the truth.

Every policy's recorded actions are replayed in the world model from the first real frame of each
episode; a judge reads success off the last imagined frames. Beside it stands a predictor that sees
the same actions and no image: where it does as well, imagination added nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from tqdm import tqdm

from worldmodel.calibration.gate import Gate
from worldmodel.episodes.episode import Episode
from worldmodel.evaluation.statistics import (
    Correlation,
    Proportion,
    SuccessBounds,
    mmrv,
    pearson,
    spearman,
    success_bounds,
    wilson_interval,
)
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import roll_out

LAST_FRAMES = 3
"""The judge's probabilities of so many last frames are averaged."""


@dataclass(frozen=True)
class PolicyOutcomes:
    """What became of each episode of one policy, truly and in imagination."""

    true: Bool[np.ndarray, " episode"]
    """The task was done in the last real frame."""
    imagined: Bool[np.ndarray, " episode"]
    """The judge sees it done in the last imagined frames."""
    trusted: Bool[np.ndarray, " episode"]
    """The gate let the rollout through."""
    from_actions: Bool[np.ndarray, " episode"]
    """What the predictor expects that sees only the actions."""


@dataclass(frozen=True)
class PolicyResult:
    """One row of the policy table; every proportion carries its n and its 95% Wilson interval."""

    name: str
    true: Proportion
    imagined: Proportion
    """Without the gate."""
    bounds: SuccessBounds
    """With the gate: success among trusted rollouts, coverage, and bounds over all rollouts."""
    from_actions: Proportion


@dataclass(frozen=True)
class Agreement:
    """How well predicted success rates agree with true ones over the policies."""

    pearson: Correlation
    spearman: Correlation
    mmrv: float
    """Mean maximum rank violation, 0 is best."""
    mean_absolute_error: float


@dataclass(frozen=True)
class Evaluation:
    """Policies and how far imagination agrees with the truth on them."""

    policies: tuple[PolicyResult, ...]
    imagined: Agreement
    gated: Agreement | None
    """Over policies with at least one trusted rollout; None if fewer than two have one."""
    from_actions: Agreement

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@torch.inference_mode()
def judge_episodes(
    model: WorldModel, gate: Gate, episodes: Sequence[Episode], *, seed: int
) -> PolicyOutcomes:
    """Imagine whole episodes from their first frame and judge them.

    Raises:
        ValueError: if an episode does not say whether it succeeded.
    """
    unknown = [e.name for e in episodes if e.batch.success.isnan().any()]
    if unknown:
        raise ValueError(
            f"Episode {unknown[0]!r} does not say whether it succeeded; evaluation needs that."
        )
    batches = [episode.batch for episode in episodes]
    longest = max(batch.latents.shape[1] for batch in batches)
    rollouts = roll_out(model, batches, start=1, horizon=longest, seed=seed)
    imagined, trusted = [], []
    for rollout in rollouts:
        probability = model.judge(rollout.imagined[None, -LAST_FRAMES:]).sigmoid().mean()
        imagined.append(bool(probability > 0.5))
        trusted.append(gate.lets_through(rollout))
    expected = [bool(model.action_judge(batch.actions)[0] > 0) for batch in batches]
    return PolicyOutcomes(
        true=np.array([bool(batch.success[0, -1] > 0.5) for batch in batches]),
        imagined=np.array(imagined),
        trusted=np.array(trusted),
        from_actions=np.array(expected),
    )


def share(outcomes: Bool[np.ndarray, " episode"]) -> Proportion:
    """Share of true outcomes with its Wilson interval."""
    return wilson_interval(int(outcomes.sum()), len(outcomes))


def agreement(
    predicted: Sequence[Proportion], true: Sequence[Proportion], *, generator: np.random.Generator
) -> Agreement:
    """Compare predicted with true success rates, policy by policy."""
    p, t = (np.array([rate.value for rate in rates]) for rates in (predicted, true))
    return Agreement(
        pearson=pearson(p, t, generator=generator),
        spearman=spearman(p, t, generator=generator),
        mmrv=mmrv(p, t),
        mean_absolute_error=float(np.abs(p - t).mean()),
    )


def compare_policies(
    judged: Mapping[str, PolicyOutcomes], *, generator: np.random.Generator
) -> Evaluation:
    """The policy table and its agreement figures.

    Args:
        judged: policy -> outcomes; at least two policies.
        generator: draws the orders of the permutation test.
    """
    results = tuple(
        PolicyResult(
            name=name,
            true=share(outcome.true),
            imagined=share(outcome.imagined),
            bounds=success_bounds(outcome.imagined, outcome.trusted),
            from_actions=share(outcome.from_actions),
        )
        for name, outcome in judged.items()
    )
    true = [r.true for r in results]
    gated = [(r.bounds.gated, r.true) for r in results if r.bounds.gated is not None]
    return Evaluation(
        policies=results,
        imagined=agreement([r.imagined for r in results], true, generator=generator),
        gated=agreement([g for g, _ in gated], [t for _, t in gated], generator=generator)
        if len(gated) >= 2
        else None,
        from_actions=agreement([r.from_actions for r in results], true, generator=generator),
    )


def evaluate(
    model: WorldModel, gate: Gate, recorded: Mapping[str, Sequence[Episode]], *, seed: int = 0
) -> Evaluation:
    """Compare policies by their recorded episodes.

    Args:
        model: the world model.
        gate: picks the rollouts to believe.
        recorded: policy -> its episodes, which say whether they succeeded; at least two policies.
        seed: of the rollouts and the permutation test.
    """
    judged = {
        name: judge_episodes(model, gate, episodes, seed=seed)
        for name, episodes in tqdm(recorded.items(), "evaluate")
    }
    return compare_policies(judged, generator=np.random.default_rng(seed))
