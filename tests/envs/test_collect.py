"""Collections: resumable, the same whatever the number of workers, described by their store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

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


def test_episodes_of_equal_index_pair_across_factors(tmp_path: Path) -> None:
    nominal = collect(tmp_path / "nominal.zarr", SMALL, episodes=2)
    dark = replace(SMALL, factor="lighting", severity=3)
    shifted = collect(tmp_path / "dark.zarr", dark, episodes=2)
    for i in range(2):
        ours, theirs = nominal.episode(i), shifted.episode(i)
        assert np.array_equal(ours.actions, theirs.actions)
        assert np.array_equal(ours.signals["object_pose"], theirs.signals["object_pose"])
        assert not np.array_equal(ours.frames["image"][:], theirs.frames["image"][:])


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
