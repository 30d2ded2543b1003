"""A whole training run of the recurrent network, and the clips it learns from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.episodes.clips import LatentBatch, LatentClips, collate_latents
from worldmodel.model import WorldModel
from worldmodel.networks.recurrent import RecurrentConfig, RecurrentDynamics
from worldmodel.training.new_model import new_model
from worldmodel.training.presets import PRESETS, Preset
from worldmodel.training.stages import train

TINY = RecurrentConfig(features=8, memory=4, condition=3, layers=2)


def test_a_run_of_the_recurrent_network_ends_with_a_model_that_imagines(
    make_store: Callable[..., ClipStore], micro: Preset, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setitem(PRESETS, "micro-fast", replace(micro, dynamics=TINY))
    store = make_store([8, 9, 8, 9])
    untrained = new_model(store, PRESETS["micro-fast"])
    train(store, "micro-fast", tmp_path / "run")
    model = WorldModel.load(tmp_path / "run/model")
    assert isinstance(model.dynamics, RecurrentDynamics)
    assert not torch.equal(model.dynamics.embed.weight, untrained.dynamics.embed.weight)  # type: ignore[union-attr,arg-type]
    assert not torch.equal(model.dynamics.change_std, torch.ones_like(model.dynamics.change_std))
    c = model.config.dynamics
    context = torch.randn(2, 1, c.views, c.channels, c.height, c.width)
    imagined = model.imagine(context, torch.zeros(2, 3, c.action_dim), epsilon=(0.5, 1.0))
    assert imagined.confidence.shape == (*imagined.latents.shape, 2)
    assert (imagined.confidence[..., 0] <= imagined.confidence[..., 1]).all()


def episode(length: int, first: int, *, states: bool = True) -> LatentBatch:
    rows = torch.arange(first, first + length).float()
    return LatentBatch(
        rows.half()[None, :, None, None, None, None],
        rows[None, :, None].expand(1, length, 7),
        torch.ones(1, length, dtype=torch.bool),
        rows[None],
        states=rows[None, :, None].expand(1, length, 10) if states else None,
        task=torch.tensor([first]),
    )


def test_a_quarter_of_the_clips_begins_with_the_first_frame() -> None:
    clips = LatentClips([episode(12, 0), episode(6, 20)], 3, from_start=0.25)
    starts = [int(clips[i].latents[0, 0]) for i in range(len(clips))]
    assert starts == [0, 0, 0, *range(10), 20, *range(20, 24)]
    with pytest.raises(IndexError):
        clips[len(clips)]


def test_windows_keep_their_states_and_their_task() -> None:
    """An episode without states is in one batch with others: its states are NaN."""
    clips = LatentClips([episode(3, 5), episode(3, 7, states=False)], 2)
    batch = collate_latents([clips[1], clips[3]])
    assert batch.states is not None
    assert batch.task is not None
    assert batch.states[0, :, 0].tolist() == [6.0, 7.0]
    assert batch.states[1].isnan().all()
    assert batch.task.tolist() == [5, 7]
    assert batch.cut(1, start=1).task is batch.task
