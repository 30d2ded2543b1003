from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from worldmodel.training.tokenizer_losses import (
    SCALE_WEIGHTS,
    PerceptualDistance,
    num_scales,
    structural_similarity,
)

Distance = Callable[[Tensor, Tensor], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_pictures(height: int = 48, width: int = 64, count: int = 2) -> Tensor:
    """Coloured blocks with a fine texture on them, in [-1, 1]."""
    blocks = torch.rand((count, 3, height // 8, width // 8), generator=seeded())
    texture = torch.rand((count, 3, height, width), generator=seeded(1))
    return 1.6 * F.interpolate(blocks, (height, width)) - 0.9 + 0.2 * (texture - 0.5)


def blurred(pictures: Tensor, times: int) -> Tensor:
    for _ in range(times):
        pictures = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return pictures


def noisy(pictures: Tensor, deviation: float) -> Tensor:
    return pictures + deviation * torch.randn(pictures.shape, generator=seeded(2))


def unlike(a: Tensor, b: Tensor) -> Tensor:
    return 1 - structural_similarity(a, b)


DISTANCES = [unlike, PerceptualDistance()]


@pytest.mark.parametrize("distance", DISTANCES, ids=["structure", "perceptual"])
def test_distance_grows_with_every_distortion(distance: Distance) -> None:
    pictures = draw_pictures()
    assert distance(pictures, pictures).item() == pytest.approx(0, abs=1e-6)
    distortions = {
        "blur": [blurred(pictures, times) for times in (1, 2, 4, 8)],
        "shift": [pictures.roll(pixels, -1) for pixels in (1, 2, 3, 4)],
        "noise": [noisy(pictures, deviation) for deviation in (0.05, 0.1, 0.2, 0.4)],
    }
    for name, rising in distortions.items():
        values = [distance(pictures, other).item() for other in rising]
        assert values == sorted(values), name
        assert values[-1] > 1.5 * values[0] > 0, name


@pytest.mark.parametrize("distance", DISTANCES, ids=["structure", "perceptual"])
def test_a_blurred_picture_is_farther_than_a_brighter_one_of_the_same_error(
    distance: Distance,
) -> None:
    """What pixel errors do not tell."""
    pictures = draw_pictures()
    soft = blurred(pictures, 4)
    brighter = pictures + (soft - pictures).abs().mean()
    assert distance(pictures, soft) > 1.5 * distance(pictures, brighter)


@pytest.mark.parametrize("distance", DISTANCES, ids=["structure", "perceptual"])
def test_descent_brings_a_picture_back(distance: Distance) -> None:
    """Also from an opposite one: the gradient is finite everywhere."""
    pictures = draw_pictures(count=1)
    for start in (noisy(pictures, 0.3), -pictures, torch.zeros_like(pictures)):
        picture = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([picture], 0.05)
        losses = []
        for _ in range(5):
            loss = distance(picture, pictures)
            optimizer.zero_grad()
            loss.backward()
            assert picture.grad is not None
            assert picture.grad.isfinite().all()
            optimizer.step()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize(("side", "scales"), [(48, 3), (64, 3), (96, 3), (128, 4), (256, 5)])
def test_structure_is_what_torchmetrics_says(side: int, scales: int) -> None:
    pictures = draw_pictures(side, side + 16)
    other = noisy(blurred(pictures, 1), 0.1)
    weights = torch.tensor(SCALE_WEIGHTS[:scales])
    expected = multiscale_structural_similarity_index_measure(
        (other + 1) / 2,
        (pictures + 1) / 2,
        data_range=1.0,
        betas=tuple((weights / weights.sum()).tolist()),
        normalize="simple",
    )
    assert num_scales(side) == scales
    torch.testing.assert_close(structural_similarity(other, pictures), expected)


def test_every_size_from_11_pixels_has_its_scales() -> None:
    for side in (11, 12, 20, 21, 22, 43, 44, 98, 99, 100, 175, 176, 300):
        pictures = draw_pictures(88, 88)[..., :side, :]
        pictures = F.interpolate(pictures, (side, side))
        assert structural_similarity(pictures, pictures).item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match=r"^`structure` needs .* at least 11 .*, got 10; set"):
        structural_similarity(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


def test_half_precision_does_not_reach_the_variances() -> None:
    """In bfloat16 a flat grey picture would differ from itself under a faint texture."""
    pictures = 0.02 * draw_pictures() + 0.9
    other = noisy(pictures, 0.02)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = structural_similarity(other, pictures)
    torch.testing.assert_close(mixed, structural_similarity(other, pictures))


def test_random_features_are_the_same_everywhere_and_never_trained() -> None:
    distance, pictures = PerceptualDistance(), draw_pictures()
    torch.manual_seed(123)
    again = PerceptualDistance()
    assert all(torch.equal(a, b) for a, b in zip(distance.buffers(), again.buffers(), strict=True))
    assert list(distance.parameters()) == []
    assert distance.state_dict() == {}
    before = [buffer.clone() for buffer in distance.buffers()]
    picture = noisy(pictures, 0.1).requires_grad_()
    distance.train()(picture, pictures).backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0
    for buffer, old in zip(distance.buffers(), before, strict=True):
        assert buffer.grad is None
        assert not buffer.requires_grad
        assert torch.equal(buffer, old)


def test_a_picture_does_not_see_the_others_of_its_batch() -> None:
    pictures = draw_pictures(count=3)
    other = noisy(pictures, 0.2)
    for distance in DISTANCES:
        each = [distance(a[None], b[None]) for a, b in zip(other, pictures, strict=True)]
        torch.testing.assert_close(torch.stack(each).mean(), distance(other, pictures))
