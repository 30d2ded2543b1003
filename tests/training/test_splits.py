from collections.abc import Callable
from dataclasses import astuple

import pytest

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.training.presets import Preset
from worldmodel.training.splits import Split, check_lengths, split_episodes

Store = Callable[..., ClipStore]


def test_split_keeps_copies_together_and_lists_disjoint(
    make_store: Store, make_trajectory: Callable[..., Trajectory]
) -> None:
    """Sixteen episodes, the first four twice: 65% and 15% of sixteen are 10 and 2."""
    store = make_store([5] * 16)
    for index in range(4):
        store.add(make_trajectory(f"copy-{index}", 5, index))
    split = split_episodes(store, (0.65, 0.15))
    dealt = [name for part in astuple(split) for name in part]
    assert sorted(dealt) == sorted(store.episode_ids)
    home = {name: part for part, names in enumerate(astuple(split)) for name in names}
    assert all(home[f"copy-{i}"] == home[f"episode-{i}"] for i in range(4))
    different = [{n.replace("copy", "episode") for n in names} for names in astuple(split)]
    assert [len(names) for names in different] == [10, 2, 4]


def test_split_is_the_same_every_time(make_store: Store) -> None:
    store = make_store([4] * 9)
    assert split_episodes(store, (0.5, 0.2)) == split_episodes(
        ClipStore.open(store.path), (0.5, 0.2)
    )
    everything = split_episodes(store, (0.85, 0.15))
    assert (len(everything.dynamics), len(everything.confidence)) == (8, 1)
    assert everything.untouched == ()


@pytest.mark.parametrize("shares", [(0.65, 0.15), (0.1, 0.9), (0.01, 0.01)])
def test_the_smallest_split_feeds_both_parts(
    make_store: Store, shares: tuple[float, float]
) -> None:
    split = split_episodes(make_store([4, 4]), shares)
    assert len(split.dynamics) == len(split.confidence) == 1


def test_one_episode_is_too_few(
    make_store: Store, make_trajectory: Callable[..., Trajectory]
) -> None:
    store = make_store([6])
    store.add(make_trajectory("copy", 6, 0))
    message = r"^`data` needs at least 2 different episodes to train on, got 1 in .*data\.zarr;"
    with pytest.raises(ValueError, match=message):
        split_episodes(store, (0.65, 0.15))


def test_one_long_episode_per_stage_is_enough(make_store: Store, micro: Preset) -> None:
    split = Split(("episode-0", "episode-1"), ("episode-2",), ())
    check_lengths(make_store([2, 4, 5]), micro, split)
