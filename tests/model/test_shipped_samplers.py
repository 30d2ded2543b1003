"""All samplers give about the same frame with the shipped checkpoint."""

import pytest
import torch
from torch import Generator, Tensor

from worldmodel.model import WorldModel
from worldmodel.networks.sampler import METHODS, Sampling


@pytest.fixture(scope="module")
def shipped() -> WorldModel:
    return WorldModel.load("tabletop")


def next_frame(model: WorldModel, sampling: Sampling, seeds: tuple[int, ...] = (0, 1)) -> Tensor:
    """Imagined frame after three frames of a still video."""
    generator = Generator().manual_seed(0)
    picture = torch.rand((1, 1, 8, 8, 3), generator=generator).mul(255).byte()
    frames = picture.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat(3, 1, 1, 1, 1)
    context = model.encode(frames)[None].repeat(len(seeds), 1, 1, 1, 1, 1)
    actions = torch.zeros(len(seeds), 3, 7)
    actions[:, :, 6] = 1.0
    return model.imagine(context, actions, seeds=seeds, sampling=sampling).latents


@pytest.mark.parametrize("method", METHODS)
def test_one_to_sixteen_steps_of_every_method(shipped: WorldModel, method: str) -> None:
    single = next_frame(shipped, Sampling(method=method))
    assert torch.equal(
        single, next_frame(shipped, shipped.sampling)
    )  # with one step, all methods agree
    for num_steps in (2, 3, 5, 16):
        latents = next_frame(shipped, Sampling(method=method, num_steps=num_steps))
        assert latents.isfinite().all()
        assert 0 < (latents - single).abs().mean() < 0.5  # latents have unit deviation


def test_stochastic_steps_follow_their_seed(shipped: WorldModel) -> None:
    sampling = Sampling(num_steps=4, eta=1.0)
    together = next_frame(shipped, sampling)
    alone = next_frame(shipped, sampling, seeds=(1,))
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=0)
    assert torch.equal(next_frame(shipped, sampling), together)
    assert (together[0] - together[1]).abs().max() > 1e-2
