"""Pictures of a model: composed with the last real frame, and how its compositor is stored."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldmodel.model import WorldModel
from worldmodel.networks.compositor import Compositor, CompositorConfig


def draw_frames(*leading: int, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (*leading, size, size, 3), dtype=torch.uint8, generator=generator)


def with_compositor(model: WorldModel) -> WorldModel:
    torch.manual_seed(0)
    model.set_compositor(Compositor(2, CompositorConfig(latent_width=4, width=4)).eval())
    return model


@pytest.mark.parametrize("learned", [False, True])
def test_an_unchanged_frame_is_shown_as_it_was(
    make_model: Callable[..., WorldModel], learned: bool
) -> None:
    model = with_compositor(make_model(views=2)) if learned else make_model(views=2)
    frames = draw_frames(3, 2)
    latents = model.encode(frames)
    assert torch.equal(model.show(latents, frames), frames)
    assert torch.equal(model.show(latents, frames, last_latents=latents, chunk=2), frames)


def test_one_last_frame_serves_a_whole_rollout(make_model: Callable[..., WorldModel]) -> None:
    model, frames = make_model(views=2), draw_frames(3, 2)
    latents = model.encode(frames)
    shown = model.show(latents, frames[0])
    alone = [model.show(latents[t, view], frames[0, view]) for t in range(3) for view in range(2)]
    gap = shown.flatten(0, 1).int() - torch.stack(alone).int()
    assert gap.abs().max() <= 1


def test_what_changed_beyond_recognition_is_decoded(make_model: Callable[..., WorldModel]) -> None:
    model, frames = make_model(), draw_frames(1, 1)
    latents = model.encode(frames) + 50
    assert torch.equal(model.show(latents, frames), model.decode(latents))


def test_a_missing_camera_is_decoded(make_model: Callable[..., WorldModel]) -> None:
    model, frames = make_model(views=2), draw_frames(1, 2)
    latents = model.encode(frames)
    shown = model.show(latents, frames, seen=torch.tensor([[True, False]]))
    assert torch.equal(shown[:, 0], frames[:, 0])
    assert torch.equal(shown[:, 1], model.decode(latents)[:, 1])


def test_the_last_frame_may_have_another_size(make_model: Callable[..., WorldModel]) -> None:
    model, frames = make_model(), draw_frames(1, 1, size=32)
    shown = model.show(model.encode(frames), frames)
    assert shown.shape == (1, 1, 16, 16, 3)


def test_last_frames_that_do_not_fit_are_refused(make_model: Callable[..., WorldModel]) -> None:
    model, frames = make_model(), draw_frames(3, 1)
    with pytest.raises(ValueError, match=r"`last_real` must have leading axes that fit \(3, 1\)"):
        model.show(model.encode(frames), draw_frames(2, 1))


def test_a_compositor_is_stored_and_one_is_not_needed(
    make_model: Callable[..., WorldModel], tmp_path: Path
) -> None:
    frames = draw_frames(2, 1)
    for folder, model in (("old", make_model()), ("new", with_compositor(make_model()))):
        latents = model.encode(frames)
        model.save(tmp_path / folder)
        read = WorldModel.load(tmp_path / folder)
        assert read.config.compositor == model.config.compositor
        expected = model.show(latents + 1, frames)
        assert torch.equal(read.show(latents + 1, frames), expected)
    config = json.loads((tmp_path / "old" / "config.json").read_text(encoding="utf-8"))
    assert config.pop("compositor") is None
    (tmp_path / "old" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert WorldModel.load(tmp_path / "old").compositor is None  # written before there was one


def test_a_model_can_do_without_its_compositor(make_model: Callable[..., WorldModel]) -> None:
    model = with_compositor(make_model())
    model.set_compositor(None)
    assert model.config == replace(model.config, compositor=None)
    assert not any(name.startswith("compositor.") for name in model.state_dict())
