"""Data-parallel training: processes, sharding with FSDP, and sums over processes.

By default every process holds all weights (DDP). If the launcher asks for FSDP, each holds a shard
of the weights, gradients and optimizer state (`fully_shard`, FSDP2). Each dynamics block is
gathered while it computes; the other weights stay gathered during a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from worldmodel.networks.attention import Block

PATIENCE = timedelta(hours=6)
"""Timeout while processes wait for the one that encodes episodes or validates."""


def all_processes() -> PartialState:
    """Processes of this run; the first call connects them, with gloo on CPUs."""
    has_gpu = torch.cuda.is_available()
    return PartialState(cpu=not has_gpu, timeout=PATIENCE)


def is_sharded() -> bool:
    """Whether the launcher asked for FSDP, as `accelerate launch` with recipes/fsdp.yaml does."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    return asked and all_processes().num_processes > 1


def share_out(model: nn.Module, *, precision: str) -> nn.Module:
    """Wrap `model` for training on all processes: DDP, or sharded in place with FSDP."""
    processes = all_processes()
    if is_sharded():
        return shard(model, precision=precision)
    if processes.num_processes == 1 or not any(p.requires_grad for p in model.parameters()):
        return model
    device = processes.device
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def shard(model: nn.Module, *, precision: str) -> nn.Module:
    """Shard every weight over the processes; a block is gathered only while it computes.

    In bf16, blocks are gathered in bfloat16 and their gradients are reduced in float32.
    """
    processes = all_processes()
    mesh = init_device_mesh(processes.device.type, (processes.num_processes,))
    half = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in blocks(model):
        # All modulations are computed before the first block, so shard them separately.
        fully_shard(block.modulation, mesh=mesh, mp_policy=policy)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    return model


def blocks(model: nn.Module) -> list[Block]:
    """Transformer blocks of `model`."""
    return [module for module in model.modules() if isinstance(module, Block)]


def whole(tree: Any, *, keep: bool = True) -> Any:
    """Gather all tensors in nested dicts and lists, copied to main memory.

    Every process must call it. With `keep=False` a process gets None in place of tensors.
    """
    if isinstance(tree, dict):
        return {name: whole(value, keep=keep) for name, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value, keep=keep) for value in tree]
    if not isinstance(tree, Tensor):
        return tree
    value = tree.full_tensor() if isinstance(tree, DTensor) else tree
    return value.detach().cpu().clone() if keep else None


def own_share(value: Tensor, like: Tensor) -> Tensor:
    """Shard of a full tensor that this process holds, with the sharding of `like`."""
    value = value.to(like.device)
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    # Every process has the full tensor, so nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def sum_over_processes(values: Tensor) -> list[float]:
    """Sum of `values` over all processes."""
    processes = all_processes()
    if processes.num_processes > 1:
        values = values.detach().to(processes.device)
        torch.distributed.all_reduce(values)
    return values.tolist()


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Clip gradients to the norm `limit`; returns the norm before clipping, over all shards."""
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
