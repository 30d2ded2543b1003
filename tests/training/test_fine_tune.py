"""Runs that start from a trained model."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.model import WorldModel
from worldmodel.networks.recurrent import RecurrentConfig
from worldmodel.training.fine_tune import Start, keep_scales, scales
from worldmodel.training.presets import PRESETS, Preset
from worldmodel.training.settings import resolve
from worldmodel.training.stages import train

MakeStore = Callable[..., ClipStore]


@pytest.fixture
def first(
    make_store: MakeStore, micro: Preset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """A finished run."""
    monkeypatch.setitem(PRESETS, "micro", micro)
    tiny = RecurrentConfig(features=8, memory=4, condition=3, layers=2)
    monkeypatch.setitem(PRESETS, "micro-fast", replace(micro, dynamics=tiny))
    train(make_store([7, 6, 7, 6, 7, 6]), resolve("micro"), tmp_path / "first")
    return tmp_path / "first" / "model"


def test_it_starts_from_the_weights_and_keeps_the_tokenizer(
    first: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    source = WorldModel.load(first)
    other = make_store([7, 6, 7, 6], "other.zarr")
    settings = resolve("micro", assignments=["dynamics_loop.learning_rate=1e-9",
                                             "rollout_loop.learning_rate=1e-9"])  # fmt: skip
    model = train(other, settings, tmp_path / "run", init=Start(str(first)))
    for name, value in source.tokenizer.state_dict().items():
        assert torch.equal(model.tokenizer.state_dict()[name], value), name
    embed, before = model.dynamics.embed.weight, source.dynamics.embed.weight
    torch.testing.assert_close(embed, before, atol=1e-4, rtol=0)
    assert model.config.provenance["stages"][0] == "tokenizer"
    assert str(first) in str(model.config.provenance)


def test_its_shape_cannot_be_changed(first: Path, make_store: MakeStore, tmp_path: Path) -> None:
    other = make_store([7, 6, 7, 6], "other.zarr")
    settings = resolve("micro", assignments=["dynamics.layers=7"])
    with pytest.raises(ValueError, match=r"`dynamics.layers` of the model of `--init` is 1, not 7"):
        train(other, settings, tmp_path / "run", init=Start(str(first)))
    assert not (tmp_path / "run" / "model").exists()


def test_a_resumed_run_must_have_the_same_start_and_settings(
    first: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    other = make_store([7, 6, 7, 6], "other.zarr")
    train(other, resolve("micro"), tmp_path / "run", init=Start(str(first)))
    with pytest.raises(ValueError, match=r"init|start"):
        train(other, resolve("micro"), tmp_path / "run")
    changed = resolve("micro", assignments=["dynamics_loop.steps=3"])
    with pytest.raises(ValueError, match=r"dynamics_loop\.steps"):
        train(other, changed, tmp_path / "run", init=Start(str(first)))


def test_scales_are_kept_unless_the_data_have_another(
    caplog: pytest.LogCaptureFixture, first: Path
) -> None:
    dynamics = WorldModel.load(first).dynamics
    trained = scales(dynamics)
    condition = dynamics.condition
    with torch.no_grad():
        condition.action_std.mul_(1.5)
        condition.action_std[0] *= 100
    fitted = condition.action_std.clone()
    with caplog.at_level(logging.WARNING):
        keep_scales(dynamics, trained)
    kept = trained["condition.action_std"]
    assert torch.equal(condition.action_std[1:], kept[1:])
    assert condition.action_std[0] == fitted[0]
    assert "action_std of 1 of 7 columns is fitted anew" in caplog.text


def test_a_recurrent_model_is_tuned_for_other_tasks(
    first: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store([9, 8, 9, 8], "a.zarr")
    train(store, resolve("micro-fast"), tmp_path / "one")
    source = str(tmp_path / "one" / "model")
    model = train(store, resolve("micro-fast"), tmp_path / "two", init=Start(source))
    assert model.config.dynamics == WorldModel.load(source).config.dynamics
