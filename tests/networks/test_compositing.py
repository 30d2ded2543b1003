"""Composition of pictures with the last real frame: what is carried, copied and generated."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.networks.test_autoencoders import draw_frames, every_autoencoder, made
from worldmodel.networks.compositing import (
    LastReal,
    compose,
    composed_pictures,
    latent_change,
    training_free_shares,
)
from worldmodel.networks.compositor import Compositor, CompositorConfig
from worldmodel.networks.images import to_pixels


def last_real(seed: int = 0, batch: int = 2) -> LastReal:
    generator = torch.Generator().manual_seed(seed)
    frames, decoded = (2 * torch.rand(2, batch, 3, 8, 12, generator=generator) - 1).unbind()
    return LastReal(frames, torch.randn(batch, 5, 4, 6, generator=generator), decoded)


def compositor() -> Compositor:
    torch.manual_seed(0)
    return Compositor(5, CompositorConfig(latent_width=6, width=4)).eval()


every_way = pytest.mark.parametrize("shares", [training_free_shares, compositor()])


@every_way
def test_where_nothing_changed_the_picture_is_the_last_real_frame(
    shares: Callable[..., Tensor],
) -> None:
    last = last_real()
    with torch.no_grad():
        shown = compose(last.decoded, last, shares(last.latents, last.decoded, last))
    torch.testing.assert_close(shown, last.frames, atol=1e-5, rtol=0)


@every_way
def test_shares_are_positive_and_add_up_to_one(shares: Callable[..., Tensor]) -> None:
    last, other = last_real(), last_real(1)
    with torch.no_grad():
        found = shares(other.latents, other.decoded, last)
    assert found.shape == (2, 3, 8, 12)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2, 8, 12))


def test_without_shares_the_decoded_picture_stays_bit_by_bit() -> None:
    last, decoded = last_real(), last_real(1).frames
    off = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(2, 3, 8, 12)
    assert torch.equal(compose(decoded, last, off), decoded)


def test_an_uncovered_region_is_generated_and_the_rest_is_carried() -> None:
    """The left column of latents changes by ten deviations; the share there is exp(-100)."""
    last, decoded = last_real(), last_real(1).frames
    latents = last.latents.clone()
    latents[..., 0] += 10
    shown = compose(decoded, last, training_free_shares(latents, decoded, last))
    torch.testing.assert_close(shown[..., 0], decoded[..., 0])  # pixels left of the first centre
    lost = last.frames - last.decoded
    torch.testing.assert_close(shown[..., 3:], (decoded + lost)[..., 3:])


def test_the_training_free_share_of_a_uniform_change_by_hand() -> None:
    last = last_real()
    latents = last.latents + 0.5
    shares = training_free_shares(latents, last.decoded, last)
    kept = torch.tensor(-0.25).exp()
    torch.testing.assert_close(shares[:, 1], kept.expand(2, 8, 12))
    torch.testing.assert_close(latent_change(latents, last.latents), torch.full((2, 4, 6), 0.5))


@every_way
def test_a_missing_camera_is_generated(shares: Callable[..., Tensor]) -> None:
    last, other = last_real(), last_real(1)
    partly = LastReal(last.frames, last.latents, last.decoded, torch.tensor([True, False]))
    with torch.no_grad():
        whole, shown = (
            compose(other.decoded, seen, shares(other.latents, other.decoded, seen))
            for seen in (last, partly)
        )
    assert torch.equal(shown[1], other.decoded[1])
    assert torch.equal(shown[0], whole[0])
    assert not torch.equal(whole[1], shown[1])


@every_autoencoder
def test_every_autoencoder_shows_an_unchanged_frame_exactly(name: str, tmp_path: Path) -> None:
    tokenizer, frames = made(name, tmp_path), draw_frames(2)
    torch.manual_seed(0)
    network = Compositor(tokenizer.channels, CompositorConfig(latent_width=4, width=4))
    with torch.no_grad():
        codes = tokenizer.encode(frames)
        last = LastReal(frames, codes, tokenizer.decode(codes))
        for shares in (training_free_shares, network):
            rows = torch.tensor([1, 0])
            shown = composed_pictures(tokenizer, shares, codes[rows], last, rows, chunk=1)
            assert torch.equal(shown, to_pixels(frames[rows]))
            changed = composed_pictures(tokenizer, shares, codes + 3, last, torch.arange(2))
            assert changed.shape == shown.shape


def test_the_compositor_needs_positive_widths() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0 and 16"):
        CompositorConfig(latent_width=0)
