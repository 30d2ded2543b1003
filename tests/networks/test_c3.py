"""C3 network and rollout, compared with a plain reference implementation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.speed.plain_reference import (
    ROTARY,
    PlainConfig,
    PlainDiT,
    plain_flow_rollout,
    plain_rollout,
)
from worldmodel.c3_import import load_c3
from worldmodel.imagination import imagine_published
from worldmodel.networks.c3 import PUBLISHED, C3Config, C3Network

WINDOW = 4
HEIGHT, WIDTH, CHANNELS, ACTION = 4, 6, 3, 5
SMALL = PlainConfig(channels=CHANNELS, dim=24, layers=2, heads=2, action_dim=ACTION)
STALE = replace(PUBLISHED, window="stale")
Make = Callable[..., tuple[PlainDiT, C3Network]]


@pytest.fixture
def both(tmp_path: Path) -> Make:
    """`both(confidence_layers, rotary, objective)`: a plain network and its import."""

    def make(
        confidence_layers: int = 1,
        rotary: tuple[str, str] = ("standard", "standard"),
        objective: str = "ddpm",
    ) -> tuple[PlainDiT, C3Network]:
        config = replace(SMALL, confidence_layers=confidence_layers, rotary=rotary)
        plain = PlainDiT(config).randomize(seed=1)
        if confidence_layers:  # so that the error level has an effect, as after training
            plain.err_thresh_mlp.requires_grad_(False)[0].weight *= 30
        torch.save(plain.state_dict(), tmp_path / "plain.pt")
        imported = load_c3(
            tmp_path / "plain.pt", heads=2, window=WINDOW, height=HEIGHT, width=WIDTH,
            spatial_rotary=rotary[0], temporal_rotary=rotary[1], objective=objective,
        )  # fmt: skip
        return plain, imported

    return make


@dataclass(frozen=True)
class Case:
    """Inputs of a rollout of ten frames, in the publications' axes."""

    context: Tensor
    actions: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, start: int, frames: int = 10, batch: int = 2) -> "Case":
        g = torch.Generator().manual_seed(0)
        shape = (HEIGHT, WIDTH, CHANNELS)
        return cls(
            torch.randn(batch, start, *shape, generator=g),
            torch.randn(batch, start + frames, ACTION, generator=g),
            torch.randn(batch, frames, *shape, generator=g),
        )

    def imagine(self, network: C3Network, **options: object) -> tuple[Tensor, Tensor]:
        """Latents and confidence, in the publications' axes."""
        given = {"noise": ours(self.noise), "epsilon": (0.3,), **options}
        made = imagine_published(network, ours(self.context), self.actions, **given)  # type: ignore[arg-type]
        return theirs(made.latents), made.confidence[:, :, 0].permute(0, 1, 3, 4, 2, 5)


def ours(latents: Tensor) -> Tensor:
    return latents.permute(0, 1, 4, 2, 3)[:, :, None]


def theirs(latents: Tensor) -> Tensor:
    return latents[:, :, 0].permute(0, 1, 3, 4, 2)


@pytest.mark.parametrize("confidence_layers", [0, 1, 2])
@pytest.mark.parametrize("rotary", ROTARY)
def test_a_forward_pass_equals_the_plain_network(
    both: Make, rotary: str, confidence_layers: int
) -> None:
    plain, imported = both(confidence_layers, (rotary, rotary))
    case = Case.draw(start=6)
    g = torch.Generator().manual_seed(2)
    level = torch.randint(1000, (2, 6), generator=g)
    epsilon = torch.rand(2, 6, generator=g)
    with torch.no_grad():
        velocity, logits = plain(case.context, level, case.actions[:, :6], epsilon)
        found, stated = imported(ours(case.context), level.float(), case.actions[:, :6], epsilon)
    torch.testing.assert_close(theirs(found), velocity, atol=1e-5, rtol=0)
    assert velocity.abs().max() > 0.5
    assert (logits is None) == (stated is None) == (confidence_layers == 0)
    if logits is not None:
        torch.testing.assert_close(theirs(stated), logits.sigmoid(), atol=1e-5, rtol=0)
        assert stated.std() > 0.05


