"""Collections: resumable, the same whatever the number of workers, described by their store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.envs.collect import Collection, collect

SMALL = Collection(policy="noise_010", renderer="ray", size=16, num_steps=4, seed=3)


def contents(store: ClipStore) -> dict[str, np.ndarray]:
    arrays = {}
    for name in store.episode_ids:
        episode = store.episode(name)
        arrays[f"{name}/frames"] = episode.frames["image"][:]
        arrays[f"{name}/actions"] = episode.actions
        arrays[f"{name}/success"] = episode.signals["success"]
    return arrays


def same(left: ClipStore, right: ClipStore) -> bool:
    ours, theirs = contents(left), contents(right)
    equal = [np.array_equal(ours[key], theirs[key]) for key in ours if key in theirs]
    return list(ours) == list(theirs) and all(equal)


def test_an_interrupted_collection_continues(tmp_path: Path) -> None:
    whole = collect(tmp_path / "whole.zarr", SMALL, episodes=4)

    class InterruptionError(Exception):
        pass

    def interrupt(recorded: int) -> None:
        if recorded:
            raise InterruptionError

    for _ in range(2):
        with pytest.raises(InterruptionError):
            collect(tmp_path / "parts.zarr", SMALL, episodes=4, progress=interrupt)
    counts: list[int] = []
    parts = collect(tmp_path / "parts.zarr", SMALL, episodes=4, progress=counts.append)
    assert counts[0] in (1, 2)
    assert sum(counts) == 4
    assert same(whole, parts)
    assert np.std(parts.episode(0).frames["image"][:]) > 20


def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    alone = collect(tmp_path / "alone.zarr", SMALL, episodes=3)
    together = collect(tmp_path / "together.zarr", SMALL, episodes=3, workers=2)
    assert same(alone, together)


def test_every_cell_has_its_own_scenes() -> None:
    cells = [SMALL] + [
        replace(SMALL, factor=factor, severity=severity, onset=onset)
        for factor in ("lighting", "camera", "flip_y")
        for severity in (1, 2, 3)
        for onset in (0, 2)
    ]
    seeds = [cell.episode_seed(index) for cell in cells for index in range(50)]
    assert len(set(seeds)) == len(seeds)


def test_shifted_episodes_share_no_actions_with_nominal_ones(tmp_path: Path) -> None:
    nominal = collect(tmp_path / "nominal.zarr", SMALL, episodes=2)
    dark = replace(SMALL, factor="lighting", severity=3)
    shifted = collect(tmp_path / "dark.zarr", dark, episodes=2)
    for i in range(2):
        assert not np.array_equal(nominal.episode(i).actions, shifted.episode(i).actions)


def test_nominal_episodes_keep_their_scenes() -> None:
    expected = [1963352424536679345, 9080609714381269916]
    assert [replace(SMALL, seed=11).episode_seed(index) for index in (0, 1)] == expected


def test_policies_and_tasks_share_the_scenes_of_an_index() -> None:
    others = (replace(SMALL, policy="clean"), replace(SMALL, task="push"))
    assert {other.episode_seed(7) for other in others} == {SMALL.episode_seed(7)}


def test_a_shifted_store_of_shared_scenes_is_not_continued(tmp_path: Path) -> None:
    dark = replace(SMALL, factor="lighting", severity=3)
    store = collect(tmp_path / "a.zarr", dark, episodes=1)
    kept = ("collection", "renderer", "renderer_driver", "mujoco_version")
    attributes = {name: store.attributes[name] for name in kept}
    old = ClipStore.create(
        tmp_path / "old.zarr", cameras=["image"], action_spec=CANONICAL, rate_hz=CANONICAL.rate_hz,
        encoding="raw", attributes=attributes,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"holds another collection \(scenes differ\)"):
        collect(old.path, dark, episodes=1)


def test_the_store_says_how_it_was_made(tmp_path: Path) -> None:
    store = collect(tmp_path / "a.zarr", SMALL, episodes=1)
    attributes = ClipStore.open(tmp_path / "a.zarr").attributes
    assert attributes["renderer"] == "ray"
    assert attributes["mujoco_version"].startswith("3.")
    assert attributes["collection"]["policy"] == "noise_010"
    assert store.episode_ids == ("pick_place-noise_010-nominal-severity1-seed3-00000",)
    assert "policy=noise_010" in store.episode(0).source


def test_another_collection_is_refused(tmp_path: Path) -> None:
    collect(tmp_path / "a.zarr", SMALL, episodes=1)
    with pytest.raises(ValueError, match=r"a.zarr holds another collection \(collection differ"):
        collect(tmp_path / "a.zarr", replace(SMALL, seed=4), episodes=1)
    with pytest.raises(ValueError, match="`episodes` and `workers` must be at least 1, got 0, 1"):
        collect(tmp_path / "b.zarr", SMALL, episodes=0)
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "pusch", r"Unknown task 'pusch'; known: .* Did you mean 'push'\?"),
        ("policy", "claen", r"Unknown policy 'claen'; known: .* Did you mean 'clean'\?"),
        ("factor", "colour", r"Unknown factor 'colour'; known: nominal, background"),
        ("severity", 4, r"`severity` must be 1, 2 or 3, got 4\."),
        ("seed", -1, r"`seed` must not be negative, got -1\."),
        ("size", 0, r"`size` must be at least 1, got 0\."),
    ],
)
def test_wrong_options(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **{field: value})


def test_a_mixed_collection_holds_every_task(tmp_path: Path) -> None:
    store = collect(tmp_path / "all.zarr", replace(SMALL, task="mixed"), episodes=4)
    tasks = [name.split("-")[0] for name in store.episode_ids]
    assert tasks == ["pick_place", "push", "pick_place", "lift"]
    assert len({store.summary(name).instruction for name in store.episode_ids}) == 3


def test_the_object_is_where_the_signal_says(tmp_path: Path) -> None:
    """The object is red; the mean of the red pixels is near its projected centre."""
    store = collect(tmp_path / "one.zarr", replace(SMALL, size=64), episodes=6)
    for name in store.episode_ids:
        episode = store.episode(name)
        first = episode.frames["image"][0:1][0].astype(int)
        red = np.argwhere((first[..., 0] > 120) & (first[..., 1:].max(-1) < 60))
        place = episode.signals["object_in_image"][0] * 64
        assert len(red) > 8
        assert np.abs(red.mean(0)[::-1] + 0.5 - place).max() < 2.5
