"""Interventions: what is changed lies in the mask, what is not stays as it was."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.calibration.interventions import (
    CLEARLY,
    INSERTED,
    PATCHES,
    Intervention,
    interventions,
    patch,
)
from worldmodel.envs.episode_recorder import CAMERA, collect_episode
from worldmodel.envs.scene import DISTRACTORS
from worldmodel.envs.tabletop import TabletopEnv

SEED, NUM_STEPS = 3_000_020, 5


@pytest.fixture(scope="module")
def changed(tabletop: Callable[[str], TabletopEnv]) -> dict[str, Intervention]:
    """One episode under every kind of intervention."""
    return interventions(tabletop("pick_place"), seed=SEED, num_steps=NUM_STEPS)


@pytest.fixture(scope="module")
def nominal(tabletop: Callable[[str], TabletopEnv]) -> np.ndarray:
    """The same episode's frames without any."""
    env = tabletop("pick_place")
    return collect_episode(env, "mixed", seed=SEED, num_steps=NUM_STEPS).frames[CAMERA][:]


def frames_of(intervention: Intervention) -> np.ndarray:
    return intervention.trajectory.frames[CAMERA][:].astype(int)


def test_there_is_an_object_an_occluder_and_a_tampered_patch(
    changed: dict[str, Intervention],
) -> None:
    assert list(changed) == [
        "inserted object", "still occluder", "drifting occluder", "moved patch", "shuffled patch",
        "noise patch",
    ]  # fmt: skip
    assert len({intervention.trajectory.episode_id for intervention in changed.values()}) == 6


@pytest.mark.parametrize("kind", [INSERTED, *PATCHES])
def test_pixels_change_inside_the_mask_only(
    changed: dict[str, Intervention], nominal: np.ndarray, kind: str
) -> None:
    frames, mask = frames_of(changed[kind]), changed[kind].mask[:, 0]
    difference = np.abs(frames - nominal).max(axis=-1)
    assert difference[~mask].max() <= (CLEARLY if kind == INSERTED else 0)
    assert difference[mask].mean() > 2 * CLEARLY
    assert all(0.002 < share < 0.15 for share in mask.mean(axis=(1, 2)))


def test_the_inserted_object_is_new_where_the_mask_is_and_moves_nothing(
    tabletop: Callable[[str], TabletopEnv], changed: dict[str, Intervention]
) -> None:
    env = tabletop("pick_place")
    truth = collect_episode(env, "mixed", seed=SEED, num_steps=NUM_STEPS)
    again = interventions(env, seed=SEED, num_steps=NUM_STEPS)[INSERTED]  # its scene still stands
    np.testing.assert_array_equal(again.mask, changed[INSERTED].mask)
    for name in ("object_pose", "success"):
        np.testing.assert_array_equal(again.trajectory.signals[name], truth.signals[name])
    simulation = env.simulation
    np.testing.assert_array_equal(simulation.object_pose(), truth.signals["object_pose"][-1])
    ghosts = [
        i for i in range(len(DISTRACTORS)) if not simulation.model.geom(f"distractor{i}").contype
    ]
    assert len(ghosts) == 1
    assert ghosts[0] >= 3  # the first three shapes are trained on
    data, point = simulation.data, simulation.model.body(f"distractor{ghosts[0]}").pos
    x, y, z = data.cam_xmat[0].reshape(3, 3).T @ (point - data.cam_xpos[0])
    focal = 32 / np.tan(np.deg2rad(45 / 2))
    assert again.mask[-1, 0, round(31.5 + focal * y / z), round(31.5 - focal * x / z)]
    env.reset(seed=SEED)
    assert simulation.model.geom(f"distractor{ghosts[0]}").contype == 1
    assert ghosts[0] not in np.flatnonzero(
        [simulation.model.body(f"distractor{i}").pos[2] > 0 for i in range(len(DISTRACTORS))]
    )


def test_before_the_onset_nothing_is_there(
    tabletop: Callable[[str], TabletopEnv],
    changed: dict[str, Intervention],
    nominal: np.ndarray,
) -> None:
    late = interventions(tabletop("pick_place"), seed=SEED, num_steps=NUM_STEPS, onset=3)
    for kind, intervention in late.items():
        np.testing.assert_array_equal(frames_of(intervention)[:3], nominal[:3])
        np.testing.assert_array_equal(frames_of(intervention)[3:], frames_of(changed[kind])[3:])
        assert not intervention.mask[:3].any()
        np.testing.assert_array_equal(intervention.mask[3:], changed[kind].mask[3:])
    with pytest.raises(ValueError, match=r"`onset` must be a frame index in \[0, 5\)"):
        interventions(tabletop("pick_place"), seed=SEED, num_steps=NUM_STEPS, onset=5)


@pytest.mark.parametrize("kind", PATCHES)
def test_only_the_drifting_occluder_moves_and_only_noise_flickers(
    changed: dict[str, Intervention], kind: str
) -> None:
    mask = changed[kind].mask[:, 0]
    assert (mask == mask[0]).all() == (kind != "drifting occluder")
    assert np.ptp(mask.sum(axis=(1, 2))) == 0  # the whole patch stays in view


def test_a_shuffled_patch_keeps_its_colours(
    changed: dict[str, Intervention], nominal: np.ndarray
) -> None:
    mask = changed["shuffled patch"].mask[:, 0]
    frames = frames_of(changed["shuffled patch"])
    for before, after, place in zip(nominal, frames, mask, strict=True):
        assert sorted(map(tuple, before[place])) == sorted(map(tuple, after[place]))


def test_a_moved_patch_shows_what_stands_elsewhere(
    changed: dict[str, Intervention], nominal: np.ndarray
) -> None:
    intervention = changed["moved patch"]
    rows, columns = (np.flatnonzero(intervention.mask[0, 0].any(axis)) for axis in (1, 0))
    content = frames_of(intervention)[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    windows = np.lib.stride_tricks.sliding_window_view(nominal, content.shape)[
        0, ..., 0, :, :, :, :
    ]
    assert (windows == content).all(axis=(-4, -3, -2, -1)).any()


def test_a_picture_without_anything_in_it_cannot_be_tampered_with() -> None:
    grey = np.full((3, 16, 16, 3), 90, np.uint8)
    with pytest.raises(ValueError, match="`frames` must not be uniform"):
        PATCHES["moved patch"](grey, np.random.default_rng(0))
    same = lambda frames, corner, size, rng: frames[:, : size[0], : size[1]]  # noqa: E731
    with pytest.raises(ValueError, match="no patch changes them"):
        patch(grey, np.random.default_rng(0), fill=same)
