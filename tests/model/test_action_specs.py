"""Actions of any width and rate: training, rollouts, saving and loading."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.datasets.actions import CANONICAL, ActionSpec
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.resampling import resample
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.clips import encode_episode, encode_store, latents_name
from worldmodel.episodes.load import load_episodes, open_for
from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig
from worldmodel.networks.sampler import Sampling
from worldmodel.rollouts.open_loop import roll_out
from worldmodel.training.new_model import model_actions, new_model
from worldmodel.training.presets import PRESETS, Preset
from worldmodel.training.stages import train

Make = Callable[..., Trajectory]


def spec_of(width: int) -> ActionSpec:
    return ActionSpec(
        name=f"{width} numbers", space="joint_velocity", frame="base", rotation="none",
        gripper="open_is_one", dim=width, scale=(1.0,) * width, rate_hz=5.0,
    )  # fmt: skip


@pytest.fixture
def wide_store(tmp_path: Path, make_trajectory: Make) -> Callable[[int], ClipStore]:
    """`wide_store(width)`: four episodes with actions of this width."""

    def make(width: int) -> ClipStore:
        spec = spec_of(width)
        store = ClipStore.create(
            tmp_path / "wide.zarr", cameras=("front",), action_spec=spec, rate_hz=5.0,
            encoding="raw", row_spec=spec,
        )  # fmt: skip
        for seed in range(4):
            actions = np.random.default_rng(seed).normal(size=(8, width)).astype(np.float32)
            episode = make_trajectory(f"episode-{seed}", 8, seed)
            store.add(replace(episode, actions=actions, action_spec=spec, row_spec=spec))
        return store

    return make


@pytest.fixture
def fast_store(tmp_path: Path, make_trajectory: Make) -> ClipStore:
    """Four episodes of 23 frames at 15 Hz."""
    store = ClipStore.create(
        tmp_path / "fast.zarr", cameras=("front",), action_spec=CANONICAL, rate_hz=15.0,
        encoding="raw",
    )  # fmt: skip
    for seed in range(4):
        store.add(replace(make_trajectory(f"episode-{seed}", 23, seed), rate_hz=15.0))
    return store


def imagined(model: WorldModel, store: ClipStore, **options: object) -> torch.Tensor:
    episodes = load_episodes(model, open_for(model, store.path))
    rollouts = roll_out(model, [e.batch for e in episodes], start=2, horizon=4, **options)
    return torch.stack([r.imagined for r in rollouts])


@pytest.mark.parametrize("width", [3, 14])
def test_actions_of_any_width_train_and_imagine(
    wide_store: Callable[[int], ClipStore], micro: Preset, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, width: int,
) -> None:  # fmt: skip
    monkeypatch.setitem(PRESETS, "wide", micro)
    store = wide_store(width)
    model = train(store, "wide", tmp_path / "run")
    assert model.config.action_spec == store.spec == spec_of(width)
    assert model.dynamics.condition.action_std.shape == (width,)
    latents = imagined(model, store)
    assert latents.isfinite().all()
    loaded = WorldModel.load(tmp_path / "run" / "model")
    assert loaded.config == model.config
    torch.testing.assert_close(imagined(loaded, store), latents, atol=1e-5, rtol=1e-5)
    guided = imagined(model, store, sampling=Sampling(guidance=3.0))
    assert (guided - latents).abs().max() > 1e-4  # the model uses the actions


@pytest.mark.parametrize(("chunk", "width"), [("sum", 7), ("encode", 21)])
def test_a_store_at_15_hz_trains_a_model_at_5_hz(
    fast_store: ClipStore, micro: Preset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    chunk: str, width: int,
) -> None:  # fmt: skip
    monkeypatch.setitem(PRESETS, "slow", replace(micro, frame_stride=3, action_chunk=chunk))
    model = train(fast_store, "slow", tmp_path / "run")
    assert (model.config.rate_hz, model.config.dynamics.action_dim) == (5.0, width)
    latents = imagined(model, fast_store)
    assert latents.shape[:2] == (4, 8)
    loaded = WorldModel.load(tmp_path / "run" / "model")
    assert loaded.config.action_spec == model.config.action_spec
    torch.testing.assert_close(imagined(loaded, fast_store), latents, atol=1e-5, rtol=1e-5)


def test_a_stride_of_three_equals_data_at_5_hz(
    fast_store: ClipStore, micro: Preset, tmp_path: Path
) -> None:
    slow_store = ClipStore.create(
        tmp_path / "slow.zarr", cameras=("front",), action_spec=CANONICAL, rate_hz=5.0,
        encoding="raw",
    )  # fmt: skip
    for episode in fast_store:
        slow_store.add(replace(resample(episode, CANONICAL), row_spec=None))
    model = new_model(slow_store, micro)
    assert model.config == new_model(fast_store, replace(micro, frame_stride=3)).config
    for fast, slow in zip(
        encode_store(model, fast_store, fast_store.episode_ids),
        encode_store(model, slow_store, slow_store.episode_ids),
        strict=True,
    ):
        for name in ("latents", "actions", "action_valid", "success"):
            assert torch.equal(getattr(fast, name), getattr(slow, name)), name


def test_latents_are_cached_per_rate(fast_store: ClipStore, micro: Preset) -> None:
    """Models with strides 1 and 3 have separate latents in one store."""
    every, third = (new_model(fast_store, replace(micro, frame_stride=n)) for n in (1, 3))
    assert every.tokenizer.fingerprint() == third.tokenizer.fingerprint()
    assert latents_name(every) != latents_name(third)
    lengths = [
        len(encode_store(m, fast_store, ["episode-0"])[0].latents[0]) for m in (every, third)
    ]
    assert lengths == [23, 8]
    whole, some = (encode_episode(m, fast_store.episode(0)).latents for m in (every, third))
    torch.testing.assert_close(some.float(), whole[:, ::3].float(), atol=2e-3, rtol=2e-3)


def test_the_action_spec_of_a_model_follows_the_preset(
    fast_store: ClipStore, micro: Preset
) -> None:
    summed = model_actions(fast_store, replace(micro, frame_stride=3))
    assert summed == CANONICAL
    encoded = model_actions(fast_store, replace(micro, frame_stride=5, action_chunk="encode"))
    assert (encoded.dim, encoded.rows, encoded.rate_hz) == (35, 5, 3.0)
    with pytest.raises(ValueError, match=r"^`frame_stride` must be at least 1, got 0\.$"):
        replace(micro, frame_stride=0)
    with pytest.raises(ValueError, match=r'^`action_chunk` must be "sum" or "encode", got \'mean'):
        replace(micro, action_chunk="mean")


def test_data_at_a_rate_that_does_not_divide_are_refused(
    fast_store: ClipStore, make_model: Callable[..., WorldModel]
) -> None:
    model = make_model()
    model.config = replace(model.config, action_spec=replace(CANONICAL, rate_hz=4.0))
    with pytest.raises(ValueError, match=r"No lossless .*rate_hz=15\.0.* to .*rate_hz=4\.0"):
        open_for(model, fast_store.path)


def test_a_config_agrees_with_itself_on_actions(make_model: Callable[..., WorldModel]) -> None:
    config: ModelConfig = make_model().config
    with pytest.raises(
        ValueError, match=r"^`dynamics` takes actions of 7 numbers, `action_spec` h"
    ):
        replace(config, action_spec=CANONICAL.side_by_side(2))
