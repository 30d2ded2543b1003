"""How weights move: AdamW and Muon, their learning rates, and the average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.training.config import LoopConfig


def optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024) for hidden matrices if it has a learning rate.

    Muon orthogonalises whole matrices: where weights are sharded, it gathers them one by one.
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
    """Whether Muon may train it: a matrix of an attention or a perceptron."""
    return parameter.ndim == 2 and (".attention." in name or ".mlp." in name)


def set_learning_rates(
    steppers: list[torch.optim.Optimizer], config: LoopConfig, step: int
) -> dict[str, float]:
    """Set every optimiser's rate for `step`; the rates by the optimisers' names, in small letters.

    A function of the step: nothing of it needs to be in a checkpoint.
    """
    rates = {}
    for stepper in steppers:
        rate = stepper.defaults["lr"] * config.learning_rate_factor(step)
        for group in stepper.param_groups:
            group["lr"] = rate
        rates[type(stepper).__name__.lower()] = rate
    return rates


def average_decay(num_averaged: int, limit: float) -> float:
    """Decay of the weight average after `num_averaged` updates: rising to `limit`."""
    return min(limit, (1 + num_averaged) / (10 + num_averaged))


def start_average(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's weights and buffers, sharded as they are."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], model: nn.Module, num_averaged: int, limit: float
) -> None:
    """Move the average towards the model's weights; the first update makes it equal to them."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and num_averaged:
            average[name].lerp_(value, 1 - average_decay(num_averaged, limit))
        else:
            average[name].copy_(value)
