from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from worldmodel.networks.attention import rotary_angles, rotary_table, rotate, softmax_attention
from worldmodel.networks.dynamics import (
    Dynamics,
    DynamicsConfig,
    FrameInputs,
    two_stream_mask,
    window_mask,
)

Build = Callable[..., Dynamics]
DrawInputs = Callable[..., FrameInputs]


def all_at_once(dynamics: Dynamics, inputs: FrameInputs) -> torch.Tensor:
    positions = torch.arange(inputs.noisy.shape[1])
    mask = window_mask(positions, dynamics.config.context)
    return dynamics(inputs, mask=mask, positions=positions).clean


def frame(inputs: FrameInputs, t: int) -> FrameInputs:
    return window(inputs, t, t + 1)


def window(inputs: FrameInputs, begin: int, end: int) -> FrameInputs:
    parts = vars(inputs).items()
    return FrameInputs(**{k: None if v is None else v[:, begin:end] for k, v in parts})


@pytest.mark.parametrize("part", ["noisy", "previous", "level", "actions", "action_valid"])
@torch.no_grad()
def test_editing_a_frame_changes_nothing_before_it(
    make_dynamics: Build, part: str, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics(views=2)
    inputs = draw_inputs(dynamics, 8)
    edited = getattr(inputs, part).clone()
    edited[:, 5] = ~edited[:, 5] if part == "action_valid" else edited[:, 5] * 0.5 + 0.1
    before = all_at_once(dynamics, inputs)
    after = all_at_once(dynamics, replace(inputs, **{part: edited}))
    assert torch.equal(after[:, :5], before[:, :5])
    assert (after[:, 5] - before[:, 5]).abs().amax() > 1e-3
    assert (after[:, 6] - before[:, 6]).abs().amax() > 1e-4  # through temporal attention alone


@torch.no_grad()
def test_one_layer_does_not_depend_on_frames_outside_its_window(
    make_dynamics: Build, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics(layers=1, context=3)
    inputs = draw_inputs(dynamics, 8)
    edited = inputs.noisy.clone()
    edited[:, 0] += 1
    change = all_at_once(dynamics, replace(inputs, noisy=edited)) - all_at_once(dynamics, inputs)
    seen = change.abs().amax((0, 2, 3, 4, 5))
    assert (seen[:4] > 1e-4).all()
    assert torch.equal(seen[4:], torch.zeros(4))


@pytest.mark.parametrize("views", [1, 2])
@torch.no_grad()
def test_frame_by_frame_with_a_cache_equals_all_at_once(
    make_dynamics: Build, views: int, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics(views=views, context=3)
    inputs = draw_inputs(dynamics, 12)
    cache = dynamics.new_cache()
    parts = [dynamics.step(window(inputs, 0, 2), cache, keep=True).clean]
    parts += [dynamics.step(frame(inputs, t), cache, keep=True).clean for t in range(2, 12)]
    torch.testing.assert_close(
        torch.cat(parts, 1), all_at_once(dynamics, inputs), atol=1e-5, rtol=0
    )
    assert cache.position == 12
    assert cache.layers[0].keys is not None
    assert cache.layers[0].keys.shape[2] == 4  # three past frames and the one being sampled


@torch.no_grad()
def test_a_step_without_keep_does_not_change_the_cache(
    make_dynamics: Build, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, 3)
    cache = dynamics.new_cache()
    dynamics.step(frame(inputs, 0), cache, keep=True)
    first = dynamics.step(frame(inputs, 1), cache, keep=False)
    dynamics.step(frame(inputs, 2), cache, keep=False)
    again = dynamics.step(frame(inputs, 1), cache, keep=False)
    assert torch.equal(first.clean, again.clean)
    assert cache.position == 1


@torch.no_grad()
def test_the_noisy_stream_equals_sampling_with_a_cache(
    make_dynamics: Build, draw_inputs: DrawInputs
) -> None:
    """Frame t of the noisy stream equals a step after a cache of the clean frames before t."""
    dynamics = make_dynamics(context=3)
    clean, noisy = draw_inputs(dynamics, 9), draw_inputs(dynamics, 9, seed=1)
    clean = replace(clean, level=torch.zeros_like(clean.level))
    positions = torch.arange(9)
    pairs = [(k, v, getattr(noisy, k)) for k, v in vars(clean).items() if v is not None]
    both = FrameInputs(**{k: torch.cat((v, other), 1) for k, v, other in pairs})
    mask = two_stream_mask(positions, dynamics.config.context)
    stream = dynamics(both, mask=mask, positions=positions.repeat(2))
    cache = dynamics.new_cache()
    for t in range(9):
        sampled = dynamics.step(frame(noisy, t), cache, keep=False)
        for name in ("clean", "correction", "features"):
            expected = getattr(sampled, name)[:, 0]
            torch.testing.assert_close(getattr(stream, name)[:, 9 + t], expected, atol=1e-5, rtol=0)
        kept = dynamics.step(frame(clean, t), cache, keep=True)
        torch.testing.assert_close(stream.clean[:, t], kept.clean[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_values_of_unknown_actions_do_not_matter(
    make_dynamics: Build, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, 4)
    valid = inputs.action_valid.clone()
    valid[:, 2] = False
    unknown, other = replace(inputs, action_valid=valid), inputs.actions.clone()
    other[:, 2] = 7.0
    before = all_at_once(dynamics, unknown)
    assert torch.equal(all_at_once(dynamics, replace(unknown, actions=other)), before)
    assert not torch.equal(all_at_once(dynamics, replace(inputs, actions=other)), before)


@torch.no_grad()
def test_a_level_of_zero_returns_the_frame_itself(
    make_dynamics: Build, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, 4)
    estimate = all_at_once(dynamics, replace(inputs, level=torch.zeros_like(inputs.level)))
    torch.testing.assert_close(estimate, inputs.noisy)


@torch.no_grad()
def test_a_fresh_network_predicts_the_persistence_posterior(draw_inputs: DrawInputs) -> None:
    """The initial correction is zero: from pure noise it repeats the previous frame."""
    dynamics = Dynamics(DynamicsConfig(channels=2, height=2, width=4, dim=16, heads=2, layers=1))
    inputs = draw_inputs(dynamics, 3)
    estimate = all_at_once(dynamics, replace(inputs, level=torch.ones_like(inputs.level)))
    torch.testing.assert_close(estimate, inputs.previous)


def test_attention_for_training_equals_attention_for_inference() -> None:
    """Matrix products with gradients, PyTorch's fused kernel without."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn((3, 2, 4, 6, 8), generator=generator)
    mask = window_mask(torch.arange(6), 2)
    for m in (mask, None):
        fused = softmax_attention(q, k, v, m)
        plain = softmax_attention(q.clone().requires_grad_(), k, v, m)
        torch.testing.assert_close(plain.detach(), fused)


def test_rotary_products_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn((2, 1, 16), generator=generator, dtype=torch.float64)

    def product(at: float, to: float) -> float:
        angles = rotary_angles(torch.tensor([[at], [to]], dtype=torch.float64), 16)
        at_q, at_k = (rotary_table(part.cos(), part.sin()) for part in angles.split(1))
        shaped = (part.reshape(1, 1, 1, 1, 16) for part in (q, k))
        return float((rotate(next(shaped), at_q) * rotate(next(shaped), at_k)).sum())

    assert product(3, 1) == pytest.approx(product(503, 501))
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)
    assert product(4, 4) == pytest.approx(float((q * k).sum()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 18, "heads": 4}, r"^`dim` must be an even multiple of `heads`, got 18 and 4\.$"),
        ({"height": 7, "patch": 2}, r"^`patch` 2 must divide the latent size 7x8\.$"),
        ({"context": 0}, r"^`context` must be at least 1, got 0\.$"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicsConfig(**changes)
