"""Policy evaluation in imagination: what is counted, and how it agrees with true success."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldmodel.calibration.gate import Gate, rollout_signals
from worldmodel.episodes.clips import LatentBatch
from worldmodel.episodes.episode import Episode
from worldmodel.evaluation.evaluate import (
    Evaluation,
    PolicyOutcomes,
    compare_policies,
    evaluate,
)
from worldmodel.evaluation.statistics import wilson_interval
from worldmodel.imagination import Imagined
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts

SHAPE = (1, 2, 4, 4)
"""View, channel, height and width of the latents."""
YES, NO = 4.0, -4.0
"""Success logits, which are also the latents of a frame."""
RISE = (NO, NO, NO, NO, YES, YES, YES)
LATE = (NO, NO, NO, NO, NO, YES, YES)  # mean probability of the last three frames 0.66
DIP = (NO, NO, NO, YES, -12.0, 2.0, 2.0)  # mean probability 0.59, mean logit -2.7
FALL = (YES, YES, YES, YES, NO, NO, NO)
LAST = (NO, NO, NO, NO, NO, NO, YES)  # mean probability 0.34
HORIZON = 7


@dataclass(frozen=True)
class Case:
    """An episode: the imagined logits, and the outcomes that `evaluate` must find."""

    imagined: tuple[float, ...]
    true: bool
    trusted: bool
    from_actions: bool


CASES = {
    "a": [
        Case(RISE, true=False, trusted=True, from_actions=True),
        Case(FALL, true=True, trusted=True, from_actions=True),
        Case(LAST, true=True, trusted=True, from_actions=False),
        Case(FALL, true=True, trusted=False, from_actions=False),
    ],
    "b": [
        Case(RISE, true=True, trusted=False, from_actions=False),
        Case(LATE, true=False, trusted=True, from_actions=False),
        Case(DIP, true=True, trusted=True, from_actions=False),
        Case(FALL, true=False, trusted=False, from_actions=True),
    ],
    "c": [
        Case(FALL, true=False, trusted=False, from_actions=True),
        Case(LAST, true=False, trusted=False, from_actions=False),
        Case(FALL, true=False, trusted=False, from_actions=False),
        Case(LAST[1:], true=False, trusted=False, from_actions=False),  # a shorter episode
    ],
}


def confidence(horizon: np.ndarray, *, trusted: bool) -> np.ndarray:
    return (0.8 if trusted else 0.2) - 0.01 * horizon


def episode(case: Case) -> Episode:
    """Action columns: step of the latent, confidence of the rollout, logit of the baseline.

    Real frames show the true outcome in the last frame only, and the opposite in all others.
    """
    length = len(case.imagined) + 1
    actions = torch.zeros(1, length, 7)
    actions[0, :-1, 0] = torch.tensor((NO, *case.imagined)).diff()
    actions[..., 1] = float(case.trusted)
    actions[..., 2] = YES if case.from_actions else NO
    success = torch.full((1, length), float(not case.true))
    success[0, -1] = float(case.true)
    latents = (success * (YES - NO) + NO).reshape(1, length, 1, 1, 1, 1).expand(1, length, *SHAPE)
    latents = latents.clone()
    latents[:, 0] = NO
    batch = LatentBatch(latents, actions, torch.ones(1, length, dtype=torch.bool), success)
    return Episode("episode", torch.zeros(length, 1, 16, 16, 3, dtype=torch.uint8), batch)


class MeanLatent(nn.Module):
    """Success classifier whose logit is the mean latent of a frame."""

    def forward(self, latents: Tensor, task: Tensor | None = None) -> Tensor:
        return latents.mean((2, 3, 4, 5))


class ThirdAction(nn.Module):
    """Baseline classifier whose logit is the third action column."""

    def forward(self, actions: Tensor, task: Tensor | None = None) -> Tensor:
        return actions[:, 0, 2]


@pytest.fixture
def model(make_model: Callable[..., WorldModel]) -> WorldModel:
    """A world whose latents add up the first action column; the second sets the confidence."""
    model = make_model()

    def imagine(
        context: Tensor, actions: Tensor, *, epsilon: Sequence[float], **_: object
    ) -> Imagined:
        b, rows, _width = actions.shape
        steps = actions[..., 0].cumsum(1).reshape(b, rows, 1, 1, 1, 1)
        horizon = np.arange(1, rows + 1)
        levels = [confidence(horizon, trusted=bool(flag)) for flag in actions[:, 0, 1]]
        stated = torch.tensor(np.stack(levels), dtype=torch.float32).reshape(b, rows, 1, 1, 1, 1, 1)
        return Imagined(
            context[:, -1:] + steps,
            stated.expand(b, rows, *SHAPE, len(epsilon)),
            torch.zeros(b, rows, 1, 1),
        )

    model.imagine = imagine  # type: ignore[method-assign, assignment]
    model.judge, model.action_judge = MeanLatent(), ThirdAction()  # type: ignore[assignment]
    return model


@pytest.fixture(scope="module")
def gate() -> Gate:
    """Fitted on 40 rollouts of the confidence of a trusted one, give or take 0.02."""
    rng, horizon = np.random.default_rng(0), np.arange(HORIZON + 1)
    signals = []
    for _ in range(40):
        level = confidence(horizon, trusted=True) + rng.normal(0, 0.02, len(horizon))
        stated = (
            torch.from_numpy(level).reshape(-1, 1, 1, 1, 1, 1).expand(-1, *SHAPE, len(EPSILONS))
        )
        latents = torch.zeros(len(horizon), *SHAPE)
        rollout = EpisodeRollouts(latents, latents, stated.half(), horizon)
        signals.append(rollout_signals(rollout, HORIZON))
    config = MonitorConfig(alpha_notice=0.2, alpha_degrade=0.2, alpha_stop=0.2)
    monitor = RuntimeMonitor(config)
    monitor.fit(signals[:20], frame_shape=(1, 16, 16, 3), reference=signals[20:])
    return Gate(monitor, HORIZON)


@pytest.fixture
def evaluation(model: WorldModel, gate: Gate) -> Evaluation:
    recorded = {name: [episode(case) for case in cases] for name, cases in CASES.items()}
    return evaluate(model, gate, recorded)


def test_success_rates_of_every_policy(evaluation: Evaluation) -> None:
    assert [policy.name for policy in evaluation.policies] == ["a", "b", "c"]
    true, imagined, from_actions = (
        [getattr(policy, name).value for policy in evaluation.policies]
        for name in ("true", "imagined", "from_actions")
    )
    assert true == [3 / 4, 2 / 4, 0]
    assert imagined == [1 / 4, 3 / 4, 0]
    assert from_actions == [2 / 4, 1 / 4, 1 / 4]
    assert evaluation.policies[0].true == wilson_interval(3, 4)


def test_the_gate_counts_only_trusted_rollouts(evaluation: Evaluation) -> None:
    a, b, c = (policy.bounds for policy in evaluation.policies)
    assert (a.coverage, b.coverage, c.coverage) == (
        wilson_interval(3, 4),
        wilson_interval(2, 4),
        wilson_interval(0, 4),
    )
    assert a.gated == wilson_interval(1, 3)  # RISE of RISE, FALL and LAST
    assert b.gated == wilson_interval(2, 2)  # LATE and DIP
    assert c.gated is None
    assert (a.pessimistic.value, b.pessimistic.value, c.pessimistic.value) == (1 / 4, 2 / 4, 0)
    assert (a.optimistic.value, b.optimistic.value, c.optimistic.value) == (2 / 4, 4 / 4, 1)


def test_agreement_with_true_success(evaluation: Evaluation) -> None:
    imagined, gated = evaluation.imagined, evaluation.gated
    # In quarters: imagined 1 3 0, true 3 2 0.
    assert (imagined.pearson.value, imagined.spearman.value) == (None, None)  # three policies
    assert imagined.mean_absolute_error == pytest.approx((2 + 1 + 0) / 4 / 3)
    # a and b are in the wrong order; their true rates differ by 1/4 (imagined ones by 2/4).
    assert imagined.mmrv == pytest.approx((1 / 4 + 1 / 4 + 0) / 3)
    assert gated is not None
    assert gated.pearson.k == 2  # no rollout of c is trusted
    assert gated.pearson.value is None
    # Trusted episodes alone: imagined 1/3 and 2/2, true 2/3 and 1/2.
    assert gated.mean_absolute_error == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert evaluation.from_actions.mean_absolute_error == pytest.approx((1 + 1 + 1) / 4 / 3)


def test_truth_beside_the_gate_is_that_of_the_same_episodes(evaluation: Evaluation) -> None:
    a, b, c = (policy.true_of_trusted for policy in evaluation.policies)
    assert a == wilson_interval(2, 3)
    assert b == wilson_interval(1, 2)
    assert c is None


def test_shared_scenes_are_counted_once(model: WorldModel, gate: Gate) -> None:
    recorded = {name: [episode(case) for case in cases] for name, cases in CASES.items()}
    counts = [
        (e.num_episodes, e.num_scenes, e.num_families)
        for shared in (False, True)
        for e in [
            evaluate(
                model, gate, recorded, shared_scenes=shared,
                families={"a": "x", "b": "x", "c": "y"},
            )
        ]
    ]  # fmt: skip
    assert counts == [(12, 12, 2), (12, 4, 2)]


def test_episodes_need_a_success_label(model: WorldModel, gate: Gate) -> None:
    labelled = episode(CASES["a"][0])
    batch = replace(labelled.batch, success=torch.full_like(labelled.batch.success, torch.nan))
    unlabelled = replace(labelled, name="episode-7", batch=batch)
    with pytest.raises(ValueError, match="Episode 'episode-7' has no success label"):
        evaluate(model, gate, {"a": [labelled, unlabelled], "b": [labelled]})


def outcomes(true: int, imagined: int, trusted: int, from_actions: int) -> PolicyOutcomes:
    """Ten episodes; each count is the number of True, which come first."""

    def first(number: int) -> np.ndarray:
        return np.arange(10) < number

    return PolicyOutcomes(first(true), first(imagined), first(trusted), first(from_actions))


def test_the_table_counts_what_was_judged() -> None:
    judged = {"good": outcomes(9, 8, 5, 2), "bad": outcomes(1, 2, 10, 4)}
    evaluation = compare_policies(judged, generator=np.random.default_rng(0))
    good, bad = evaluation.policies
    assert (good.true.value, good.imagined.value, good.from_actions.value) == (0.9, 0.8, 0.2)
    assert good.bounds.coverage.value == 0.5
    assert good.bounds.gated is not None
    assert good.bounds.gated.value == 1.0  # the five let through are all imagined successes
    assert (good.bounds.pessimistic.value, good.bounds.optimistic.value) == (0.5, 1.0)
    assert bad.true.n == 10


def test_imagination_that_orders_policies_right_beats_a_predictor_that_does_not() -> None:
    judged = {
        name: outcomes(true, true, 10, 10 - true)
        for name, true in {"a": 9, "b": 6, "c": 3, "d": 0}.items()
    }
    evaluation = compare_policies(judged, generator=np.random.default_rng(0))
    assert evaluation.imagined.pearson.value == pytest.approx(1.0)
    assert evaluation.imagined.mmrv == 0
    assert evaluation.imagined.mean_absolute_error == 0
    assert evaluation.from_actions.pearson.value == pytest.approx(-1.0)
    assert evaluation.from_actions.mmrv > 0.5


def test_a_gate_that_stops_every_rollout_of_all_but_one_policy_leaves_nothing_to_compare() -> None:
    judged = {"a": outcomes(9, 9, 0, 9), "b": outcomes(1, 1, 4, 1)}
    evaluation = compare_policies(judged, generator=np.random.default_rng(0))
    assert evaluation.gated is None
    assert evaluation.policies[0].bounds.gated is None


def test_an_instruction_without_a_classifier_is_refused(model: WorldModel, gate: Gate) -> None:
    """Another task's classifier would answer, and nobody would notice."""
    model.config = replace(model.config, tasks=("lift the block", "push the block"))
    other = episode(CASES["a"][0])
    other = replace(other, batch=replace(other.batch, task=torch.tensor([-1])))
    with pytest.raises(ValueError, match=r"another instruction than .* lift the block; push the"):
        evaluate(model, gate, {"a": [other, other], "b": [other, other]})
