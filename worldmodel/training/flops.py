"""Floating-point operations of a training step, and the peak throughput of a device."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.training.randomness import step_randomness

PROBES = 3
"""Steps to average over: an objective's work may depend on its random numbers."""


def flops_per_item(objective: nn.Module, item: Any, *, precision: str) -> float:
    """Operations of a forward and backward pass on a batch of one, averaged over random numbers.

    Only matrix products, convolutions and attention count; recomputed activations do not. Clears
    the objective's gradients and may change its buffers.
    """
    device = next(objective.parameters()).device
    total = 0
    for probe in range(PROBES):
        with FlopCounterMode(display=False) as counter:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss, _ = objective(item.to(device), step_randomness(0, probe, device=device))
            loss.backward()
        total += counter.get_total_flops()
    objective.zero_grad(set_to_none=True)
    return total / PROBES


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Measured operations per second of a large matrix product on `device`, best of three."""
    size = 8192 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones((size, size), device=device, dtype=dtype)
    seconds = []
    for _ in range(4):  # the first one warms up
        wait_for(device)
        start = time.perf_counter()
        a @ a
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def wait_for(device: torch.device) -> None:
    """Wait until `device` has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
