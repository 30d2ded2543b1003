"""Several cameras: their order does not matter, and missing views are ignored."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from worldmodel.imagination import Imagined
from worldmodel.model import WorldModel
from worldmodel.networks.dynamics import Dynamics, Estimate, FrameInputs, window_mask
from worldmodel.networks.rollout import check_views

Build = Callable[..., Dynamics]
DrawInputs = Callable[..., FrameInputs]
Model = Callable[..., WorldModel]


def all_at_once(dynamics: Dynamics, inputs: FrameInputs) -> Estimate:
    positions = torch.arange(inputs.noisy.shape[1])
    mask = window_mask(positions, dynamics.config.context)
    return dynamics(inputs, mask=mask, positions=positions)


def some_missing(inputs: FrameInputs) -> Tensor:
    """Random view mask with at least one view in every frame."""
    view_mask = torch.rand(inputs.noisy.shape[:3], generator=Generator().manual_seed(1)) > 0.4
    view_mask[..., 0] |= ~view_mask.any(-1)
    assert 0.3 < view_mask.float().mean() < 0.9
    return view_mask


def by_view(dynamics: Dynamics, features: Tensor) -> Tensor:
    """[batch, time, view, token of the view, dim]."""
    return features.unflatten(2, (dynamics.config.views, -1))


@pytest.mark.parametrize("junk", [0.0, 1e4, torch.nan, torch.inf])
@torch.no_grad()
def test_the_values_of_a_missing_view_do_not_matter(
    make_dynamics: Build, junk: float, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics(views=3)
    inputs = draw_inputs(dynamics, 5)
    view_mask = some_missing(inputs)
    inputs = replace(inputs, view_valid=view_mask)
    before = all_at_once(dynamics, inputs)
    gone = ~view_mask[..., None, None, None]
    full = inputs.noisy.masked_fill(gone, junk), inputs.previous.masked_fill(gone, junk)
    after = all_at_once(dynamics, replace(inputs, noisy=full[0], previous=full[1]))
    for name in ("clean", "correction", "features"):
        assert torch.equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).isfinite().all()


def test_nan_in_a_missing_view_reaches_no_gradient(
    make_dynamics: Build, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics(views=2)
    inputs = draw_inputs(dynamics, 4)
    view_mask = torch.ones(2, 4, 2, dtype=torch.bool)
    view_mask[0, :, 1] = False
    noisy = inputs.noisy.clone()
    noisy[0, :, 1] = torch.nan
    estimate = all_at_once(dynamics, replace(inputs, noisy=noisy, view_valid=view_mask))
    estimate.correction[view_mask].square().mean().backward()
    gradients = {name: p.grad for name, p in dynamics.named_parameters()}
    # No token attends to view 1 of the first row, so its `missing` embedding has no gradient.
    assert torch.equal(gradients.pop("missing"), torch.zeros(16))
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@torch.no_grad()
def test_a_view_that_is_always_missing_equals_a_network_without_it(
    make_dynamics: Build, draw_inputs: DrawInputs
) -> None:
    """Two of three views equal a network of two views with the same weights."""
    three, two = make_dynamics(views=3), make_dynamics(views=2)
    state = three.state_dict()
    state["view"] = state["view"][:2]
    two.load_state_dict(state)
    inputs = draw_inputs(three, 5)
    view_mask = torch.tensor([True, True, False]).expand(2, 5, 3)
    masked = all_at_once(three, replace(inputs, view_valid=view_mask)).clean[:, :, :2]
    fewer = replace(inputs, noisy=inputs.noisy[:, :, :2], previous=inputs.previous[:, :, :2])
    torch.testing.assert_close(masked, all_at_once(two, fewer).clean, atol=1e-5, rtol=0)
    whole = all_at_once(three, inputs).clean[:, :, :2]
    assert (whole - masked).abs().max() > 1e-2  # a present view matters


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_the_order_of_views_does_not_matter(
    make_dynamics: Build, masked: bool, draw_inputs: DrawInputs
) -> None:
    dynamics, order = make_dynamics(views=3), [2, 0, 1]
    inputs = draw_inputs(dynamics, 5)
    view_mask = some_missing(inputs) if masked else None
    inputs = replace(inputs, view_valid=view_mask)
    before = all_at_once(dynamics, inputs)
    dynamics.view.copy_(dynamics.view[order].clone())
    permuted = replace(
        inputs,
        noisy=inputs.noisy[:, :, order],
        previous=inputs.previous[:, :, order],
        view_valid=None if view_mask is None else view_mask[:, :, order],
    )
    after = all_at_once(dynamics, permuted)
    torch.testing.assert_close(after.clean, before.clean[:, :, order], atol=1e-5, rtol=0)
    features = by_view(dynamics, before.features)[:, :, order]
    torch.testing.assert_close(by_view(dynamics, after.features), features, atol=1e-5, rtol=0)
    assert (before.clean[:, :, order] - before.clean).abs().max() > 0.1


@torch.no_grad()
def test_the_cache_is_exact_with_changing_view_masks(
    make_dynamics: Build, draw_inputs: DrawInputs
) -> None:
    dynamics = make_dynamics(views=3, context=3)
    inputs = draw_inputs(dynamics, 12)
    inputs = replace(inputs, view_valid=some_missing(inputs))
    cache, parts = dynamics.new_cache(), []
    for begin, end in [(0, 2), *((t, t + 1) for t in range(2, 12))]:
        known = {name: value for name, value in vars(inputs).items() if value is not None}
        given = FrameInputs(**{name: value[:, begin:end] for name, value in known.items()})
        dynamics.step(given, cache, keep=False) if begin else None
        parts.append(dynamics.step(given, cache, keep=True).clean)
    whole = all_at_once(dynamics, inputs).clean
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


def test_new_views_differ_and_one_view_has_nothing_missing(make_dynamics: Build) -> None:
    config = make_dynamics(views=3).config
    fresh = Dynamics(config)
    assert fresh.view.std().item() == pytest.approx(0.02, rel=0.5)
    assert fresh.missing.shape == (config.dim,)
    single = Dynamics(replace(config, views=1))
    assert "missing" not in single.state_dict()
    assert torch.equal(single.view, torch.zeros_like(single.view))


def roll(model: WorldModel, context: Tensor, view_mask: Tensor | None) -> Imagined:
    actions = torch.randn((len(context), 6, 7), generator=Generator().manual_seed(2))
    return model.imagine(context, actions, view_valid=view_mask, epsilon=(0.2, 0.5))


def three_views(make_model: Model) -> tuple[WorldModel, Tensor]:
    model = make_model(views=3)
    shape = (2, 3, 3, 2, 4, 4)
    return model, torch.randn(shape, generator=Generator().manual_seed(0))


@torch.no_grad()
def test_rollouts_ignore_missing_cameras(make_model: Model) -> None:
    """View 1 is missing in all frames of row 0, view 2 in the first frame of row 1."""
    model, context = three_views(make_model)
    view_mask = torch.ones(2, 3, 3, dtype=torch.bool)
    view_mask[0, :, 1] = view_mask[1, 0, 2] = False
    plain = roll(model, context, view_mask)
    broken = roll(
        model, context.masked_fill(~view_mask[..., None, None, None], torch.nan), view_mask
    )
    for name in ("latents", "features", "confidence"):
        assert torch.equal(
            getattr(plain, name).nan_to_num(-1), getattr(broken, name).nan_to_num(-1)
        )
    expected = torch.tensor([[True, False, True], [True, True, True]])
    assert plain.view_valid is not None
    assert torch.equal(plain.view_valid, expected[:, None].expand(2, 4, 3))
    assert (plain.latents[~plain.view_valid] == 0).all()
    assert plain.latents[plain.view_valid].std() > 0.3
    assert plain.confidence[~plain.view_valid].isnan().all()
    assert plain.confidence[plain.view_valid].isfinite().all()


@torch.no_grad()
def test_a_view_mask_of_all_true_changes_nothing(make_model: Model) -> None:
    model, context = three_views(make_model)
    unmasked, masked = (
        roll(model, context, view_mask)
        for view_mask in (None, torch.ones(2, 3, 3, dtype=torch.bool))
    )
    assert unmasked.view_valid is None
    torch.testing.assert_close(masked.latents, unmasked.latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(masked.confidence, unmasked.confidence, atol=1e-5, rtol=0)


def test_frames_without_any_view_are_refused(make_model: Model) -> None:
    model, context = three_views(make_model)
    view_mask = torch.ones(2, 3, 3, dtype=torch.bool)
    view_mask[1, 1] = False
    message = r"^`view_valid` must leave every frame at least one view\.$"
    with pytest.raises(ValueError, match=message):
        roll(model, context, view_mask)
    message = r"^`view_valid` must be of shape \(2, 3, 3\), got \(2, 2, 3\)\.$"
    with pytest.raises(ValueError, match=message):
        check_views(view_mask[:, :2], expected=context.shape[:3])


def test_frames_of_a_missing_camera_are_zeros_when_encoded(make_model: Model) -> None:
    model = make_model(views=2)
    frames = torch.randint(256, (3, 2, 16, 16, 3), generator=Generator().manual_seed(0)).byte()
    view_mask = torch.tensor([[True, True], [False, True], [True, False]])
    latents = model.encode(frames, view_valid=view_mask)
    assert torch.equal(latents[view_mask], model.encode(frames)[view_mask])
    assert (latents[~view_mask] == 0).all()
