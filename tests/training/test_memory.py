from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from worldmodel.model import WorldModel
from worldmodel.networks import attention
from worldmodel.networks.dynamics import Dynamics, DynamicsConfig
from worldmodel.training import memory
from worldmodel.training.memory import (
    Workload,
    activations,
    footprint,
    plan,
    random_clips,
    saved_bytes,
)
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.optimizers import optimizers, start_average
from worldmodel.training.presets import TABLETOP
from worldmodel.training.randomness import step_randomness

WORK = Workload(
    dynamics=DynamicsConfig(
        channels=4, height=8, width=8, dim=64, condition_dim=32, layers=6, heads=4, context=3
    ),
    clips=3,
    frames=6,
    precision="no",
    fused_attention=False,
)


def live_bytes_after_forward(work: Workload, *, checkpoint_blocks: bool) -> int:
    """What the allocator holds more after a forward pass than before, by its own account."""
    dynamics, batch = Dynamics(work.dynamics), random_clips(work)
    dynamics.checkpoint_blocks = checkpoint_blocks
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace,
        torch.autocast("cpu", torch.bfloat16, enabled=work.precision == "bf16"),
    ):
        loss, _ = objective(batch, step_randomness(0))
    assert loss.requires_grad
    events = trace.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_estimate_of_activations_is_what_the_allocator_holds(precision: str) -> None:
    work = replace(WORK, precision=precision)
    measured = live_bytes_after_forward(work, checkpoint_blocks=False)
    assert activations(work, checkpoint_blocks=False) == pytest.approx(measured, rel=0.15)


def test_the_estimate_holds_with_checkpointed_blocks() -> None:
    """After the forward pass no block is open: the estimate adds one layer's share."""
    measured = live_bytes_after_forward(WORK, checkpoint_blocks=True)
    plain = live_bytes_after_forward(WORK, checkpoint_blocks=False)
    one_layer = (plain - measured) / WORK.dynamics.layers
    estimate = activations(WORK, checkpoint_blocks=True)
    assert estimate == pytest.approx(measured + one_layer, rel=0.3)
    assert estimate < 0.5 * plain


def test_fused_attention_keeps_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a network that really runs with PyTorch's fused kernel."""

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # type: ignore[arg-type]

    estimate = activations(replace(WORK, fused_attention=True), checkpoint_blocks=False)
    monkeypatch.setattr(attention, "softmax_attention", fused)
    batch = random_clips(WORK)
    measured = saved_bytes(Dynamics(WORK.dynamics), batch, precision="no")
    assert estimate == pytest.approx(measured, rel=0.15)


def test_weights_gradients_and_states_are_counted_to_the_byte() -> None:
    objective = DynamicsObjective(Dynamics(WORK.dynamics), own_context=0.0, passes=1)
    config = replace(TABLETOP.dynamics_loop, batch_size=3)
    steppers = optimizers(objective, config)
    objective(random_clips(WORK), step_randomness(0))[0].backward()
    for stepper in steppers:
        stepper.step()
    found = footprint(WORK, has_muon=True, checkpoint_blocks=False)
    parameters = list(objective.parameters())
    size = sum(p.nbytes for p in parameters)
    assert found.weights == 2 * size  # the trained ones and a copy
    assert found.gradients == sum(p.grad.nbytes for p in parameters if p.grad is not None)
    states = [v for s in steppers for state in s.state.values() for v in state.values()]
    assert found.optimizer == sum(v.nbytes for v in states if v.ndim)
    buffers = sum(value.nbytes for value in objective.buffers())
    average = sum(value.nbytes for value in start_average(objective).values())
    assert found.average == pytest.approx(average, abs=buffers)
    shared = footprint(WORK, has_muon=True, checkpoint_blocks=False, sharded_over=4)
    assert shared.optimizer == pytest.approx(found.optimizer / 4, abs=1)
    assert shared.weights == pytest.approx(size + size / 4, abs=1)
    assert shared.activations == found.activations


def test_the_plan_says_what_the_run_needs_and_warns(
    make_model: Callable[..., WorldModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    text = plan(model, TABLETOP, processes=4, is_sharded=True)
    counted = sum(p.numel() for p in model.dynamics.parameters())
    assert f"dynamics {counted:,}" in text
    (chosen,) = [line for line in text.splitlines() if line.endswith("<- this run")]
    assert chosen.startswith("FSDP, blocks kept ")
    assert "3 of 12 clips of 12 frames per process" in text
    assert "warning" not in text
    monkeypatch.setattr(memory, "device_bytes", lambda: 2**20)
    text = plan(model, TABLETOP, processes=1, is_sharded=False)
    assert "one process, blocks kept" in text
    last = text.splitlines()[-1]
    assert last.startswith("warning: this run needs about ")
    assert last.endswith("the device has 0.00 GiB.")
