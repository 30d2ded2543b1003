"""Confidence in pictures: monotone, proper, learned from evidence, for any size of picture."""

import numpy as np
import pytest
import torch

from worldmodel.networks.pixel_confidence import (
    DELTAS,
    PixelConfidence,
    PixelConfidenceConfig,
    largest_per_patch,
    patch_error,
    patch_grid,
    per_patch,
)

LEVELS = torch.tensor(DELTAS)


def make_head(inputs: int = 2) -> PixelConfidence:
    torch.manual_seed(0)
    head = PixelConfidence(PixelConfidenceConfig(inputs=inputs, hidden=16))
    with torch.no_grad():
        head.net[-1].weight *= 20  # far from a uniform distribution
    return head


def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Evidence, and errors whose logarithm is its first number with noise of its second."""
    generator = torch.Generator().manual_seed(1)
    evidence = torch.rand((count, 2), generator=generator)
    noise = torch.randn(count, generator=generator)
    return evidence, (3 * evidence[:, 0] + evidence[:, 1] * noise).exp()


def test_confidence_is_monotone_from_0_to_1() -> None:
    evidence, _ = draw(50)
    deltas = torch.tensor([0.0, 0.1, 0.5, 1, 4, 64, 128, 1e9])
    with torch.no_grad():
        stated = make_head()(evidence, deltas)
    assert (stated.diff(dim=1) >= 0).all()
    assert stated[:, 0].abs().max() == 0
    assert stated[:, -1].min() > 1 - 1e-6


def test_it_learns_the_distribution_of_the_error() -> None:
    """After training, stated and true frequencies agree in every part of the evidence."""
    evidence, error = draw(40_000)
    head = make_head().fit_inputs(evidence)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for step in range(400):
        rows = slice(100 * step % 30_000, 100 * step % 30_000 + 500)
        optimizer.zero_grad()
        head.loss(evidence[rows], error[rows]).backward()
        optimizer.step()
    held_out = slice(30_000, None)
    with torch.no_grad():
        stated = head(evidence[held_out], LEVELS)
    true = (error[held_out, None] <= LEVELS).float()
    group = (4 * evidence[held_out, 0]).long()
    for number in range(4):
        gap = (stated[group == number] - true[group == number]).mean(0).abs()
        assert gap.max() < 0.05
    assert true.mean(0)[1:4].min() > 0.2


def test_the_score_is_the_log_probability_of_the_interval() -> None:
    evidence, error = draw(20)
    head = make_head()
    with torch.no_grad():
        masses = head.log_masses(evidence)
        expected = [
            -masses[i, np.searchsorted(head.levels.numpy(), error[i].item())] for i in range(20)
        ]
        assert head.loss(evidence, error).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_evidence_far_outside_is_clipped() -> None:
    evidence, _ = draw(5000)
    head = make_head().fit_inputs(evidence)
    with torch.no_grad():
        far = head(torch.full((1, 2), 1e9), LEVELS)
        edge = head(evidence.max(0, keepdim=True).values, LEVELS)
    torch.testing.assert_close(far, edge)


def test_constant_evidence_does_no_harm() -> None:
    head = make_head().fit_inputs(torch.ones(10, 2))
    assert head(torch.ones(1, 2), LEVELS).isfinite().all()


@pytest.mark.parametrize("rows", [torch.ones(1, 2), torch.tensor([[1.0, torch.nan]] * 3)])
def test_evidence_to_fit_must_be_finite(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least 2 rows of finite numbers"):
        make_head().fit_inputs(rows)


def test_patches_of_a_picture_that_they_do_not_divide() -> None:
    """The last patches are smaller; their mean is over their own pixels."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand((20, 13), generator=generator)
    assert patch_grid(20, 13) == (3, 2)
    mean, largest = per_patch(picture), largest_per_patch(picture)
    assert mean.shape == largest.shape == (3, 2)
    assert mean[2, 1].item() == pytest.approx(picture[16:, 8:].mean().item())
    assert largest[2, 1] == picture[16:, 8:].max()


def test_error_of_a_patch_is_in_grey_levels() -> None:
    true = torch.zeros((2, 16, 16, 3), dtype=torch.uint8)
    shown = true.clone()
    shown[1, :8, 8:] = 200
    assert patch_error(shown, true).tolist() == [[[0, 0], [0, 0]], [[0, 200], [0, 0]]]


@pytest.mark.parametrize(
    "change", [{"inputs": 0}, {"hidden": 0}, {"thresholds": 1}, {"smallest_error": 0.0}]
)
def test_sizes_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PixelConfidenceConfig(**{"inputs": 2, **change})  # type: ignore[arg-type]
