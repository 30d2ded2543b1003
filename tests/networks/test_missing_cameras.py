"""Episodes with missing cameras: in the store, training, rollouts and the log."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_dataset import ClipDataset
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.clips import LatentBatch, LatentClips, collate_latents, encode_store
from worldmodel.episodes.load import choose_cameras, load_episode
from worldmodel.model import WorldModel
from worldmodel.networks.images import psnr_db
from worldmodel.rollouts.log import read_rollouts, steps, write_rollout
from worldmodel.rollouts.open_loop import EPSILONS, roll_out
from worldmodel.rollouts.quality import psnr_pair
from worldmodel.rollouts.reliability import count_reliability
from worldmodel.training.objectives import ConfidenceObjective, DynamicsObjective
from worldmodel.training.presets import PRESETS, Preset
from worldmodel.training.randomness import step_randomness
from worldmodel.training.stages import FramePairs, changes_of, train

Make, Model = Callable[..., Trajectory], Callable[..., WorldModel]
BOTH = ("front", "wrist")
CAMERAS_OF = {"a": BOTH, "b": ("front",), "c": ("wrist",), "d": BOTH}


@pytest.fixture
def store(tmp_path: Path, make_trajectory: Make) -> ClipStore:
    """Four episodes: two have both cameras, one only the front, one only the wrist camera."""
    store = ClipStore.create(
        tmp_path / "data.zarr", cameras=BOTH, action_spec=CANONICAL, rate_hz=5.0, encoding="raw"
    )
    for seed, (name, cameras) in enumerate(CAMERAS_OF.items()):
        store.add(make_trajectory(name, 8, seed, cameras=cameras))
    return store


@pytest.fixture
def model(make_model: Model) -> WorldModel:
    model = make_model(views=2)
    model.config = replace(model.config, cameras=BOTH)
    return model


def test_a_store_keeps_the_cameras_of_each_episode(store: ClipStore, make_trajectory: Make) -> None:
    again = ClipStore.open(store.path)
    assert {name: tuple(again.episode(name).frames) for name in again.episode_ids} == CAMERAS_OF
    clips = ClipDataset(again, cameras=BOTH, num_frames=8)
    views = [clip.view_valid.tolist() for clip in clips]
    assert views == [[True, True], [True, False], [False, True], [True, True]]
    assert (clips[1].frames[:, 1] == 0).all()
    assert clips[1].frames[:, 0].float().std() > 1
    with pytest.raises(ValueError, match=r"shows none of the cameras \['front'\]; it has \['wrist"):
        ClipDataset(again, cameras=["front"], num_frames=8)[2]
    with pytest.raises(ValueError, match=r"shows none of the store's cameras .*; it has \['top'\]"):
        again.add(make_trajectory("e", 4, 0, cameras=("top",)))


def test_the_tokenizer_trains_only_on_existing_images(store: ClipStore) -> None:
    pairs = FramePairs(store, store.episode_ids, BOTH, 3)
    with pytest.raises(ValueError, match=r"Episode 'c' shows none of the cameras \['front'\]"):
        FramePairs(store, store.episode_ids, ("front",), 3)
    assert len(pairs) == 6 * 5  # six pairs of camera and episode, five windows each
    assert all(pair.shape == (2, 1, 16, 16, 3) and pair.float().std() > 1 for pair in pairs)


def test_latents_of_missing_cameras_are_zeros_and_marked(
    store: ClipStore, model: WorldModel
) -> None:
    a, b, c, _ = encode_store(model, store, store.episode_ids)
    assert a.view_valid is None
    assert b.view_valid is not None
    assert b.view_valid[0].tolist() == 8 * [[True, False]]
    assert (b.latents[:, :, 1] == 0).all()
    assert b.latents[:, :, 0].float().std() > 0.1
    batch = collate_latents([LatentClips([e], 4)[2] for e in (a, b, c)])
    assert batch.view_valid is not None
    assert batch.view_valid[:, 0].tolist() == [[True, True], [True, False], [False, True]]
    assert collate_latents([a, a]).view_valid is None
    assert len(changes_of(a)) == 14
    assert len(changes_of(b)) == 7


def draw_batch() -> LatentBatch:
    generator = Generator().manual_seed(0)
    view_mask = torch.ones(3, 7, 2, dtype=torch.bool)
    view_mask[0, :, 1] = view_mask[2, :, 0] = False
    latents = torch.randn((3, 7, 2, 2, 4, 4), generator=generator)
    return LatentBatch(
        latents * view_mask[..., None, None, None],
        torch.randn((3, 7, 7), generator=generator),
        torch.ones((3, 7), dtype=torch.bool),
        torch.zeros((3, 7)),
        view_mask,
    )


def test_losses_ignore_missing_cameras(model: WorldModel) -> None:
    batch = draw_batch()
    assert batch.view_valid is not None
    missing = ~batch.view_valid[..., None, None, None]
    junk = replace(batch, latents=batch.latents + 50 * missing)
    dynamics = DynamicsObjective(model.dynamics, own_context=0.5, passes=2)
    confidence = ConfidenceObjective(model, longest_start=2)
    for objective in (dynamics, confidence):
        for seed in range(3):  # with and without own predictions as context
            (loss, figures), (other, others) = (
                objective(given, step_randomness(seed)) for given in (batch, junk)
            )
            assert loss.item() == other.item()
            assert {k: v.item() for k, v in figures.items()} == {
                k: v.item() for k, v in others.items()
            }
        whole = objective(replace(batch, view_valid=None), step_randomness(0))[0]
        assert whole.item() != objective(batch, step_randomness(0))[0].item()


def test_a_model_trains_on_episodes_with_different_cameras(
    store: ClipStore, micro: Preset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PRESETS, "two", replace(micro, cameras=2, shares=(0.5, 0.5)))
    model = train(store, "two", tmp_path / "run")
    assert model.config.cameras == BOTH
    missing = model.dynamics.missing.detach()
    assert missing.isfinite().all()
    rollouts = roll_out(model, encode_store(model, store, store.episode_ids), start=2, horizon=6)
    assert all(r.imagined.isfinite().all() and r.confidence.isfinite().all() for r in rollouts)
    assert (rollouts[1].imagined[:, 1] == 0).all()
    assert rollouts[0].imagined[2:, 1].std() > 0


def test_reliability_counts_only_existing_cameras(store: ClipStore, model: WorldModel) -> None:
    episodes = encode_store(model, store, store.episode_ids)
    whole, partial = roll_out(model, episodes[:2], start=2, horizon=6)
    assert (partial.confidence[:, 1] == 1).all()
    assert (partial.error[:, 1] == 0).all()
    counts = [
        count_reliability([r], names=["x"], horizons=[1, 2])
        .bins(epsilon=EPSILONS[0], horizon=1)
        .count.sum()
        for r in (whole, partial)
    ]
    assert counts == [2 * 32, 32]  # two views of 2 x 4 x 4 subpatches, and one


def test_logs_store_the_view_mask(store: ClipStore, model: WorldModel, tmp_path: Path) -> None:
    episodes = [load_episode(model, store.episode(name), BOTH) for name in ("a", "b")]
    rollouts = roll_out(model, [e.batch for e in episodes], start=2, horizon=6)
    log = RolloutLog.create(tmp_path / "log.zarr")
    for episode, rollout in zip(episodes, rollouts, strict=True):
        write_rollout(
            log, episode.name, steps(model, episode, rollout), store.summary(episode.name)
        )
    whole, partial = read_rollouts(log)
    assert whole.view_valid is None
    assert partial.view_valid is not None
    assert partial.view_valid.tolist() == 8 * [[True, False]]
    assert (partial.imagined[:, 1] == 0).all()
    rows = np.flatnonzero(partial.horizon == 2)
    real, drawn, last = (
        torch.from_numpy(pictures[at, 0]).float()
        for pictures, at in (
            (partial.frames, rows), (partial.imagined, rows), (partial.frames, rows - 2),
        )
    )  # fmt: skip
    assert psnr_pair(partial, 2) == (psnr_db(drawn, real), psnr_db(last, real))


def test_a_data_set_without_one_of_the_cameras_is_imagined_without_it(
    store: ClipStore, model: WorldModel, caplog: pytest.LogCaptureFixture
) -> None:
    model.config = replace(model.config, cameras=("top", "wrist"))
    with caplog.at_level(logging.WARNING):
        cameras = choose_cameras(model, store)
    assert cameras == ("top", "wrist")
    assert "has no cameras named top." in caplog.text
    episode = load_episode(model, store.episode("a"), cameras)
    assert episode.batch.view_valid is not None
    assert episode.batch.view_valid[0, 0].tolist() == [False, True]
    assert (episode.frames[:, 0] == 0).all()
    with pytest.raises(ValueError, match="Episode 'b' shows none of the cameras"):
        load_episode(model, store.episode("b"), cameras)
