"""The renderer of simulated data: recorded by store, model and monitor; a difference is told."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.episodes.load import open_for, renderer_of
from worldmodel.evaluation.simulate import policy_episodes
from worldmodel.model import WorldModel


@pytest.mark.parametrize(
    ("trained", "rendered", "warns"),
    [("ray", "gl", True), ("ray", "ray", False), (None, "gl", False), ("ray", None, False)],
)
def test_another_renderer_than_in_training_is_a_warning(
    make_model: Callable[..., WorldModel],
    make_store: Callable[..., ClipStore],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    trained: str | None,
    rendered: str | None,
    warns: bool,
) -> None:
    model, store = make_model(), make_store([4])
    provenance = {"data_attributes": {"renderer": trained}}
    model.config = replace(model.config, provenance=provenance)
    store.attributes["renderer"] = rendered
    monkeypatch.setattr("worldmodel.episodes.load.open_dataset", lambda _path: store)
    with caplog.at_level(logging.WARNING):
        open_for(model, store.path)
    assert ("are from the renderer 'gl'" in caplog.text) == warns


@pytest.mark.parametrize(("trained", "warns"), [("gl", True), ("ray", False), (None, False)])
def test_evaluation_warns_of_another_renderer_than_in_training(
    make_model: Callable[..., WorldModel],
    caplog: pytest.LogCaptureFixture,
    *,
    trained: str | None,
    warns: bool,
) -> None:
    model = make_model()
    provenance = {"data_attributes": {"renderer": trained}}
    model.config = replace(model.config, provenance=provenance)
    with caplog.at_level(logging.WARNING):
        policy_episodes(model, [], task="pick_place", episodes=1, seed=0, workers=1)
    text = "simulated episodes are from the renderer 'ray', but the model was trained on frames of"
    assert (text in caplog.text) == warns


def test_the_shipped_checkpoint_says_its_renderer() -> None:
    provenance = WorldModel.load("tabletop").config.provenance
    assert renderer_of(provenance["data_attributes"]) == "ray"
