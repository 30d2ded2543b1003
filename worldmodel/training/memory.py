"""How much memory training the dynamics takes on each process, before it starts.

Weights, gradients and optimiser state are counted. What a forward pass keeps for the way back is
counted too, exactly, by tracing it without computing anything; a GPU's fused attention keeps no
scores, and with checkpointed blocks one layer's share is kept at a time. What comes on top is
passing: buffers of a step's products and of the communication, and what the allocator wastes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

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
COLUMNS = ("weights", "gradients", "optimizer", "average", "activations")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one process computes in a step."""

    dynamics: DynamicsConfig
    clips: int
    """Clips of this process."""
    frames: int
    """Frames of a clip."""
    precision: str
    fused_attention: bool
    """The device has a kernel that keeps no attention scores: a GPU has, a CPU has not."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on one process."""

    weights: int
    """The trained ones, and the copy that is looked at and saved."""
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
    """Memory of a training step of the dynamics; with FSDP all but the copy is shared out."""
    with torch.device("meta"):
        dynamics = Dynamics(work.dynamics)
    named = dict(dynamics.named_parameters())
    total = sum(p.numel() for p in named.values())
    # Named as in the objective, of which the network is a part.
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
    """Bytes that a forward pass keeps for the way back, from traces of one layer and of two."""
    one, two = (
        kept_bytes(replace(work, dynamics=replace(work.dynamics, layers=n))) for n in (1, 2)
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
    """Bytes of attention scores that one layer keeps where attention is not fused."""
    config, frames = work.dynamics, 2 * work.frames
    spatial = work.clips * frames * config.tokens**2
    temporal = work.clips * config.tokens * frames**2
    # The softmax is computed in float32; bfloat16 products keep a copy of it beside.
    return (6 if work.precision == "bf16" else 4) * config.heads * (spatial + temporal)


def kept_bytes(work: Workload) -> int:
    """Bytes that the forward pass of a step keeps for the way back, without its weights."""
    with FakeTensorMode():
        dynamics = Dynamics(work.dynamics)
        return saved_bytes(dynamics, random_clips(work), precision=work.precision)


def saved_bytes(dynamics: Dynamics, batch: LatentBatch, *, precision: str) -> int:
    """The same for given tensors, which may be real."""
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    weights = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return value

    device = batch.latents.device.type
    with (
        saved_tensors_hooks(keep, lambda value: value),
        torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss, _ = objective(batch, step_randomness(0))
    total = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total


def random_clips(work: Workload) -> LatentBatch:
    """A batch of the shape of the workload's."""
    config, shape = work.dynamics, (work.clips, work.frames)
    latent = (config.views, config.channels, config.height, config.width)
    return LatentBatch(
        torch.randn(*shape, *latent),
        torch.randn(*shape, config.action_dim),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape),
    )


def plan(model: WorldModel, preset: Preset, *, processes: int, is_sharded: bool) -> str:
    """What a run trains and how much memory its largest stage, the dynamics, takes: for people."""
    parts = {name: count(part) for name, part in model.named_children()}
    config, computing = preset.dynamics_loop, preset.computing
    assert isinstance(model.config.dynamics, DynamicsConfig), "published networks are not trained"
    clips = -(-config.batch_size // processes)
    work = Workload(
        dynamics=model.config.dynamics,
        clips=clips,
        frames=max((n for _, n in config.curriculum), default=preset.clip_frames),
        precision=computing.precision,
        fused_attention=all_processes().device.type == "cuda",
    )
    lines = [
        "Parameters: " + ", ".join(f"{name} {number:,}" for name, number in parts.items()),
        f"Memory for the dynamics in GiB, {clips} of {config.batch_size} clips of {work.frames} "
        f"frames per process, precision {computing.precision!r}:",
        f"{'':<34}" + "".join(f"{name:>12}" for name in (*COLUMNS, "total")),
    ]
    chosen = 0
    ways = {"DDP": 1, "FSDP": processes} if processes > 1 else {"one process": 1}
    for name, over in ways.items():
        for again in (False, True):
            found = footprint(
                work,
                has_muon=config.muon_learning_rate is not None,
                sharded_over=over,
                checkpoint_blocks=again,
            )
            is_chosen = again == computing.checkpoint_blocks and is_sharded == (name == "FSDP")
            chosen = found.total if is_chosen else chosen
            figures = (*(getattr(found, column) for column in COLUMNS), found.total)
            label = f"{name}, blocks {'computed again' if again else 'kept'}"
            row = f"{label:<34}" + "".join(f"{value / GIB:>12.2f}" for value in figures)
            lines.append(row + ("  <- this run" if is_chosen else ""))
    if chosen > device_bytes():
        lines.append(
            f"warning: this run needs about {chosen / GIB:.2f} GiB per process; the device has "
            f"{device_bytes() / GIB:.2f} GiB."
        )
    return "\n".join(lines)


def device_bytes() -> int:
    """Memory of this process's device."""
    device = all_processes().device
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
