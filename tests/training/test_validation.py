from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.networks.confidence_heads import ConfidenceConfig
from worldmodel.networks.recurrent import RecurrentConfig
from worldmodel.training.validation import (
    EPSILONS,
    HeldOut,
    held_out,
    roll_out,
    show_reliability,
    show_rollouts,
)


def episode(length: int, seed: int) -> LatentBatch:
    generator = torch.Generator().manual_seed(seed)
    return LatentBatch(
        torch.randn((1, length, 1, 2, 4, 4), generator=generator).half(),
        torch.randn((1, length, 7), generator=generator),
        torch.ones((1, length), dtype=torch.bool),
        torch.zeros((1, length)),
    )


@pytest.fixture
def seen() -> HeldOut:
    found = held_out([episode(length, length) for length in (5, 7, 9)], start=2, horizon=5)
    assert found is not None
    return found


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_held_out_clips_are_the_beginnings_of_long_episodes(seen: HeldOut) -> None:
    assert len(seen.clips) == 2
    assert torch.equal(seen.clips.latents[1], episode(9, 9).latents[0, :7].float())
    assert seen.horizons == [1, 2, 4]
    assert held_out([episode(6, 0)], start=2, horizon=5) is None


def test_few_held_out_episodes_give_several_clips_each() -> None:
    """Clips of 7 frames: the first of both episodes, then the second of the longer one."""
    episodes = [episode(9, 0), episode(15, 1)]
    found = held_out(episodes, start=2, horizon=5)
    assert found is not None
    expected = [episodes[0].latents[0, :7], *episodes[1].latents[0, :14].split(7)]
    assert torch.equal(found.clips.latents, torch.stack(expected).float())
    many = held_out([episode(70, seed) for seed in range(2)], start=2, horizon=5)
    assert many is not None
    assert len(many.clips) == 8


def test_the_error_of_a_model_that_repeats_the_last_frame_is_one(
    make_model: Callable[..., WorldModel], seen: HeldOut, tmp_path: Path
) -> None:
    """A recurrent network begins as one: it predicts no change."""
    model = make_model()
    network = RecurrentConfig(
        channels=2, height=4, width=4, pose=False, features=8, memory=4, condition=3, layers=2
    )
    untrained = WorldModel(replace(model.config, dynamics=network), model.tokenizer).eval()
    with SummaryWriter(str(tmp_path)) as writer:
        assert show_rollouts(untrained, seen, writer, 0) == pytest.approx(1)
        assert show_rollouts(model, seen, writer, 0) != pytest.approx(1)


def test_errors_of_rollouts_are_those_of_imagine(
    make_model: Callable[..., WorldModel], seen: HeldOut, tmp_path: Path
) -> None:
    model = make_model()
    state = torch.random.get_rng_state()
    with SummaryWriter(str(tmp_path)) as writer:
        show_rollouts(model, seen, writer, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    clips = seen.clips
    imagined = model.imagine(clips.latents[:, :2], clips.actions[:, :-1]).latents
    found = events(tmp_path)
    for horizon in (1, 2, 4):
        truth = clips.latents[:, 1 + horizon]
        for name, guess in (
            ("imagined", imagined[:, horizon - 1]),
            ("copied", clips.latents[:, 1]),
        ):
            (event,) = found.Scalars(f"validation/psnr_db/{name}/horizon_{horizon:02d}")
            expected = -10 * np.log10(np.mean((guess - truth).numpy() ** 2))
            assert event.step == 3
            assert event.value == pytest.approx(expected, abs=1e-3)
    (picture,) = found.Images("validation/rollouts")
    # Two clips of two rows and a line; three horizons side by side.
    assert (picture.height, picture.width) == (2 * (16 + 16 + 2), 3 * 16)


def test_views_that_are_missing_do_not_count(
    make_model: Callable[..., WorldModel], tmp_path: Path
) -> None:
    """The second camera's latents are wrong wherever it is missing; the figures do not see it."""
    clips = episode(7, 0)
    twice = replace(clips, latents=clips.latents.float().repeat(1, 1, 2, 1, 1, 1))
    view_mask = torch.ones(1, 7, 2, dtype=torch.bool)
    view_mask[:, :, 1] = False
    model, values = make_model(views=2), []
    for wrong in (0.0, 100.0):
        latents = twice.latents.clone()
        latents[:, :, 1] = wrong
        seen = HeldOut(replace(twice, latents=latents, view_valid=view_mask), start=2)
        with SummaryWriter(str(tmp_path / str(wrong))) as writer:
            show_rollouts(model, seen, writer, 0)
        found = events(tmp_path / str(wrong))
        tags = [tag for tag in found.Tags()["scalars"] if "psnr_db" in tag]
        values.append([found.Scalars(tag)[0].value for tag in tags])
    assert values[0] == values[1]


def test_a_head_of_fixed_scales_is_asked_for_those(
    make_model: Callable[..., WorldModel], seen: HeldOut, tmp_path: Path
) -> None:
    model = make_model()
    fixed = ConfidenceConfig(head="fixed_scale", rule="brier", hidden=8, scales=(0.3, 0.7))
    model = WorldModel(replace(model.config, confidence=fixed), model.tokenizer).eval()
    with SummaryWriter(str(tmp_path)) as writer:
        show_reliability(model, seen, writer, 1)
        show_rollouts(model, seen, writer, 1)
    (event,) = events(tmp_path).Scalars("reliability/pooled_ece/horizon_04")
    assert 0 < event.value < 1


def test_reliability_is_that_of_the_heads_statements(
    make_model: Callable[..., WorldModel], seen: HeldOut, tmp_path: Path
) -> None:
    """Against binning by hand: 15 bins, every tolerance pooled."""
    model = make_model()
    with SummaryWriter(str(tmp_path)) as writer:
        show_reliability(model, seen, writer, 1)
    rolled = roll_out(model, seen, epsilon=EPSILONS)
    found = events(tmp_path)
    for horizon in (1, 2, 4):
        stated = rolled.confidence[:, horizon - 1].numpy()
        error = (rolled.latents[:, horizon - 1] - seen.clips.latents[:, 1 + horizon]).abs()
        came_true = (error[..., None] <= torch.tensor(EPSILONS)).numpy()
        index = np.minimum((stated.astype(float) * 15).astype(int), 14)
        gaps = [
            abs(stated[index == i].astype(float).sum() - came_true[index == i].sum())
            for i in range(15)
        ]
        (event,) = found.Scalars(f"reliability/pooled_ece/horizon_{horizon:02d}")
        assert event.value == pytest.approx(sum(gaps) / stated.size, abs=1e-5)
    (picture,) = found.Images("reliability/diagram")
    assert (picture.height, picture.width) == (450, 450)
