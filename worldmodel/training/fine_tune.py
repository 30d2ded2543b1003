"""Fine-tuning: a run that starts from the weights of a trained model.

The model decides its own shape: network, confidence head, latents. The preset decides the
schedules. Its tokenizer is kept, or trained on. The scales of actions and latent changes are kept,
too, since its weights were trained with them, except where the new data have another scale.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.model import WorldModel, first_mismatch
from worldmodel.networks.c3 import C3Network
from worldmodel.networks.recurrent import RecurrentConfig
from worldmodel.training.new_model import (
    chosen_cameras,
    labelled_tasks,
    model_actions,
    model_size,
)
from worldmodel.training.presets import Preset
from worldmodel.training.settings import Settings, flat

LOG = logging.getLogger(__name__)
SCALES = ("action_mean", "action_std", "change_std", "mean", "std")
"""Last names of the buffers that hold the means and deviations of the training data."""
POSE = ("pose.low", "pose.high")
"""Workspace of the training data."""
SAME_SCALE = 4.0
"""Largest factor between two standard deviations that count as the same scale."""


@dataclass(frozen=True)
class Start:
    """Model that a run starts from."""

    source: str
    """Folder of a checkpoint, or the name of a shipped one."""
    tunes_tokenizer: bool = False
    """Train its tokenizer on; False: keep it as it is."""


def fitted_settings(settings: Settings, model: WorldModel, store: ClipStore) -> Settings:
    """Settings with the shape of a model, for its fine-tuning.

    Raises:
        ValueError: A field that the user set differs from the model's, or the model does not fit
            the data; the message has both values.
    """
    if isinstance(model.dynamics, C3Network):
        raise ValueError(
            "`--init` needs a network of `worldmodel train`: the dynamics of an imported "
            "checkpoint cannot be trained here, only a confidence head for it, with `--stage "
            "confidence --model`."
        )
    config, preset, given = model.config, settings.preset, settings.given
    own: dict[str, Any] = {"dynamics": config.dynamics, "confidence": config.confidence}
    for group, shape in own.items():
        check_group(group, getattr(preset, group), shape, given)
    if wrong := sorted(name for name in given if name.startswith("tokenizer.")):
        raise ValueError(f"`{wrong[0]}` cannot be set with `--init`, whose tokenizer is used.")
    for name, value in (("num_steps", config.num_steps),):
        check_same(name, value, getattr(preset, name), given)
    preset = replace(preset, **own, num_steps=config.num_steps)
    if "image_height" not in given:
        preset = replace(preset, image_height=config.image_size[0])
    if "cameras" not in given:
        preset = replace(preset, cameras=config.cameras)
    if "action_chunk" not in given and "frame_stride" not in given:
        stride = store.rate_hz / config.rate_hz
        if stride == round(stride):
            chunk = "encode" if config.action_spec.rows > store.spec.rows else "sum"
            preset = replace(preset, frame_stride=int(stride), action_chunk=chunk)
    return replace(settings, preset=preset)


def check_group(group: str, ours: Any, own: Any, given: Collection[str]) -> None:
    """Raise if a given field of a group differs from the model's."""
    values = flat(ours)
    for name, value in flat(own).items():
        if name in values:
            check_same(f"{group}.{name}", value, values[name], given)
    if extra := sorted(name for name in given if name.startswith(f"{group}.")):
        known = {f"{group}.{field.name}" for field in fields(own)}
        if unknown := [name for name in extra if name not in known]:
            raise ValueError(f"The model of `--init` has no `{unknown[0]}`; leave it out.")


def check_same(path: str, own: Any, wanted: Any, given: Collection[str]) -> None:
    """Raise if a given value differs from the model's."""
    if path in given and own != wanted:
        raise ValueError(
            f"`{path}` of the model of `--init` is {own!r}, not {wanted!r}; leave it out, or train "
            "a new model."
        )


