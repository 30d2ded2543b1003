from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from worldmodel.episodes.clips import LatentBatch
from worldmodel.networks.dynamics import Dynamics
from worldmodel.training.flops import flops_per_item, peak_flops
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.randomness import StepRandomness


class Product(nn.Module):
    """One matrix product of known cost."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16, bias=False)

    def forward(self, batch: Tensor, draws: StepRandomness) -> tuple[Tensor, dict[str, Tensor]]:
        return self.linear(batch).sum(), {}


def test_a_matrix_product_counts_twice_its_multiplications_each_way() -> None:
    """Forward 2·5·8·16; backward the same for the weight, nothing for the input."""
    objective = Product()
    flops = flops_per_item(objective, torch.ones(1, 5, 8), precision="no")
    assert flops == 2 * (2 * 5 * 8 * 16)
    assert objective.linear.weight.grad is None


def test_the_dynamics_ask_for_about_six_operations_per_weight_and_token(
    make_dynamics: Callable[..., Dynamics],
) -> None:
    """PaLM's rule 6N per token, for the matrices that tokens go through; attention is small."""
    dynamics = make_dynamics(dim=64, layers=2)
    per_token = sum(
        p.numel() for name, p in dynamics.named_parameters() if p.ndim == 2 and (
            ".attention." in name or ".mlp." in name
        )
    )  # fmt: skip
    batch = LatentBatch(
        torch.randn(1, 5, 1, 2, 2, 4), torch.randn(1, 5, 7),
        torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5),
    )  # fmt: skip
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    flops = flops_per_item(objective, batch, precision="no")
    tokens = 2 * 5 * dynamics.config.tokens  # two streams of five frames
    assert flops == pytest.approx(6 * per_token * tokens, rel=0.15)


def test_the_peak_is_that_of_a_matrix_product() -> None:
    peak = peak_flops(torch.device("cpu"), "no")
    assert 1e9 < peak < 1e13
    assert peak_flops(torch.device("cpu"), "no") == peak
