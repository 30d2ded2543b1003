"""A new model: its shape from a store's pictures and actions, and from a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from worldmodel.datasets.actions import ActionSpec
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.presets import Preset
from worldmodel.tokenizers import Tokenizer


def model_size(store: ClipStore, preset: Preset, cameras: Sequence[str]) -> tuple[int, int]:
    """Height and width in pixels: the preset's height, the width by the data's aspect ratio."""
    frames = store.episode(0).frames
    first = next((name for name in cameras if name in frames), next(iter(frames)))
    height, width = frames[first].size
    stride = preset.tokenizer.stride
    columns = max(1, round(width * preset.image_height / height / stride))
    return preset.image_height, columns * stride


def model_actions(store: ClipStore, preset: Preset) -> ActionSpec:
    """What a model of every `frame_stride`-th frame takes as one action."""
    if preset.action_chunk == "encode":
        return store.spec.side_by_side(preset.frame_stride)
    return replace(store.spec, rate_hz=store.rate_hz / preset.frame_stride)


def new_model(store: ClipStore, preset: Preset) -> WorldModel:
    """An untrained model shaped for a store, the same one every time."""
    spec = model_actions(store, preset)
    cameras = store.cameras[: preset.cameras]
    size = model_size(store, preset, cameras)
    stride = preset.tokenizer.stride
    config = ModelConfig(
        dynamics=replace(
            preset.dynamics,
            channels=preset.tokenizer.channels,
            height=size[0] // stride,
            width=size[1] // stride,
            views=len(cameras),
            action_dim=spec.dim,
        ),
        confidence=preset.confidence,
        image_size=size,
        cameras=cameras,
        action_spec=spec,
        num_steps=preset.num_steps,
        trained_horizon=preset.horizon + preset.longest_start - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.dynamics_loop.seed)
        return WorldModel(config, Tokenizer.from_config(preset.tokenizer))
