import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.networks.attention import (
    ROWS,
    SpatialBlock,
    TemporalBlock,
    Weights,
    gelu_in_place,
    lay_out_for_inference,
    modulated_norm,
    perceptron,
    rotary_angles,
    rotary_table,
)
from worldmodel.networks.cache import TemporalCache

DIM, HEADS = 16, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_block(kind: type[SpatialBlock] | type[TemporalBlock]) -> nn.Module:
    block = kind(DIM, HEADS, 8, 2.0)
    with torch.no_grad():
        for index, parameter in enumerate(block.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=index) * 0.4)
    return block


def weights() -> Weights:
    block = make_block(SpatialBlock)
    assert isinstance(block, SpatialBlock)
    return block.weights()


def table(num_positions: int) -> tuple[Tensor, Tensor]:
    angles = rotary_angles(torch.arange(num_positions)[:, None].float(), DIM // HEADS)
    return rotary_table(angles.cos(), angles.sin())


def test_gelu_in_place_equals_pytorch() -> None:
    x = torch.linspace(-12, 12, 10_001)
    torch.testing.assert_close(
        gelu_in_place(x.clone()), F.gelu(x, approximate="tanh"), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("tokens", [3, ROWS, ROWS + 1, 3 * ROWS])
def test_the_mlp_does_not_depend_on_chunking(tokens: int) -> None:
    """With gradients it is one call; without, chunks with our own GELU."""
    x = draw(2, 1, tokens, DIM)
    kept = x.clone()
    whole = perceptron(x, weights()).detach()
    with torch.no_grad():
        parts = perceptron(x, weights())
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    assert torch.equal(x, kept)  # the input is not overwritten


def test_modulated_norm_of_one_frame_equals_its_row_of_a_batch() -> None:
    x, shift, gain = draw(3, 2, 5, DIM), draw(3, 2, 1, DIM, seed=1), draw(3, 2, 1, DIM, seed=2)
    many = modulated_norm(x, shift, gain)
    one = modulated_norm(x[1:2, 1:], shift[1:2, 1:], gain[1:2, 1:])
    torch.testing.assert_close(one, many[1:2, 1:], atol=1e-5, rtol=0)
    plain = F.layer_norm(x, (DIM,), eps=1e-6) * gain + shift
    torch.testing.assert_close(many, plain, atol=1e-5, rtol=0)


def test_the_inference_layout_keeps_names_and_values() -> None:
    block = make_block(SpatialBlock)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    lay_out_for_inference(block)
    after = block.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value)
    assert block.mlp[0].weight.t().is_contiguous()
    pointers = [p.data_ptr() for p in block.parameters()]
    lay_out_for_inference(block)
    assert [p.data_ptr() for p in block.parameters()] == pointers  # the second call copies nothing


@torch.no_grad()
def test_the_cache_does_not_depend_on_how_frames_are_grouped() -> None:
    """Frame by frame, in pairs, and all at once without a cache."""
    block = make_block(TemporalBlock)
    assert isinstance(block, TemporalBlock)
    x, modulation = draw(2, 6, 3, DIM), tuple(draw(2, 6, 1, DIM, seed=s) for s in range(6))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    cos, sin = table(6)
    whole = block(x, modulation, (cos, sin), mask=mask)

    def in_steps(sizes: list[int]) -> Tensor:
        cache, parts, start = TemporalCache(1, 6), [], 0
        for size in sizes:
            part = slice(start, start + size)
            parts.append(
                block(
                    x[:, part], tuple(m[:, part] for m in modulation), (cos[part], sin[part]),
                    mask=mask[part, : start + size] if size > 1 else None, cache=cache.layers[0],
                )
            )  # fmt: skip
            cache.advance(size)
            start += size
        return torch.cat(parts, 1)

    for sizes in ([1] * 6, [2, 2, 2], [1, 2, 1, 2]):
        torch.testing.assert_close(in_steps(sizes), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_masked_tokens_are_not_attended_to() -> None:
    block = make_block(SpatialBlock)
    x, modulation = draw(1, 2, 4, DIM), tuple(draw(1, 2, 1, DIM, seed=s) for s in range(6))
    mask = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    mask[0, ..., 3] = False
    edited = x.clone()
    edited[:, :, 3] *= -1
    change = block(edited, modulation, table(4), mask) - block(x, modulation, table(4), mask)
    assert torch.equal(change[:, 0, :3], torch.zeros(1, 3, DIM))
    assert change[:, 1, :3].abs().max() > 1e-3
