from collections.abc import Callable

import pytest
import torch

from worldmodel.episodes.clips import LatentBatch
from worldmodel.networks.dynamics import Dynamics
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.randomness import step_randomness


def batch() -> LatentBatch:
    generator = torch.Generator().manual_seed(0)
    return LatentBatch(
        torch.randn((3, 6, 1, 2, 2, 4), generator=generator),
        torch.randn((3, 6, 7), generator=generator),
        torch.ones((3, 6), dtype=torch.bool),
        torch.zeros((3, 6)),
    )


def gradients(dynamics: Dynamics, precision: str) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a step with own context, and how often blocks ran."""
    calls = []
    for block in (*dynamics.spatial, *dynamics.temporal):
        block.register_forward_pre_hook(lambda *_: calls.append(0))
    objective = DynamicsObjective(dynamics, own_context=1.0, passes=1, image_share=0.3)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss, _ = objective(batch(), step_randomness(0))
    loss.backward()
    named = dynamics.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}, len(calls)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_gradients_are_the_same_with_blocks_computed_twice(
    make_dynamics: Callable[..., Dynamics], precision: str
) -> None:
    """Each of 4 blocks runs for the own context, forward, and once more on the way back."""
    plain, kept = make_dynamics(), make_dynamics()
    kept.checkpoint_blocks = True
    expected, calls = gradients(plain, precision)
    found, more_calls = gradients(kept, precision)
    assert (calls, more_calls) == (8, 12)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6, msg=name)
