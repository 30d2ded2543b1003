from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from worldmodel.model import WorldModel
from worldmodel.tokenizer_objective import TokenizerObjective
from worldmodel.tokenizers import Tokenizer


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Recorded(torch.nn.Module):
    """Returns what it is told, so that the objective's own arithmetic shows."""

    def __init__(self, tokenizer: Tokenizer, answer: Tensor) -> None:
        super().__init__()
        self.config = tokenizer.autoencoder.config
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
        objective = TokenizerObjective(make_model().tokenizer, (8, 8))
        objective.tokenizer = Recorded(objective.tokenizer, answer)  # type: ignore[assignment]
        return float(objective(frames, seeded())[0])

    perfect = loss(2, 3) - (0.1 + 4 * 0.01) * 9 / (2 * (63 + 9))
    assert loss(2, 3) - perfect == pytest.approx(9 * (loss(0, 0) - perfect), rel=1e-3)


def test_tokenizer_objective_reaches_every_weight(make_model: Callable[..., WorldModel]) -> None:
    objective = TokenizerObjective(make_model().tokenizer.train(), (16, 16))
    batch = torch.randint(256, (2, 2, 1, 20, 24, 3), dtype=torch.uint8, generator=seeded())
    loss, figures = objective(batch, seeded())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert figures["psnr_db"].isfinite()
