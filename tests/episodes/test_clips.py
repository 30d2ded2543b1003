import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.clips import (
    encode_episode,
    encode_store,
    latents_name,
    success_per_frame,
)
from worldmodel.model import WorldModel
from worldmodel.networks.tokenizer import Tokenizer, TokenizerConfig


@pytest.fixture
def store(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> ClipStore:
    """Store of one episode with different videos from two cameras."""
    views = {name: make_trajectory("a", 3, seed) for seed, name in enumerate(("front", "wrist"))}
    frames = {name: view.frames["front"] for name, view in views.items()}
    store = ClipStore.create(
        tmp_path / "s.zarr",
        cameras=("front", "wrist"),
        action_spec=CANONICAL,
        rate_hz=5.0,
        encoding="raw",
    )
    store.add(replace(views["front"], frames=frames))
    return store


def other_camera(model: WorldModel) -> WorldModel:
    return WorldModel(replace(model.config, cameras=("wrist",)), model.tokenizer)


def other_size(model: WorldModel) -> WorldModel:
    dynamics = replace(model.config.dynamics, height=5)
    config = replace(model.config, image_size=(20, 16), dynamics=dynamics)
    return WorldModel(config, model.tokenizer)


def other_tokenizer(model: WorldModel) -> WorldModel:
    torch.manual_seed(1)
    small = TokenizerConfig(channels=2, widths=(4, 8, 8), layers=(0, 1, 1))
    return WorldModel(model.config, Tokenizer.from_config(small))


@pytest.mark.parametrize("change", [other_camera, other_size, other_tokenizer])
def test_each_model_has_its_own_latents(
    change: Callable[[WorldModel], WorldModel],
    make_model: Callable[..., WorldModel],
    store: ClipStore,
) -> None:
    model = make_model()
    before = encode_store(model, store, ["a"])[0].latents
    changed = change(model).eval()
    latents = encode_store(changed, store, ["a"])[0].latents
    assert torch.equal(latents, encode_episode(changed, store.episode("a")).latents)
    assert latents.shape != before.shape or not torch.allclose(latents, before, atol=0.05)
    assert torch.equal(encode_store(model, store, ["a"])[0].latents, before)


def test_the_key_of_latents_depends_on_the_order_of_cameras(
    make_model: Callable[..., WorldModel],
) -> None:
    model = make_model(views=2)
    names = set()
    for cameras in (("front", "wrist"), ("wrist", "front"), ("front", "wrist, front")):
        names.add(latents_name(WorldModel(replace(model.config, cameras=cameras), model.tokenizer)))
    assert len(names) == 3


def test_latents_under_old_keys_are_ignored_and_deleted_ones_are_recomputed(
    make_model: Callable[..., WorldModel], store: ClipStore
) -> None:
    """Older versions used the hash of the tokenizer as the key."""
    model = make_model()
    expected = encode_episode(model, store.episode("a")).latents
    store.write_latents(model.tokenizer.fingerprint(), "a", 0 * expected[0].numpy())
    assert torch.equal(encode_store(model, store, ["a"])[0].latents, expected)
    shutil.rmtree(store.path / "latents")
    reopened = ClipStore.open(store.path)
    assert torch.equal(encode_store(model, reopened, ["a"])[0].latents, expected)
    assert reopened.has_latents(latents_name(model), "a")


@pytest.mark.parametrize(("success", "last"), [(True, 1.0), (False, 0.0), (None, None)])
def test_an_outcome_labels_the_last_frame(
    make_trajectory: Callable[..., Trajectory], success: bool | None, last: float | None
) -> None:
    trajectory = replace(make_trajectory("a", 4, 0), success=success, signals={})
    labels = success_per_frame(trajectory)
    assert np.isnan(labels[:-1]).all()
    assert np.isnan(labels[-1]) if last is None else labels[-1] == last


def test_labels_per_frame_win_and_must_be_flags(
    make_trajectory: Callable[..., Trajectory],
) -> None:
    trajectory = make_trajectory("a", 4, 0)
    flags = np.array([False, False, True, True])
    labelled = replace(trajectory, success=False, signals={"success": flags})
    assert success_per_frame(labelled).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="must hold only 0 and 1"):
        success_per_frame(replace(trajectory, signals={"success": np.full(4, 0.5)}))
