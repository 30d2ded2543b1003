from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.model import WorldModel
from worldmodel.networks.tokenizer import Tokenizer, TokenizerConfig
from worldmodel.training.randomness import StepRandomness, step_randomness
from worldmodel.training.tokenizer_objective import (
    TokenizerLoss,
    TokenizerObjective,
    distance_from_unit_scale,
)

PIXELS = TokenizerLoss(structure=0.0, perceptual=0.0)
EVERYTHING = TokenizerLoss(structure=0.3, perceptual=0.5)


def seeded(seed: int = 0) -> StepRandomness:
    return step_randomness(seed)


def draw_batch(batch: int = 2, height: int = 20, width: int = 24) -> Tensor:
    """Pairs of frames: coloured blocks of which one moves."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (batch, 1, 3, 4, 4), generator=generator).repeat(1, 2, 1, 1, 1)
    blocks[:, 1, :, 1, 1] = 255 - blocks[:, 1, :, 1, 1]
    frames = F.interpolate(blocks.flatten(0, 1).float(), (height, width))
    return frames.movedim(1, -1).reshape(batch, 2, 1, height, width, 3).to(torch.uint8)


class Recorded(torch.nn.Module):
    """Returns what it is told, so that the objective's own arithmetic shows."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def encode(self, frames: Tensor) -> Tensor:
        return torch.stack((frames.mean((1, 2, 3)), 2 * frames.mean((1, 2, 3))), 1)[..., None, None]

    def decode(self, latents: Tensor) -> Tensor:
        return self.answer


def test_moving_pixels_weigh_nine_times_as_much(make_model: Callable[..., WorldModel]) -> None:
    """One pixel of 64 jumps from black to white; an error of 0.1 there or elsewhere."""
    frames = torch.zeros((1, 2, 1, 8, 8, 3), dtype=torch.uint8)
    frames[0, 1, 0, 2, 3] = 255
    truth = torch.full((2, 3, 8, 8), -1.0)
    truth[1, :, 2, 3] = 1.0

    def loss(row: int, column: int) -> float:
        answer = truth.clone()
        answer[0, :, row, column] += 0.1
        objective = TokenizerObjective(make_model().tokenizer, (8, 8), PIXELS)
        objective.tokenizer = Recorded(answer)  # type: ignore[assignment]
        return float(objective(frames, seeded())[0])

    perfect = loss(2, 3) - (0.1 + 4 * 0.01) * 9 / (2 * (63 + 9))
    assert loss(2, 3) - perfect == pytest.approx(9 * (loss(0, 0) - perfect), rel=1e-3)


def test_the_objective_reaches_every_weight_and_follows_its_draws(
    make_model: Callable[..., WorldModel],
) -> None:
    objective = TokenizerObjective(make_model().tokenizer.train(), (16, 16), EVERYTHING)
    losses = [objective(draw_batch(), seeded(seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    losses[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_its_figures(make_model: Callable[..., WorldModel]) -> None:
    """A term of weight 0 is not computed at all."""
    tokenizer = make_model().tokenizer
    names = ("absolute", "squared", "structure", "perceptual")
    for loss in (EVERYTHING, PIXELS, replace(EVERYTHING, absolute=0.0, squared=0.0)):
        total, figures = TokenizerObjective(tokenizer, (16, 16), loss)(draw_batch(), seeded())
        weights = {name: getattr(loss, name) for name in (*names, "scale")}
        assert set(figures) == {name for name, weight in weights.items() if weight} | {"psnr_db"}
        del figures["psnr_db"]
        expected = sum(weights[name] * value.item() for name, value in figures.items())
        assert total.item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_perfect_reconstruction_costs_nothing(make_model: Callable[..., WorldModel]) -> None:
    batch = draw_batch(height=16, width=16)
    objective = TokenizerObjective(
        make_model().tokenizer, (16, 16), replace(EVERYTHING, latent_noise=0.0, scale=0.0)
    )
    objective.tokenizer = Recorded(batch.flatten(0, 2).movedim(-1, 1) / 127.5 - 1)  # type: ignore[assignment]
    assert objective(batch, seeded())[0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "loss", [PIXELS, EVERYTHING, TokenizerLoss()], ids=["pixels", "everything", "default"]
)
def test_an_untrained_tokenizer_learns(loss: TokenizerLoss) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_config(TokenizerConfig(channels=4, widths=(8, 16), layers=(1, 1)))
    objective = TokenizerObjective(tokenizer, (16, 16), loss)
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    found = []
    for step in range(12):
        value, figures = objective(draw_batch(), seeded(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append({"loss": value.item()} | {name: v.item() for name, v in figures.items()})
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]
    terms = found[0].keys() - {"psnr_db", "scale"}
    assert all(found[-1][name] < found[0][name] for name in terms)
    assert found[-1]["psnr_db"] > found[0]["psnr_db"]


def test_scale_is_zero_for_unit_latents_and_alike_up_and_down() -> None:
    latents = torch.randn((8, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    latents = (latents - latents.mean((0, 2, 3), keepdim=True)) / latents.std((0, 2, 3)).reshape(
        1, 3, 1, 1
    )
    assert distance_from_unit_scale(latents).item() == pytest.approx(0, abs=1e-6)
    grown, shrunk = (distance_from_unit_scale(latents * factor).item() for factor in (4, 1 / 4))
    assert grown == pytest.approx(shrunk, rel=1e-3)
    assert distance_from_unit_scale(latents + 2).item() == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moving": -1.0}, r"must not be negative, got \{'moving': -1\.0\}\.$"),
        ({"structure": float("nan")}, r"must not be negative, got \{'structure': nan\}\.$"),
        (
            {"absolute": 0.0, "squared": 0.0, "structure": 0.0, "perceptual": 0.0},
            r"needs one of `absolute`, .* above 0, got 0 for all\.$",
        ),
    ],
)
def test_losses_that_compare_nothing_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=rf"`TokenizerLoss` {message}"):
        TokenizerLoss(**changes)
