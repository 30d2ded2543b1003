"""Training one part of a model: of a run, or of a model that was trained elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldmodel.calibration.choose_episodes import trained_on
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.model import WorldModel
from worldmodel.networks.compositor import CompositorConfig
from worldmodel.networks.confidence_heads import ConfidenceConfig
from worldmodel.training.presets import PRESETS, Preset
from worldmodel.training.run import ORDER
from worldmodel.training.stages import train

Store = Callable[..., ClipStore]


@pytest.fixture
def store(make_store: Store, micro: Preset, monkeypatch: pytest.MonkeyPatch) -> ClipStore:
    """Four episodes, and recipes by name."""
    monkeypatch.setitem(PRESETS, "micro", micro)
    other = ConfidenceConfig(hidden=8, head="continuous_scale", rule="brier")
    monkeypatch.setitem(PRESETS, "other-head", replace(micro, confidence=other))
    return make_store([6, 7, 6, 7])


def parts(model: WorldModel, *names: str) -> dict[str, torch.Tensor]:
    """Weights of some parts of a model."""
    return {k: v for k, v in model.state_dict().items() if k.split(".")[0] in names}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_stages_one_by_one_make_the_model_of_a_whole_run(store: ClipStore, tmp_path: Path) -> None:
    whole = train(store, "micro", tmp_path / "whole")
    for stage in ORDER:
        model = train(store, "micro", tmp_path / "parts", stage=stage)
        assert model.config.provenance["stages"][-1] == stage
    assert equal(model.state_dict(), whole.state_dict())


def test_a_head_with_familiarity_is_shown_what_is_familiar(
    store: ClipStore, micro: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = replace(micro.confidence, familiarity=True)
    monkeypatch.setitem(PRESETS, "familiar", replace(micro, confidence=head))
    model = train(store, "familiar", tmp_path / "run")
    buffers = {k: v for k, v in model.confidence.named_buffers() if "familiarity" in k}
    assert buffers["trunk.familiarity.fitted"]
    assert buffers["trunk.familiarity.directions"].norm(dim=0).max() == pytest.approx(1, abs=1e-3)
    loaded = WorldModel.load(tmp_path / "run" / "model")
    assert equal(parts(loaded, "confidence"), parts(model, "confidence"))


def test_a_stage_needs_those_before_it(store: ClipStore, tmp_path: Path) -> None:
    train(store, "micro", tmp_path / "run", stage="tokenizer")
    with pytest.raises(ValueError, match="is not fully trained: stage 'dynamics' is missing"):
        train(store, "micro", tmp_path / "run", stage="confidence")


def test_a_trained_model_gets_another_head_and_keeps_the_rest(
    store: ClipStore, tmp_path: Path
) -> None:
    source = train(store, "micro", tmp_path / "first")
    folder = str(tmp_path / "first" / "model")
    model = train(store, "other-head", tmp_path / "run", stage="confidence", model=folder)
    kept = ("tokenizer", "dynamics", "compositor", "picture_confidence", "judge", "action_judge")
    assert equal(parts(model, *kept), parts(source, *kept))
    assert model.config.confidence.head == "continuous_scale"
    assert set(model.config.provenance["stages"]) == {
        "tokenizer", "dynamics", "compositor", "pictures", "confidence", "judge",
    }  # fmt: skip
    again = train(store, "other-head", tmp_path / "run", stage="confidence", model=folder)
    assert equal(again.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match=r"started from `model` '.*first/model'; continue it"):
        train(store, "other-head", tmp_path / "run", stage="confidence")
    anew = train(
        store, "other-head", tmp_path / "run",
        stage="confidence", model=folder, restart="confidence",
    )  # fmt: skip
    assert equal(anew.state_dict(), model.state_dict())


def test_a_model_without_a_compositor_gets_one_and_keeps_the_rest(
    store: ClipStore, tmp_path: Path
) -> None:
    source = train(store, "micro", tmp_path / "first")
    source.set_compositor(None)
    source.config.provenance["stages"].remove("compositor")
    folder = str(tmp_path / "old")
    source.save(folder)
    options = {"stage": "compositor", "model": folder}
    model = train(store, "micro", tmp_path / "run", **options)
    kept = ("tokenizer", "dynamics", "confidence", "judge", "action_judge")
    assert equal(parts(model, *kept), parts(source, *kept))
    assert model.config.compositor == CompositorConfig()
    assert equal(WorldModel.load(tmp_path / "run" / "model").state_dict(), model.state_dict())
    anew = train(store, "micro", tmp_path / "run", restart="compositor", **options)
    assert equal(anew.state_dict(), model.state_dict())
    head = train(store, "micro", tmp_path / "head", stage="confidence", model=folder)
    assert head.compositor is None
    # The confidence in pictures was that of the pictures without a compositor.
    assert source.picture_confidence is not None
    assert model.picture_confidence is None
    assert "pictures" not in model.config.provenance["stages"]


def test_episodes_of_both_trainings_are_known(
    store: ClipStore, make_store: Store, tmp_path: Path
) -> None:
    """The dynamics learned from one data set, the head from another."""
    source = train(store, "micro", tmp_path / "first")
    other = make_store([7, 6, 7, 6, 7, 6], "other.zarr")
    folder = str(tmp_path / "first" / "model")
    model = train(other, "micro", tmp_path / "run", stage="confidence", model=folder)
    before = source.config.provenance["split"]
    assert {*before["dynamics"], *before["confidence"]} <= trained_on(model, store)
    assert set(model.config.provenance["split"]["confidence"]) <= trained_on(model, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "head"}, r"`stage` must be one of \['tokenizer', .*\], got 'head'\."),
        ({"stage": "judge", "restart": "dynamics"}, "`restart` must equal `stage`"),
        (
            {"model": "tabletop"},
            "`model` needs a `stage` of compositor, pictures, confidence, judge.*, got None",
        ),
        ({"model": "tabletop", "stage": "dynamics"}, "`model` needs .*got 'dynamics'"),
        ({"model": "nowhere", "stage": "confidence"}, "No checkpoint in 'nowhere'"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    store: ClipStore, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(store, "micro", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
