"""Create an untrained model from a preset and the shapes of a clip store."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from worldmodel.datasets.actions import CANONICAL, ActionSpec
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig
from worldmodel.networks.recurrent import RecurrentConfig
from worldmodel.networks.tokenizer import Tokenizer
from worldmodel.training.presets import Preset


def model_size(
    store: ClipStore, preset: Preset, cameras: Sequence[str], stride: int
) -> tuple[int, int]:
    """Height and width in pixels: the preset's height, the width by the data's aspect ratio.

    Both are multiples of the tokenizer's `stride` times the dynamics' patch.
    """
    frames = store.episode(0).frames
    first = next((name for name in cameras if name in frames), next(iter(frames)))
    height, width = frames[first].size
    unit = stride * preset.dynamics.patch
    if preset.image_height % unit:
        raise ValueError(
            f"`image_height` must be a multiple of {unit}, the tokenizer's stride times the "
            f"dynamics' patch, got {preset.image_height}."
        )
    columns = max(1, round(width * preset.image_height / height / unit))
    return preset.image_height, columns * unit


def model_actions(store: ClipStore, preset: Preset) -> ActionSpec:
    """Action layout of a model that sees every `frame_stride`-th frame."""
    if preset.action_chunk == "encode":
        return store.spec.side_by_side(preset.frame_stride)
    return replace(store.spec, rate_hz=store.rate_hz / preset.frame_stride)


MAX_TASKS = 32
"""Instructions beyond which all episodes count as one task."""


def labelled_tasks(store: ClipStore) -> tuple[str, ...]:
    """Instructions of the episodes with a success label; none if there is one or very many."""
    summaries = (store.summary(name) for name in store.episode_ids)
    tasks = sorted({s.instruction for s in summaries if s.success is not None})
    return tuple(tasks) if 1 < len(tasks) <= MAX_TASKS else ()


def has_pose(store: ClipStore, spec: ActionSpec) -> bool:
    """Whether actions are displacements that carry the robot's state forward."""
    canonical = replace(CANONICAL, name=spec.name, rate_hz=spec.one_row.rate_hz)
    return spec.one_row == canonical and store.episode(0).states is not None


def chosen_cameras(store: ClipStore, preset: Preset) -> tuple[str, ...]:
    """Cameras of the model: the first ones of the store, or those that the preset names."""
    if isinstance(preset.cameras, int):
        return store.cameras[: preset.cameras]
    for name in preset.cameras:
        if name not in store.cameras:
            close = difflib.get_close_matches(name, store.cameras, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"`cameras` of {store.path} are {', '.join(store.cameras)}, not {name!r}; name "
                f"those to use with `--cameras`.{hint}"
            )
    return preset.cameras


def new_model(store: ClipStore, preset: Preset, tokenizer: str | None = None) -> WorldModel:
    """Untrained model for a store, initialised from the preset's seed.

    `tokenizer` is the folder or hub name of a trained autoencoder; None: a new one from the preset.
    """
    trained = None if tokenizer is None else Tokenizer.from_pretrained(tokenizer)
    channels = preset.tokenizer.channels if trained is None else trained.channels
    stride = preset.tokenizer.stride if trained is None else trained.stride
    spec = model_actions(store, preset)
    cameras = chosen_cameras(store, preset)
    size = model_size(store, preset, cameras, stride)
    tasks = labelled_tasks(store)
    own: dict[str, Any] = {"pose": has_pose(store, spec)}
    if isinstance(preset.dynamics, RecurrentConfig):
        own["tasks"] = max(1, len(tasks))
    config = ModelConfig(
        dynamics=replace(
            preset.dynamics,
            channels=channels,
            height=size[0] // stride,
            width=size[1] // stride,
            views=len(cameras),
            action_dim=spec.dim,
            **own,
        ),
        confidence=preset.confidence,
        image_size=size,
        cameras=cameras,
        action_spec=spec,
        num_steps=1 if isinstance(preset.dynamics, RecurrentConfig) else preset.num_steps,
        tasks=tasks,
        trained_horizon=preset.horizon + preset.longest_start - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.dynamics_loop.seed)
        return WorldModel(config, trained or Tokenizer.from_config(preset.tokenizer))
