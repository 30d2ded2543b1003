"""Evidence about imagined pictures, and the confidence of whole episodes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.load import load_episode
from worldmodel.episodes.picture_evidence import (
    NAMES,
    ImaginedPictures,
    imagined_pictures,
    picture_evidence,
)
from worldmodel.model import WorldModel
from worldmodel.networks.pixel_confidence import PixelConfidence, PixelConfidenceConfig
from worldmodel.rollouts.open_loop import EpisodeRollouts, roll_out
from worldmodel.rollouts.picture_confidence import picture_confidence
from worldmodel.rollouts.pictures import pictures

MakeModel = Callable[..., WorldModel]
MakeTrajectory = Callable[..., Trajectory]


def with_head(model: WorldModel) -> WorldModel:
    torch.manual_seed(0)
    config = PixelConfidenceConfig(inputs=len(NAMES), hidden=8)
    model.set_picture_confidence(PixelConfidence(config).eval())
    return model


def rolled_out(
    model: WorldModel, trajectory: Trajectory, *, start: int = 4, horizon: int = 3
) -> tuple[Episode, EpisodeRollouts, torch.Tensor]:
    episode = load_episode(model, trajectory)
    (rollouts,) = roll_out(model, [episode.batch], start=start, horizon=horizon)
    return episode, rollouts, pictures(model, episode.frames, rollouts)


def draw_rollout(
    model: WorldModel, trajectory: Trajectory, *, start: int = 4, time: int = 3
) -> ImaginedPictures:
    episode, rollouts, shown = rolled_out(model, trajectory, start=start, horizon=time)
    clip, part = episode.batch.cut(start + time), slice(start, start + time)
    return imagined_pictures(
        clip, episode.frames[:start], latents=rollouts.imagined[part], shown=shown[part]
    )


def named(evidence: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(NAMES, evidence.unbind(-1), strict=True))


@pytest.mark.parametrize("start", [1, 2, 4, 6])
def test_evidence_is_finite_for_any_number_of_real_frames(
    make_model: MakeModel, make_trajectory: MakeTrajectory, start: int
) -> None:
    model = make_model()
    rollout = draw_rollout(model, make_trajectory("a", 12, 0), start=start)
    evidence = picture_evidence(model, rollout)
    assert evidence.shape == (3, 1, 2, 2, len(NAMES))
    assert evidence.isfinite().all()
    hindcast = torch.stack([v for k, v in named(evidence).items() if k.startswith("hindcast")])
    assert bool(hindcast.any()) == (start > 1)


def test_evidence_reads_no_frame_after_the_context(
    make_model: MakeModel, make_trajectory: MakeTrajectory
) -> None:
    model, trajectory = make_model(), make_trajectory("a", 12, 0)
    episode, rollouts, shown = rolled_out(with_head(model), trajectory)
    before = picture_confidence(model, episode, rollouts, shown)
    frames = episode.frames.clone()
    last = np.flatnonzero(rollouts.horizon == 1)[-1]
    frames[last:] = 255 - frames[last:]
    after = picture_confidence(model, replace(episode, frames=frames), rollouts, shown)
    assert torch.equal(before, after)


def test_the_round_trip_shows_where_the_tokenizer_fails(
    make_model: MakeModel, make_trajectory: MakeTrajectory
) -> None:
    """Its evidence is the error of the decoded last real frame, by hand."""
    model = make_model()
    rollout = draw_rollout(model, make_trajectory("a", 12, 0))
    decoded = model.decode(rollout.context_latents[-1:].float())
    gap = (decoded.float() - rollout.context[-1:].float()).abs().mean(-1)
    by_hand = gap[0, 0].reshape(2, 8, 2, 8).mean((1, 3)).add(0.5).log()
    found = named(picture_evidence(model, rollout))["round_trip"]
    torch.testing.assert_close(found[0, 0], by_hand)
    torch.testing.assert_close(found[2, 0], by_hand)


def test_drift_grows_with_the_distance_from_the_last_real_latent(
    make_model: MakeModel, make_trajectory: MakeTrajectory
) -> None:
    model = make_model()
    rollout = draw_rollout(model, make_trajectory("a", 12, 0))
    moved = replace(rollout, latents=rollout.context_latents[-1:].float() + torch.tensor([0.0, 1, 3]).view(3, 1, 1, 1, 1))  # noqa: E501  # fmt: skip
    found = named(picture_evidence(model, moved))
    torch.testing.assert_close(found["drift"][:, 0, 0, 0], torch.tensor([0.0, 1, 3]))
    torch.testing.assert_close(found["step"][:, 0, 0, 0], torch.tensor([0.0, 1, 2]))


def test_the_hindcast_is_a_rollout_over_the_real_frames(
    make_model: MakeModel, make_trajectory: MakeTrajectory
) -> None:
    """A model that predicts the real frames has the error of their pictures alone."""
    model = make_model()
    rollout = draw_rollout(model, make_trajectory("a", 12, 0), start=4)
    first = named(picture_evidence(model, rollout))
    wrong = replace(rollout, context=rollout.context.clone())
    wrong.context[1:3] = 255 - wrong.context[1:3]
    second = named(picture_evidence(model, wrong))
    assert torch.equal(first["hindcast"], second["hindcast"])  # compares the last frame
    assert (second["hindcast_first"] > first["hindcast_first"]).all()
    assert (second["hindcast_most"] >= first["hindcast_most"]).all()


def test_confidence_of_an_episode(make_model: MakeModel, make_trajectory: MakeTrajectory) -> None:
    model = with_head(make_model())
    episode, rollouts, shown = rolled_out(model, make_trajectory("a", 11, 0))
    stated = picture_confidence(model, episode, rollouts, shown, deltas=(4.0, 32.0))
    assert stated.shape == (11, 1, 2, 2, 2)
    assert (stated[:4] == 1).all()
    assert ((stated[4:] > 0) & (stated[4:] < 1)).all()
    assert (stated[..., 0] <= stated[..., 1]).all()


def test_missing_views_have_no_confidence(
    make_model: MakeModel, make_trajectory: MakeTrajectory
) -> None:
    model = with_head(make_model(views=2))
    model.config = replace(model.config, cameras=("front", "side"))
    trajectory = make_trajectory("a", 9, 0, cameras=("front",))
    episode, rollouts, shown = rolled_out(model, trajectory)
    stated = picture_confidence(model, episode, rollouts, shown)
    assert stated[:, 1].isnan().all()
    assert stated[:, 0].isfinite().all()


def test_a_model_without_it_says_how_to_train_it(
    make_model: MakeModel, make_trajectory: MakeTrajectory
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="has no confidence in pictures; train its stage"):
        picture_confidence(model, *rolled_out(model, make_trajectory("a", 9, 0)))


def test_it_is_stored_with_the_model(make_model: MakeModel, tmp_path: Path) -> None:
    model = with_head(make_model())
    assert model.picture_confidence is not None
    model.picture_confidence.fit_inputs(torch.randn(100, len(NAMES)))
    model.save(tmp_path / "model")
    loaded = WorldModel.load(tmp_path / "model").picture_confidence
    assert loaded is not None
    for name, value in model.picture_confidence.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