@pytest.mark.parametrize(
    ("rotary", "confidence_layers", "start"),
    [
        (("standard", "standard"), 0, 1),
        (("standard", "standard"), 1, 2),
        (("pixel", "standard"), 2, WINDOW + 3),
        (("pixel", "pixel"), 1, 1),
        (("legacy", "legacy"), 1, 2),
        (("standard", "legacy"), 0, WINDOW),
    ],
)
def test_a_rollout_equals_the_plain_rollout(
    both: Make, rotary: tuple[str, str], confidence_layers: int, start: int
) -> None:
    """Ten frames of ten steps each from the same noise, so that the window slides."""
    plain, imported = both(confidence_layers, rotary)
    case = Case.draw(start)
    latents, stated = plain_rollout(
        plain, case.context, case.actions, case.noise, window=WINDOW, epsilon=0.3
    )
    found, confidence = case.imagine(imported)
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=0)
    if stated is not None:
        torch.testing.assert_close(confidence[..., 0], stated, atol=1e-4, rtol=0)
        assert stated.std() > 0.05


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("objective", ["ddpm", "flow_matching"])
def test_a_guided_rollout_equals_the_plain_rollout(
    both: Make, objective: str, weight: float
) -> None:
    """Without actions, the whole window has the null action, so both need their own past."""
    plain, imported = both(0, objective=objective)
    case = Case.draw(start=2, frames=5)
    inputs = (plain, case.context, case.actions, case.noise)
    if objective == "ddpm":
        expected, _ = plain_rollout(*inputs, window=WINDOW, guidance=weight)
    else:
        expected = plain_flow_rollout(*inputs, window=WINDOW, guidance=weight)
    found, _ = case.imagine(imported, sampling=replace(PUBLISHED, guidance=weight))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    other, _ = case.imagine(imported, sampling=replace(PUBLISHED, guidance=2.0))
    assert (found - other).abs().max() > 1e-2


def test_a_guided_stale_window_equals_the_exact_one_until_it_slides(both: Make) -> None:
    _, imported = both(0)
    case = Case.draw(start=1, frames=5)
    guided = replace(PUBLISHED, guidance=3.0)
    exact, _ = case.imagine(imported, sampling=guided)
    stale, _ = case.imagine(imported, sampling=replace(guided, window="stale"))
    torch.testing.assert_close(stale[:, : WINDOW - 1], exact[:, : WINDOW - 1], atol=1e-4, rtol=0)
    assert (stale - exact)[:, WINDOW:].abs().max() > 1e-3


def test_a_network_with_confidence_is_not_guided(both: Make) -> None:
    _, imported = both(1)
    with pytest.raises(ValueError, match="`guidance` must be 1 for a C3 network with a confidence"):
        Case.draw(start=1).imagine(imported, sampling=replace(PUBLISHED, guidance=3.0))


def test_the_action_of_the_first_frame_is_used(both: Make) -> None:
    _, imported = both()
    case = Case.draw(start=1, frames=2)
    changed = replace(case, actions=case.actions.clone())
    changed.actions[:, 0] += 1
    assert not torch.allclose(case.imagine(imported)[0], changed.imagine(imported)[0], atol=1e-3)


