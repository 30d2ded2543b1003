"""Policies compared in imagination."""

import numpy as np
import pytest

from worldmodel.evaluation.evaluate import PolicyOutcomes, compare_policies


def outcomes(true: int, imagined: int, trusted: int, from_actions: int) -> PolicyOutcomes:
    """Ten episodes: so many true ones first."""

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
