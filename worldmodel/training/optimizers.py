"""Optimizers (AdamW and Muon), learning rates and the moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.training.config import LoopConfig


def optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, plus Muon (Jordan et al. 2024) for hidden matrices if `muon_learning_rate` is set.

    Muon orthogonalises full matrices; with sharded weights it gathers them one by one.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = [name for name, p in parameters.items() if is_hidden_matrix(name, p)]
    rate, decay = config.muon_learning_rate, config.weight_decay
    muon: list[torch.optim.Optimizer] = []
    if rate is not None and hidden:
        matrices = [parameters.pop(name) for name in hidden]
        muon = [torch.optim.Muon(matrices, lr=rate, weight_decay=decay)]
    adam = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=decay
    )
    return [*muon, adam]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains this parameter: a weight matrix of attention or an MLP."""
    return parameter.ndim == 2 and (".attention." in name or ".mlp." in name)


def set_learning_rates(
    steppers: list[torch.optim.Optimizer], config: LoopConfig, step: int
) -> dict[str, float]:
    """Set every optimizer's learning rate for `step`; returns them by lower-case optimizer name.

    Rates depend on the step alone, so checkpoints do not store them.
    """
    rates = {}
    for stepper in steppers:
        rate = stepper.defaults["lr"] * config.learning_rate_factor(step)
        for group in stepper.param_groups:
            group["lr"] = rate
        rates[type(stepper).__name__.lower()] = rate
    return rates


def average_decay(num_averaged: int, limit: float) -> float:
    """Decay of the moving average after `num_averaged` updates, rising to `limit`."""
    return min(limit, (1 + num_averaged) / (10 + num_averaged))


def start_average(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's weights and buffers, with the same sharding."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], model: nn.Module, num_averaged: int, limit: float
) -> None:
    """Update the moving average of the weights; the first update copies them."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and num_averaged:
            average[name].lerp_(value, 1 - average_decay(num_averaged, limit))
        else:
            average[name].copy_(value)