def test_several_error_levels_at_once_equal_single_ones(both: Make) -> None:
    _, imported = both(2)
    case, levels = Case.draw(start=2, frames=5), (0.1, 0.5, 1.0)
    latents, together = case.imagine(imported, epsilon=levels)
    for index, level in enumerate(levels):
        same, alone = case.imagine(imported, epsilon=(level,))
        torch.testing.assert_close(together[..., index], alone[..., 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(same, latents, atol=1e-5, rtol=0)
    assert (together[..., 0] - together[..., 2]).abs().max() > 0.01


@pytest.mark.parametrize(("confidence_layers", "epsilon"), [(0, (0.3, 0.5)), (1, ())])
def test_there_is_no_confidence_without_a_head_or_epsilon(
    both: Make, confidence_layers: int, epsilon: tuple[float, ...]
) -> None:
    _, imported = both(confidence_layers)
    case = Case.draw(start=1, frames=2)
    latents, confidence = case.imagine(imported, epsilon=epsilon)
    assert confidence.shape == (*latents.shape, 0)
    torch.testing.assert_close(latents, case.imagine(imported)[0], atol=1e-5, rtol=0)


def test_a_stale_window_is_exact_until_it_slides(both: Make) -> None:
    _, imported = both()
    case = Case.draw(start=1, frames=8)
    exact, stale = (case.imagine(imported, sampling=way) for way in (PUBLISHED, STALE))
    for one, other in zip(exact, stale, strict=True):
        torch.testing.assert_close(other[:, : WINDOW - 1], one[:, : WINDOW - 1], atol=1e-5, rtol=0)
        assert (other - one)[:, WINDOW:].abs().max() > 1e-4
        assert other.isfinite().all()


@pytest.mark.parametrize("rotary", ["pixel", "legacy"])
def test_a_stale_window_needs_relative_positions(both: Make, rotary: str) -> None:
    _, imported = both(0, ("standard", rotary))
    with pytest.raises(ValueError, match=rf'`window` must be "exact" .*{rotary}'):
        Case.draw(start=1).imagine(imported, sampling=STALE)


@pytest.mark.parametrize("way", [PUBLISHED, STALE, replace(PUBLISHED, eta=1.0)])
def test_a_batch_of_one_is_its_row(both: Make, way: object) -> None:
    _, imported = both()
    case = Case.draw(start=2, frames=4)
    alone = Case(*(part[1:] for part in (case.context, case.actions, case.noise)))
    batch = case.imagine(imported, noise=None, seeds=[3, 8], sampling=way)
    single = alone.imagine(imported, noise=None, seeds=[8], sampling=way)
    for together, one in zip(batch, single, strict=True):
        torch.testing.assert_close(one, together[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rotary", ROTARY)
def test_an_edited_frame_changes_nothing_before_it(both: Make, rotary: str) -> None:
    _, imported = both(1, (rotary, rotary))
    frames, edited = ours(Case.draw(start=5).context), 2
    changed = frames.clone()
    changed[:, edited] += 1
    others = torch.full((2, 5), 400.0), torch.zeros(2, 5, ACTION), torch.full((2, 5), 0.5)
    with torch.no_grad():
        before, after = (imported(x, *others) for x in (frames, changed))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:, :edited], other[:, :edited])
        assert ((one - other)[:, edited:].abs().amax((0, 2, 3, 4, 5)) > 1e-4).all()


def test_an_edited_action_changes_nothing_before_its_frame(both: Make) -> None:
    _, imported = both()
    case = Case.draw(start=2, frames=6)
    changed = replace(case, actions=case.actions.clone())
    changed.actions[:, 2 + 3] += 1  # leads to the fourth imagined frame
    for one, other in zip(case.imagine(imported), changed.imagine(imported), strict=True):
        assert torch.equal(one[:, :3], other[:, :3])
        assert (one - other)[:, 3].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"actions": torch.zeros(2, 2, ACTION)}, "more than 2 rows.*got 2 rows of 5"),
        ({"actions": torch.zeros(2, 12, 4)}, "of 5 numbers, got 12 rows of 4"),
        ({"actions": torch.full((2, 12, ACTION), torch.nan)}, "`actions` must be finite"),
        ({"noise": torch.zeros(2, 9, HEIGHT, WIDTH, CHANNELS)}, "`noise` must be of shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    both: Make, change: dict[str, Tensor], match: str
) -> None:
    _, imported = both(0)
    with pytest.raises(ValueError, match=match):
        replace(Case.draw(start=2), **change).imagine(imported)


def test_frames_of_another_size_are_refused(both: Make) -> None:
    _, imported = both(0)
    frames, times = torch.zeros(1, 1, 1, CHANNELS, HEIGHT, 8), torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"`latents` must be of \(3, 4, 6\).*got \(3, 4, 8\)"):
        imported(frames, times, torch.zeros(1, 1, ACTION))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "heun"}, '`method` must be "ddim"'),
        ({"num_steps": 1001}, "`num_steps` must be at most 1000"),
    ],
)
def test_unsupported_samplers_are_refused(
    both: Make, change: dict[str, object], match: str
) -> None:
    _, imported = both(0)
    with pytest.raises(ValueError, match=match):
        Case.draw(start=1).imagine(imported, sampling=replace(PUBLISHED, **change))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"heads": 3}, "`heads` must divide"),
        ({"height": 5}, "`patch` 2 must divide the latent size 5x32"),
        ({"window": 1}, "`window` must be at least 2"),
        ({"temporal_rotary": "none"}, "`temporal_rotary` must be one of"),
        ({"objective": "gan"}, "`objective` must be one of"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        C3Config(**change)  # type: ignore[arg-type]
