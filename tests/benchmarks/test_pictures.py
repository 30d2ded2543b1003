"""Benchmark of pictures: what each way shows, and the table."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.pictures import PictureRow, measure, table, ways
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.load import load_episode
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import roll_out


def test_perfect_rollouts_are_shown_as_well_as_the_tokenizer_allows(
    make_model: Callable[..., WorldModel], make_trajectory: Callable[..., Trajectory]
) -> None:
    """With true latents, a still picture is composed without loss, a decoded one is not."""
    model = make_model()
    episodes = [
        load_episode(model, make_trajectory(f"e{seed}", 12, seed), model.config.cameras)
        for seed in range(2)
    ]
    rollouts = roll_out(model, [episode.batch for episode in episodes])
    still = [replace(e, frames=e.frames[:1].expand_as(e.frames)) for e in episodes]
    perfect = [
        replace(r, imagined=r.truth[:1].expand_as(r.truth), truth=r.truth[:1].expand_as(r.truth))
        for r in rollouts
    ]
    rows = list(measure("still", ways(model, model), still, perfect, first_only=True))
    assert [(row.horizon, row.num_scenes) for row in rows] == [(1, 2), (4, 2), (8, 2)]
    for row in rows:
        assert list(row.psnr_db) == ["copy", "decoded", "training-free"]
        assert row.psnr_db["training-free"] == row.psnr_db["copy"]
        assert row.gain_db["training-free"] == (0, 0, 0)
        assert row.psnr_db["decoded"][0] < row.psnr_db["copy"][0] - 20


def test_the_table_names_every_way_and_the_gain_of_the_last() -> None:
    row = PictureRow(
        cell="nominal",
        horizon=4,
        num_scenes=3,
        psnr_db={"copy": (20.0, 19.0, 21.0), "learned": (22.5, 21.0, 23.0)},
        gain_db={"learned": (2.5, 2.0, 3.0)},
    )
    assert table([row]).splitlines() == [
        "| scenes | frames ahead | n | copy | learned | learned minus copy |",
        "| --- | --- | --- | --- | --- | --- |",
        "| nominal | 4 | 3 | 20.0 [19.0, 21.0] | 22.5 [21.0, 23.0] | +2.5 [+2.0, +3.0] |",
    ]


def test_a_learned_way_needs_a_compositor(make_model: Callable[..., WorldModel]) -> None:
    model = make_model()
    assert "learned" not in ways(model, model)
    with pytest.raises(StopIteration):
        next(measure("none", ways(model, model), [], [], first_only=True))
