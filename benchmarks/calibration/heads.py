"""Confidence heads under comparison, trained on the same rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks.calibration.feature_bank import FeatureBank
from worldmodel.imagination import to_subpatches
from worldmodel.model import WorldModel
from worldmodel.networks.confidence_heads import EPSILONS, ConfidenceConfig, Head, build_head
from worldmodel.rollouts.open_loop import EpisodeRollouts

BATCH = 96
"""Frames per training step."""
LEARNING_RATE = 2e-3


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """Confidence head, its loss and its training data."""

    head: str = "distribution"
    rule: str = "crps"
    event: str = "rollout"
    """"velocity" (C3's), "one_step" or "rollout", see `feature_bank`."""
    corrupted: bool = False
    """Whether to train on corrupted episodes too."""
    familiarity: bool = False
    """Whether the head reads the distance of features from the training features."""

    @property
    def name(self) -> str:
        """Name in tables."""
        extras = [name for name in ("corrupted", "familiarity") if getattr(self, name)]
        return " + ".join([f"{self.head}, {self.rule}, {self.event}", *extras])


HEADS_AND_RULES = (
    ("fixed_scale", "logarithmic"), ("fixed_scale", "brier"),
    ("continuous_scale", "logarithmic"), ("continuous_scale", "brier"),
    ("multi_class", "logarithmic"), ("multi_class", "brier"),
    ("distribution", "logarithmic"), ("distribution", "brier"), ("distribution", "spherical"),
    ("distribution", "rps"), ("distribution", "crps"),
)  # fmt: skip
"""Compared on the deployed event; "logarithmic" is binary or categorical cross-entropy."""
EVENTS_OF = (
    ("fixed_scale", "logarithmic"), ("continuous_scale", "logarithmic"),
    ("multi_class", "logarithmic"), ("distribution", "crps"),
)  # fmt: skip
"""Also compared on the other events."""
ABLATION = (
    *(HeadRecipe(head=h, rule=r, event=e) for e in ("velocity", "one_step") for h, r in EVENTS_OF),
    *(HeadRecipe(head=head, rule=rule) for head, rule in HEADS_AND_RULES),
    HeadRecipe(familiarity=True),
    HeadRecipe(corrupted=True),
    HeadRecipe(corrupted=True, familiarity=True),
)
"""All compared combinations of head, loss, event and robustness to shift."""


def train_head(
    model: WorldModel,
    recipe: HeadRecipe,
    banks: Mapping[str, FeatureBank],
    *,
    steps: int,
    seed: int = 0,
) -> Head:
    """Train a head on a bank with AdamW and a one-cycle learning rate.

    Args:
        model: Model whose dynamics made the features.
        recipe: Head, loss and training data.
        banks: "velocity", "one_step", "rollout" and, if the recipe uses it, "corrupted".
        steps: Training steps.
        seed: Seed of the initial weights, batches and sampled error thresholds.
    """
    bank = banks[recipe.event]
    if recipe.corrupted:
        bank = bank.joined(banks["corrupted"])
    config = ConfidenceConfig(
        head=recipe.head, rule=recipe.rule, familiarity=recipe.familiarity,
        hidden=model.config.confidence.hidden,
    )  # fmt: skip
    shape = model.config.dynamics
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head(shape.dim, shape.channels * shape.patch**2, config)
    if recipe.familiarity:
        familiar = banks[recipe.event].features[::8]
        head.fit_familiarity(familiar.float())
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05
    )
    generator = Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(bank), (BATCH,), generator=generator)
        features, horizon = bank.features[rows].float(), bank.horizon[rows]
        loss: Tensor = head.loss(features, horizon, bank.error[rows], generator=generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.inference_mode()
def restated(
    model: WorldModel, head: Head, rollouts: Sequence[EpisodeRollouts], *, event: str = "rollout"
) -> list[EpisodeRollouts]:
    """Rollouts with the confidence of another head.

    A head trained on an event without horizons always gets horizon 1.
    """
    levels, results = torch.tensor(EPSILONS), []
    for rollout in rollouts:
        assert rollout.features is not None, "the rollouts were made with `keep_features`"
        rows = np.flatnonzero(rollout.horizon > 0)
        horizon = torch.from_numpy(rollout.horizon[rows]).float()
        if event != "rollout":
            horizon = torch.ones_like(horizon)
        values = head.confidence(rollout.features[rows].float(), horizon, levels)
        confidence = rollout.confidence.clone()
        confidence[rows] = to_subpatches(values, model.dynamics).to(confidence.dtype)
        if rollout.view_valid is not None:
            confidence[~rollout.view_valid] = 1.0
        results.append(replace(rollout, confidence=confidence))
    return results
