"""Models whose training is not over are refused by whoever needs what is missing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from worldmodel.checkpoint import check_trained
from worldmodel.model import WorldModel


@pytest.fixture
def half_trained(untrained: Path, tmp_path: Path) -> Path:
    model = WorldModel.load(untrained)
    model.config.provenance["stages"] = ["tokenizer", "dynamics"]
    model.save(tmp_path / "half")
    return tmp_path / "half"


@pytest.mark.parametrize("command", ["calibrate", "imagine", "watch", "evaluate"])
def test_half_trained_models_are_refused(
    command: str, half_trained: Path, scenes: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    options: list[str | Path] = [command, "--model", half_trained]
    if command != "evaluate":
        options += ["--data", scenes]
    if command == "imagine":
        options += ["--out", tmp_path / "log.zarr"]
    assert refused(*options) == (
        f"The model in '{half_trained}' is not fully trained: stage 'confidence' is missing; run "
        "its `worldmodel train` to the end."
    )
    assert not (half_trained / "monitor").exists()


def test_a_model_without_judges_cannot_evaluate(
    untrained: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    model = WorldModel.load(untrained)
    model.config.provenance["stages"] = ["tokenizer", "dynamics", "confidence"]
    model.save(tmp_path / "unlabelled")
    assert refused("evaluate", "--model", tmp_path / "unlabelled") == (
        f"The model in '{tmp_path / 'unlabelled'}' has no trained success classifier: its "
        "training data has no success labels, or `worldmodel train` did not finish; train on "
        "labelled data."
    )


def test_models_that_do_not_say_and_whole_ones_are_let_through() -> None:
    check_trained({}, "old", "confidence", "judge")
    check_trained({"stages": ["confidence", "judge"]}, "whole", "confidence", "judge")
