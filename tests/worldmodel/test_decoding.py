import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from worldmodel.decoding import decode_behind
from worldmodel.model import WorldModel
from worldmodel.networks.rollout import ImaginedFrame


def make_frames(model: WorldModel, count: int) -> list[ImaginedFrame]:
    c = model.config.dynamics
    generator = torch.Generator().manual_seed(0)
    shape = (count, 2, c.views, c.channels, c.height, c.width)
    features = torch.zeros(2, c.tokens, c.dim)
    return [ImaginedFrame(latent, features) for latent in torch.randn(shape, generator=generator)]


def test_every_frame_comes_in_order_with_its_own_pixels(
    make_model: Callable[..., WorldModel],
) -> None:
    model = make_model()
    frames = make_frames(model, 5)
    made = list(decode_behind(model, frames))
    assert [frame for frame, _ in made] == frames
    for frame, pixels in made:
        assert torch.equal(pixels, model.decode(frame.latent))
    assert list(decode_behind(model, [])) == []


def test_a_frame_is_decoded_while_the_next_is_imagined(
    make_model: Callable[..., WorldModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imagining frame 1 waits here for the decoding of frame 0 to have begun."""
    model, begun = make_model(), threading.Event()
    decode = model.decode

    def seen(latent: Tensor) -> Tensor:
        begun.set()
        return decode(latent)

    monkeypatch.setattr(model, "decode", seen)

    def imagine() -> Iterator[ImaginedFrame]:
        first, second = make_frames(model, 2)
        yield first
        assert begun.wait(timeout=30), "decoding waited for the next frame"
        yield second

    assert len(list(decode_behind(model, imagine()))) == 2


def test_what_goes_wrong_while_decoding_is_raised(
    make_model: Callable[..., WorldModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()

    def broken(latent: Tensor) -> Tensor:
        raise ValueError("no pixels")

    monkeypatch.setattr(model, "decode", broken)
    with pytest.raises(ValueError, match="no pixels"):
        list(decode_behind(model, make_frames(model, 3)))
