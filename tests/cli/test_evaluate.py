"""`worldmodel evaluate` with the shipped model, against the library."""

import json

import pytest

from worldmodel import load
from worldmodel.cli import main
from worldmodel.episodes.episode import Episode
from worldmodel.evaluation import simulate
from worldmodel.evaluation.evaluate import Evaluation, evaluate
from worldmodel.report.policy_tables import agreement_table, policy_table

pytestmark = pytest.mark.slow
POLICIES = ("clean", "inverted_gripper")
SEED = 5
ARGV = ["evaluate", "--policies", *POLICIES, "--episodes", "2", "--seed", str(SEED)]
ARGV += ["--workers", "1"]
Recorded = dict[str, list[Episode]]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return simulate.policy_episodes(
        load("tabletop").model, POLICIES, task="pick_place", episodes=2, seed=SEED, workers=1
    )


@pytest.fixture(scope="module")
def expected(recorded: Recorded) -> Evaluation:
    checkpoint = load("tabletop")
    families = {name: name for name in POLICIES}
    return evaluate(
        checkpoint.model, checkpoint.gate, recorded, seed=SEED, families=families,
        shared_scenes=True,
    )  # fmt: skip


def test_json_equals_the_evaluation_of_the_library(
    recorded: Recorded, expected: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGV, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(expected.as_dict()))
    for policy, episodes in zip(printed["policies"], recorded.values(), strict=True):
        successes = [float(episode.batch.success[0, -1]) for episode in episodes]
        assert policy["true"]["value"] == sum(successes) / 2
        assert policy["bounds"]["coverage"]["n"] == 2
    clean, inverted = printed["policies"]
    assert (clean["name"], inverted["name"]) == POLICIES
    assert (clean["true"]["value"], inverted["true"]["value"]) == (1, 0)


def test_the_tables_are_those_of_the_library(
    recorded: Recorded,
    expected: Evaluation,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulate, "policy_episodes", lambda *_, **__: recorded)
    assert main(ARGV) == 0
    tables = policy_table(expected).to_text(), agreement_table(expected).to_text()
    assert capsys.readouterr().out == "{}\n\n{}\n".format(*tables)