def fine_tuned(store: ClipStore, preset: Preset, model: WorldModel) -> WorldModel:
    """Model for a store with the weights of `model`, before it is trained on.

    Success classifiers for other tasks start untrained.

    Raises:
        ValueError: The model does not fit the data; the message has both values.
    """
    spec, own = model_actions(store, preset), model.config
    for field in fields(spec):
        pair = getattr(own.action_spec, field.name), getattr(spec, field.name)
        if field.name != "name" and pair[0] != pair[1]:
            raise ValueError(
                f"`action_spec.{field.name}` of the model of `--init` is {pair[0]!r}, but "
                f"{store.path} with `frame_stride` {preset.frame_stride} and `action_chunk` "
                f"{preset.action_chunk!r} has {pair[1]!r}."
            )
    cameras = chosen_cameras(store, preset)
    if len(cameras) != len(own.cameras):
        raise ValueError(
            f"`cameras` of the model of `--init` are {len(own.cameras)} "
            f"({', '.join(own.cameras)}), not {len(cameras)} ({', '.join(cameras)}); name as many "
            "with `--cameras`."
        )
    stride = model.tokenizer.stride
    size = model_size(store, preset, cameras, stride)
    tasks = labelled_tasks(store) or own.tasks
    changes: dict[str, Any] = {"height": size[0] // stride, "width": size[1] // stride}
    if isinstance(own.dynamics, RecurrentConfig):
        changes["tasks"] = max(1, len(tasks))
    shape = replace(own.dynamics, **changes)
    config = replace(
        own,
        dynamics=shape,
        image_size=size,
        cameras=cameras,
        action_spec=spec,
        tasks=tasks,
        trained_horizon=preset.horizon + preset.longest_start - 1,
        provenance={},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.dynamics_loop.seed)
        tuned = WorldModel(config, model.tokenizer)
    for name, part in tuned.named_children():
        copy_weights(name, part, getattr(model, name))
    return tuned


def copy_weights(name: str, part: nn.Module, trained: nn.Module) -> None:
    """Load a part's weights from the trained model.

    A readout of other tasks starts untrained.
    """
    own, stored = part.state_dict(), trained.state_dict()
    stored |= {
        key: own[key]
        for key in own.keys() & stored.keys()
        if key.startswith("readout.") and own[key].shape != stored[key].shape
    }
    wrong = first_mismatch(own, stored)
    if wrong is None:
        part.load_state_dict(stored)
    elif name not in ("judge", "action_judge"):
        raise ValueError(f"The weights of `{name}` of the model of `--init` do not fit: {wrong}.")


def scales(dynamics: nn.Module) -> dict[str, Tensor]:
    """Name -> copy of every buffer that normalises actions, latent changes, poses or objects."""
    return {
        name: value.clone()
        for name, value in dynamics.named_buffers()
        if name.rpartition(".")[2].removeprefix("object_") in SCALES or name in POSE
    }


@torch.no_grad()
def keep_scales(dynamics: nn.Module, trained: dict[str, Tensor]) -> None:
    """Put the trained model's normalisers back where the new data have the same scale.

    An axis that hardly moved in the earlier training keeps the new one: in the old scale, all its
    values would be clipped.
    """
    buffers = dict(dynamics.named_buffers())
    for name, choose in zip(POSE, (torch.minimum, torch.maximum), strict=True):
        if name in trained:
            buffers[name].copy_(choose(buffers[name], trained[name]))
    for name, std in trained.items():
        if not name.endswith("std"):
            continue
        new = buffers[name]
        ratio = new / std
        same = (ratio < SAME_SCALE) & (ratio > 1 / SAME_SCALE)
        mean = name.removesuffix("std") + "mean"
        if mean in trained:
            same &= (buffers[mean] - trained[mean]).abs() < SAME_SCALE * std
            buffers[mean].copy_(torch.where(same, trained[mean], buffers[mean]))
        new.copy_(torch.where(same, std, new))
        if not same.all():
            LOG.warning(
                "note: %s of %d of %d columns is fitted anew: their scale differs by more than a "
                "factor of %g from that of the model of `--init`.",
                name.rpartition(".")[2], int((~same).sum()), len(same), SAME_SCALE,
            )  # fmt: skip


def start_record(start: Start | None) -> dict[str, Any] | None:
    """Entry of the provenance; None for a run from scratch."""
    return None if start is None else vars(start).copy()


def kept_stages(start: Start | None) -> Sequence[str]:
    """Stages that are complete from the beginning."""
    return [] if start is None or start.tunes_tokenizer else ["tokenizer"]
