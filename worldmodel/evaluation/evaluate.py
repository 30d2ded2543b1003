"""Policy evaluation in imagination, compared with true success rates.

The recorded actions of every policy are replayed in the world model from the first real frame of
each episode, and a success classifier reads the last imagined frames. The actions were chosen in
the real scene, so the comparison shows agreement on replay. It is no prediction of how a policy
would act on imagined frames. Baseline: a classifier that sees the same actions and no image. If the
baseline does as well, imagination adds nothing.
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
from worldmodel.evaluation.pigeonhole import Design, Outcomes, correlations, rates
from worldmodel.evaluation.statistics import (
    Correlation,
    Proportion,
    SuccessBounds,
    mmrv,
    mmrv_with_ties,
    success_bounds,
    wilson_interval,
)
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import roll_out

LAST_FRAMES = 3
"""Number of last frames over which the success probability is averaged."""


@dataclass(frozen=True)
class PolicyOutcomes:
    """True and predicted outcomes of the episodes of one policy."""

    true: Bool[np.ndarray, " episode"]
    """Success in the last real frame."""
    imagined: Bool[np.ndarray, " episode"]
    """Success classifier on the last imagined frames."""
    trusted: Bool[np.ndarray, " episode"]
    """Whether the rollout passed the gate."""
    from_actions: Bool[np.ndarray, " episode"]
    """Baseline: success classifier on the actions alone."""


@dataclass(frozen=True)
class PolicyResult:
    """One row of the policy table; every proportion has its n and its 95% Wilson interval."""

    name: str
    true: Proportion
    true_of_trusted: Proportion | None
    """True success of the trusted episodes alone; None if the gate stopped all."""
    imagined: Proportion
    """All rollouts, trusted or not."""
    bounds: SuccessBounds
    """Success rate of trusted rollouts, coverage of the gate, and bounds for all rollouts."""
    from_actions: Proportion
    """Baseline: success predicted from the actions alone."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of predicted with true success rates over policies."""

    pearson: Correlation
    spearman: Correlation
    mmrv: float
    """Mean maximum rank violation; 0 is best."""
    mmrv_with_ties: float
    """The same with ties of predicted rates charged to both policies."""
    mean_absolute_error: float


@dataclass(frozen=True)
class Evaluation:
    """Results of all policies, and the agreement of predicted with true success rates."""

    policies: tuple[PolicyResult, ...]
    num_episodes: int
    """Episodes of all policies together."""
    num_scenes: int
    """Scenes they start in; fewer than episodes if policies were run in the same scenes."""
    num_families: int
    """Families of policies."""
    imagined: Agreement
    gated: Agreement | None
    """Trusted rollouts against the truth of the same episodes, over policies with at least one;
    None if fewer than two have one."""
    from_actions: Agreement

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@torch.inference_mode()
def classify_episodes(
    model: WorldModel, gate: Gate, episodes: Sequence[Episode], *, seed: int
) -> PolicyOutcomes:
    """Imagine whole episodes from their first frame and classify their success.

    Raises:
        ValueError: An episode has no success label, or an instruction that the success classifiers
            were not trained on.
    """
    unknown = [e.name for e in episodes if e.batch.success[0, -1].isnan()]
    if unknown:
        raise ValueError(
            f"Episode {unknown[0]!r} has no success label; evaluation needs one per episode."
        )
    strange = [e.name for e in episodes if e.batch.task is not None and e.batch.task[0] < 0]
    if strange:
        raise ValueError(
            f"Episode {strange[0]!r} has another instruction than the success classifiers were "
            f"trained on: {'; '.join(model.config.tasks)}."
        )
    batches = [episode.batch for episode in episodes]
    longest = max(batch.latents.shape[1] for batch in batches)
    rollouts = roll_out(model, batches, start=1, horizon=longest, seed=seed)
    imagined, trusted = [], []
    for rollout, batch in zip(rollouts, batches, strict=True):
        last = rollout.imagined[None, -LAST_FRAMES:]
        probability = model.success(last, batch.task).mean()
        imagined.append(bool(probability > 0.5))
        trusted.append(gate.lets_through(rollout))
    from_actions = [bool(model.success_from_actions(b.actions, b.task)[0] > 0.5) for b in batches]
    return PolicyOutcomes(
        true=np.array([bool(batch.success[0, -1] > 0.5) for batch in batches]),
        imagined=np.array(imagined),
        trusted=np.array(trusted),
        from_actions=np.array(from_actions),
    )


