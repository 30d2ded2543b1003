"""`worldmodel imagine --decompose`: what it prints and keeps, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from worldmodel.cli import main
from worldmodel.datasets.rollout_log import RolloutLog

PARTS = ("aleatoric", "epistemic", "total")


def imagine(model: Path, data: Path, out: Path, *options: str) -> int:
    argv = ["imagine", "--model", model, "--data", data, "--out", out, "--horizon", "5"]
    return main([*map(str, argv), *options])


def test_parts_are_printed_logged_and_ranked_against_the_error(
    untrained: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "log.zarr", ("--decompose", "--episodes", "4")
    assert imagine(untrained, scenes, out, *options, "--json") == 0
    printed, log = json.loads(capsys.readouterr().out), RolloutLog.open(out)
    assert log.attributes["intent"] == {"width": 0.2, "num_sequences": 6, "num_seeds": 4}
    assert [row["episode"] for row in printed["decomposition"]] == list(log.rollouts())
    for row in printed["decomposition"]:
        kept = log.attributes_of(row["episode"])["decomposition"]
        assert kept == {name: value for name, value in row.items() if name in kept}
        assert row["error"] == pytest.approx(
            log.read(row["episode"])["error"][4:9].mean(), rel=1e-3
        )
        assert row["total"] == pytest.approx(row["aleatoric"] + row["epistemic"])
        assert (row["num_sequences"], row["num_seeds"]) == (6, 4)
    errors = [row["error"] for row in printed["decomposition"]]
    for part in PARTS:
        value, (low, high) = printed["kendall_tau"][part]
        values = [row[part] for row in printed["decomposition"]]
        assert value == pytest.approx(stats.kendalltau(values, errors).statistic)
        assert low <= value <= high
    assert imagine(untrained, scenes, out, *options) == 0  # nothing left to imagine: a table
    table = capsys.readouterr().out
    assert "Uncertainty of the first rollout of 4 episodes, in nats" in table
    assert f"{printed['decomposition'][0]['epistemic']:.1f} [" in table


def test_a_rollout_is_the_same_with_and_without(
    untrained: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, options in (("plain", ()), ("split", ("--decompose",))):
        assert imagine(untrained, scenes, tmp_path / name, "--only", "train/8", *options) == 0
    plain, split = (RolloutLog.open(tmp_path / name).read("train/8") for name in ("plain", "split"))
    np.testing.assert_array_equal(plain["imagined"], split["imagined"])
    assert "n/a" in capsys.readouterr().out.splitlines()[-1]  # one episode ranks nothing


def test_what_is_refused(
    untrained: Path, scenes: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "log.zarr"
    argv = ("imagine", "--model", untrained, "--data", scenes, "--out", out, "--horizon", "5")
    assert refused(*argv, "--decompose", "--width", "0") == (
        "`width` must be finite and above 0, got 0.0."
    )
    assert not out.exists()
    assert imagine(untrained, scenes, out, "--episodes", "1") == 0
    assert "was written with `intent` None, not {" in refused(*argv, "--decompose")
