"""Fixtures that need PyTorch: a small network, a small world model, and a small clip store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from tests.frames import moving_square
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import ArrayFrames, Trajectory
from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig
from worldmodel.networks.confidence_heads import ConfidenceConfig
from worldmodel.networks.dynamics import Dynamics, DynamicsConfig, FrameInputs
from worldmodel.networks.tokenizer import Tokenizer, TokenizerConfig
from worldmodel.training.loop import LoopConfig
from worldmodel.training.presets import Preset

CAMERA = "front"


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Reset Accelerate, which keeps its precision for the whole process; tests use several."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def make_trajectory() -> Callable[..., Trajectory]:
    """`make_trajectory(name, num_frames, seed)`: an episode of the moving square."""

    def make(
        name: str, num_frames: int, seed: int, cameras: Sequence[str] = (CAMERA,)
    ) -> Trajectory:
        frames, actions = moving_square(num_frames, seed)
        valid = np.arange(num_frames) < num_frames - 1
        success = np.arange(num_frames) >= num_frames // (1 + seed % 2)
        return Trajectory(
            episode_id=name,
            source="made by a test",
            frames={camera: ArrayFrames(frames) for camera in cameras},
            actions=np.where(valid[:, None], actions, 0).astype(np.float32),
            action_valid=valid,
            states=None,
            action_spec=CANONICAL,
            instruction="move the square",
            rate_hz=5.0,
            success=bool(success[-1]),
            signals={"success": success},
        )

    return make


@pytest.fixture
def make_store(
    tmp_path: Path, make_trajectory: Callable[..., Trajectory]
) -> Callable[..., ClipStore]:
    """`make_store(lengths)`: a clip store of one episode of the moving square per length."""

    def make(lengths: Sequence[int], name: str = "data.zarr") -> ClipStore:
        store = ClipStore.create(
            tmp_path / name, cameras=(CAMERA,), action_spec=CANONICAL, rate_hz=5.0, encoding="raw"
        )
        for index, length in enumerate(lengths):
            store.add(make_trajectory(f"episode-{index}", length, index))
        return store

    return make


@torch.no_grad()
def draw_weights(module: nn.Module, seed: int = 0) -> None:
    """Randomize every parameter: the last layer of a new network is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def random_weights() -> Callable[..., None]:
    """`random_weights(module, seed=0)`: see `draw_weights`."""
    return draw_weights


@pytest.fixture
def make_dynamics(random_weights: Callable[..., None]) -> Callable[..., Dynamics]:
    """`make_dynamics(context=3, ...)`: a small dynamics network with random weights."""

    def make(**changes: int) -> Dynamics:
        config = DynamicsConfig(
            channels=2, height=2, width=4, dim=16, condition_dim=8, layers=2, heads=2, context=3
        )
        dynamics = Dynamics(replace(config, **changes))
        random_weights(dynamics)
        dynamics.change_std.copy_(torch.tensor([0.5, 1.5]))
        return dynamics.eval()

    return make


@pytest.fixture
def draw_inputs() -> Callable[..., FrameInputs]:
    """`draw_inputs(dynamics, num_frames, batch=2, seed=0)`: random frames, all actions known."""

    def draw(dynamics: Dynamics, num_frames: int, *, batch: int = 2, seed: int = 0) -> FrameInputs:
        c = dynamics.config
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, num_frames, c.views, c.channels, c.height, c.width)
        return FrameInputs(
            noisy=torch.randn(shape, generator=generator),
            previous=torch.randn(shape, generator=generator),
            level=torch.rand(shape[:2], generator=generator),
            actions=torch.randn((batch, num_frames, c.action_dim), generator=generator),
            action_valid=torch.ones(shape[:2], dtype=torch.bool),
        )

    return draw


@pytest.fixture
def make_model(random_weights: Callable[..., None]) -> Callable[..., WorldModel]:
    """`make_model(context=3, ...)`: a small world model with random weights."""

    def make(**changes: int) -> WorldModel:
        config = ModelConfig(
            dynamics=replace(SMALL_DYNAMICS, **changes),
            confidence=SMALL_CONFIDENCE,
            image_size=(16, 16),
            cameras=(CAMERA,),
            action_spec=CANONICAL,
            provenance={"stages": []},
        )
        model = WorldModel(config, Tokenizer.from_config(SMALL_TOKENIZER))
        random_weights(model)
        return model.eval()

    return make


SMALL_TOKENIZER = TokenizerConfig(channels=2, widths=(4, 8, 8), layers=(0, 1, 1))
SMALL_DYNAMICS = DynamicsConfig(
    channels=2, height=4, width=4, dim=16, condition_dim=8, layers=1, heads=2, context=3
)
SMALL_CONFIDENCE = ConfidenceConfig(hidden=8, thresholds=4)

LOOP = LoopConfig(steps=2, batch_size=2, checkpoint_every=1)
MICRO = Preset(
    image_height=16,
    tokenizer=SMALL_TOKENIZER,
    dynamics=DynamicsConfig(dim=16, condition_dim=8, layers=1, heads=2, context=2),
    confidence=SMALL_CONFIDENCE,
    tokenizer_loop=LOOP,
    dynamics_loop=replace(LOOP, muon_learning_rate=0.02),
    rollout_loop=replace(LOOP, muon_learning_rate=0.005),
    confidence_loop=LOOP,
    judge_loop=LOOP,
    compositor_loop=LOOP,
    picture_loop=LOOP,
    clip_frames=4,
    rollout_passes=2,
    horizon=3,
    longest_start=2,
    pair_stride=2,
)
"""Preset that runs every training stage in a second or two."""


@pytest.fixture
def micro() -> Preset:
    return MICRO
