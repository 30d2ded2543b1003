"""Estimate the memory per process for training the dynamics, before training starts.

Counts weights, gradients, optimizer state and activations. Activations are exact: a forward pass is
traced on fake tensors. Fused attention on a GPU keeps no scores, and checkpointed blocks keep the
activations of one layer at a time. Not counted: temporary buffers of matrix products and
communication, and allocator overhead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from itertools import product

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.networks.dynamics import Dynamics, DynamicsConfig
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.optimizers import is_hidden_matrix
from worldmodel.training.parallel import all_processes
from worldmodel.training.presets import Preset
from worldmodel.training.randomness import step_randomness

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Work of one process in a training step."""

    dynamics: DynamicsConfig
    clips: int
    """Clips per process."""
    frames: int
    """Frames per clip."""
    precision: str
    fused_attention: bool
    """The attention kernel keeps no scores: true on a GPU, false on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes per process."""

    weights: int
    """Training weights, and the full copy for validation and saving."""
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def footprint(
    work: Workload, *, has_muon: bool, sharded_over: int = 1, checkpoint_blocks: bool
) -> Footprint:
    """Memory of a training step of the dynamics; FSDP shards everything but the copy."""
    with torch.device("meta"):
        dynamics = Dynamics(work.dynamics)
    named = dict(dynamics.named_parameters())
    total = sum(p.numel() for p in named.values())
    # Use the names inside the objective: `is_hidden_matrix` expects a prefix.
    hidden = sum(p.numel() for n, p in named.items() if is_hidden_matrix(f"dynamics.{n}", p))
    states = 2 * total - (hidden if has_muon else 0)
    share = 4 / sharded_over
    return Footprint(
        weights=round(total * share) + 4 * total,
        gradients=round(total * share),
        optimizer=round(states * share),
        average=round(total * share),
        activations=activations(work, checkpoint_blocks=checkpoint_blocks),
    )


def activations(work: Workload, *, checkpoint_blocks: bool) -> int:
    """Bytes of activations, extrapolated from traces with one and two layers."""
    one, two = (
        traced_bytes(replace(work, dynamics=replace(work.dynamics, layers=n))) for n in (1, 2)
    )
    layer = two - one
    outside = one - layer
    if work.fused_attention:
        layer -= scores_bytes(work)
    if not checkpoint_blocks:
        return outside + work.dynamics.layers * layer
    config = work.dynamics
    tokens = 2 * work.clips * work.frames * config.tokens  # a clean and a noisy stream
    inputs = 2 * 4 * tokens * config.dim  # of both blocks of a layer, in float32
    return outside + config.layers * inputs + layer


def scores_bytes(work: Workload) -> int:
    """Bytes of attention scores that one layer keeps without fused attention."""
    config, frames = work.dynamics, 2 * work.frames
    spatial = work.clips * frames * config.tokens**2
    temporal = work.clips * config.tokens * frames**2
    # The softmax is float32; bfloat16 products keep a second copy.
    return (6 if work.precision == "bf16" else 4) * config.heads * (spatial + temporal)


def traced_bytes(work: Workload) -> int:
    """Bytes that a forward pass saves for the backward pass, traced on fake tensors."""
    with FakeTensorMode():
        dynamics = Dynamics(work.dynamics)
        return saved_bytes(dynamics, random_clips(work), precision=work.precision)


def saved_bytes(dynamics: Dynamics, batch: LatentBatch, *, precision: str) -> int:
    """Bytes that a forward pass saves for the backward pass, without the weights."""
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    weights = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return value

    device = batch.latents.device.type
    with (
        saved_tensors_hooks(save, lambda value: value),
        torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss, _ = objective(batch, step_randomness(0))
    total = sum(storage.nbytes() for storage in saved.values())
    del loss
    return total


def random_clips(work: Workload) -> LatentBatch:
    """Random batch of the workload's shape."""
    config, shape = work.dynamics, (work.clips, work.frames)
    latent = (config.views, config.channels, config.height, config.width)
    return LatentBatch(
        torch.randn(*shape, *latent),
        torch.randn(*shape, config.action_dim),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape),
    )


def plan(model: WorldModel, preset: Preset, *, processes: int, is_sharded: bool) -> str:
    """Summarise the parameters of a run and the memory of its largest stage, the dynamics.

    The memory is estimated for transformers only; a recurrent network is small.
    """
    config, computing = preset.dynamics_loop, preset.computing
    counts = ", ".join(f"{name} {num_parameters(part):,}" for name, part in model.named_children())
    if not isinstance(model.config.dynamics, DynamicsConfig):
        return f"Parameters: {counts}"
    clips = -(-config.batch_size // processes)
    work = Workload(
        dynamics=model.config.dynamics,
        clips=clips,
        frames=max((n for _, n in config.curriculum), default=preset.clip_frames),
        precision=computing.precision,
        fused_attention=all_processes().device.type == "cuda",
    )
    columns = (*(field.name for field in fields(Footprint)), "total")
    lines = [
        f"Parameters: {counts}",
        f"Memory for the dynamics in GiB, {clips} of {config.batch_size} clips of {work.frames} "
        f"frames per process, precision {computing.precision!r}:",
        f"{'':<34}" + "".join(f"{name:>12}" for name in columns),
    ]
    needed = 0
    shards = {"DDP": 1, "FSDP": processes} if processes > 1 else {"one process": 1}
    for (name, sharded_over), recompute in product(shards.items(), (False, True)):
        memory = footprint(
            work,
            has_muon=config.muon_learning_rate is not None,
            sharded_over=sharded_over,
            checkpoint_blocks=recompute,
        )
        label = f"{name}, blocks {'recomputed' if recompute else 'kept'}"
        row = "".join(f"{getattr(memory, column) / GIB:>12.2f}" for column in columns)
        is_this_run = recompute == computing.checkpoint_blocks and is_sharded == (name == "FSDP")
        if is_this_run:
            needed = memory.total
        lines.append(f"{label:<34}{row}" + ("  <- this run" if is_this_run else ""))
    if needed > device_bytes():
        lines.append(
            f"warning: this run needs about {needed / GIB:.2f} GiB per process; the device has "
            f"{device_bytes() / GIB:.2f} GiB."
        )
    return "\n".join(lines)


def device_bytes() -> int:
    """Memory of this process's device in bytes."""
    device = all_processes().device
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def num_parameters(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