def share(outcomes: Bool[np.ndarray, " episode"]) -> Proportion:
    """Proportion of True with its Wilson interval."""
    return wilson_interval(int(outcomes.sum()), len(outcomes))


def agreement(
    predicted: Outcomes, true: Outcomes, design: Design, *, generator: np.random.Generator
) -> Agreement:
    """Agreement of predicted with true success rates, given the outcomes of each policy."""
    p, t = rates(predicted), rates(true)
    r, rank = correlations(predicted, true, design, generator=generator)
    return Agreement(
        pearson=r,
        spearman=rank,
        mmrv=mmrv(p, t),
        mmrv_with_ties=mmrv_with_ties(p, t),
        mean_absolute_error=float(np.abs(p - t).mean()),
    )


def gated_agreement(
    judged: Sequence[PolicyOutcomes], design: Design, *, generator: np.random.Generator
) -> Agreement | None:
    """Agreement over trusted episodes; None if fewer than two policies have one."""
    kept = [i for i, outcome in enumerate(judged) if outcome.trusted.any()]
    if len(kept) < 2:
        return None
    imagined, true = (
        [np.where(judged[i].trusted, getattr(judged[i], side), np.nan) for i in kept]
        for side in ("imagined", "true")
    )
    return agreement(imagined, true, design.chosen(kept), generator=generator)


def compare_policies(
    judged: Mapping[str, PolicyOutcomes],
    *,
    generator: np.random.Generator,
    families: Mapping[str, str] | None = None,
    shared_scenes: bool = False,
) -> Evaluation:
    """Policy table and agreement metrics.

    Args:
        judged: Policy -> outcomes; at least two policies.
        generator: Draws resamples and permutations.
        families: Policy -> family, for example "noise" for all noise levels of one policy; None:
            the policies are independent.
        shared_scenes: Whether episode i of every policy starts in the same scene.
    """
    results = tuple(
        PolicyResult(
            name=name,
            true=share(outcome.true),
            true_of_trusted=share(outcome.true[outcome.trusted]) if outcome.trusted.any() else None,
            imagined=share(outcome.imagined),
            bounds=success_bounds(outcome.imagined, outcome.trusted),
            from_actions=share(outcome.from_actions),
        )
        for name, outcome in judged.items()
    )
    design = Design([families[n] if families else n for n in judged], shared_scenes)
    outcomes = list(judged.values())
    true, imagined, from_actions = (
        [getattr(outcome, side).astype(np.float64) for outcome in outcomes]
        for side in ("true", "imagined", "from_actions")
    )
    lengths = [len(episodes) for episodes in true]
    return Evaluation(
        policies=results,
        num_episodes=sum(lengths),
        num_scenes=max(lengths) if shared_scenes else sum(lengths),
        num_families=design.num_families,
        imagined=agreement(imagined, true, design, generator=generator),
        gated=gated_agreement(outcomes, design, generator=generator),
        from_actions=agreement(from_actions, true, design, generator=generator),
    )


def evaluate(
    model: WorldModel,
    gate: Gate,
    recorded: Mapping[str, Sequence[Episode]],
    *,
    seed: int = 0,
    families: Mapping[str, str] | None = None,
    shared_scenes: bool = False,
) -> Evaluation:
    """Evaluate policies in imagination, given their recorded episodes.

    Args:
        model: The world model, with trained success classifiers.
        gate: Selects the rollouts to trust.
        recorded: Policy -> its episodes with success labels; at least two policies.
        seed: Seed of the rollouts, the resamples and the permutation test.
        families: Policy -> family, for example "noise" for all noise levels of one policy; None:
            the policies are independent.
        shared_scenes: Whether episode i of every policy starts in the same scene.
    """
    judged = {
        name: classify_episodes(model, gate, episodes, seed=seed)
        for name, episodes in tqdm(recorded.items(), "evaluate")
    }
    return compare_policies(
        judged,
        generator=np.random.default_rng(seed),
        families=families,
        shared_scenes=shared_scenes,
    )
