"""Synthetic edits change the named part of the scene and keep the rest."""

import numpy as np
import pytest

from worldmodel.monitors.causes.edits import (
    EDITS,
    EditedScene,
    _plane_view,
    _warped,
    edited_episodes,
    segment,
)
from worldmodel.monitors.causes.palette import Palette

ARM, BOX = (0.1, 0.1, 0.12), (0.85, 0.12, 0.1)


def paint(seed: int, *, moves: bool = True) -> np.ndarray:
    """An arm that carries a box to and fro above a table with a wall behind: [time, 64, 64, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    grain = 1 + 0.05 * np.sin(x / 2)[..., None]
    still = np.where((y < 14)[..., None], (0.7, 0.72, 0.7), np.array((0.65, 0.5, 0.35)) * grain)
    start, film = rng.uniform(0, 6), []
    for t in range(12 if moves else 0):
        tip_x, tip_y = 32 + 20 * np.sin(start + t / 2), 34 + 12 * np.sin(start + t / 3)
        frame = np.where(((abs(x - tip_x) < 4) & (y < tip_y))[..., None], ARM, still)
        box = (abs(x - tip_x) < 3.5) & (abs(y - tip_y - 3) < 3.5)
        film.append(np.where(box[..., None], BOX, frame))
    frames = np.stack(film) if moves else np.repeat(still[None], 12, axis=0)
    noise = rng.normal(0, 0.004, frames.shape)
    return np.round(255 * (frames + noise).clip(0, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def episodes() -> list[np.ndarray]:
    """Six nominal episodes of one camera."""
    return [paint(seed)[:, None] for seed in range(6)]


@pytest.fixture(scope="module")
def scene(episodes: list[np.ndarray]) -> EditedScene:
    """The first of them, taken apart."""
    palette = Palette().fit([e[:, 0] for e in episodes], rng=np.random.default_rng(0))
    return segment(episodes[0][:, 0], palette, slice(0, 6))


def changed(scene: EditedScene, cause: str, seed: int) -> np.ndarray:
    """Pixels that an edit changes clearly: [time, 64, 64]."""
    film = EDITS[cause](scene, np.random.default_rng(seed))
    assert film is not None
    return np.abs(film - scene.video).max(axis=-1) > 0.05


def test_scene_is_segmented_into_its_parts(scene: EditedScene) -> None:
    arm = np.abs(scene.video - ARM).max(axis=-1) < 0.05
    box = np.abs(scene.video - BOX).max(axis=-1) < 0.05
    assert (scene.arm == arm).mean() > 0.99
    assert (scene.target == box).mean() > 0.99
    assert [mask.mean() for mask in scene.surfaces] == pytest.approx([50 / 64, 14 / 64], abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_edits_keep_the_rest_unchanged(scene: EditedScene, seed: int) -> None:
    assert not changed(scene, "object", seed)[scene.arm].any()
    assert not changed(scene, "end_effector", seed)[scene.target].any()
    assert not changed(scene, "background", seed)[scene.arm | scene.target].any()


@pytest.mark.parametrize("seed", range(5))
def test_edits_change_the_named_part(scene: EditedScene, seed: int) -> None:
    table = scene.surfaces[0] & ~scene.arm & ~scene.target
    assert changed(scene, "background", seed)[table].mean() > 0.3
    assert changed(scene, "lighting", seed)[table].mean() > 0.5
    assert changed(scene, "object", seed)[scene.target].mean() > 0.5
    assert changed(scene, "end_effector", seed)[scene.arm].mean() > 0.01
    assert 0.002 < changed(scene, "clutter", seed).mean() < 0.3
    assert changed(scene, "unknown", seed).mean() > 0.02
    assert changed(scene, "camera", seed).mean() > 0.02


@pytest.mark.parametrize("seed", range(5))
def test_clutter_stays_in_place_behind_what_moves(scene: EditedScene, seed: int) -> None:
    """But for a large thing, which stays in place in front of it."""
    strewn = changed(scene, "clutter", seed)
    covered = scene.arm | scene.target | scene.foreground
    assert (strewn | covered)[:, strewn.any(axis=0)].all()
    if strewn.mean() < 0.02:
        assert not strewn[scene.arm | scene.target].any()


def test_warp_to_the_same_view_is_the_identity(scene: EditedScene) -> None:
    view = _plane_view(0.8, 0.3, 0.1, 1.2)
    np.testing.assert_allclose(
        _warped(scene.video, view @ np.linalg.inv(view)), scene.video, atol=1e-9
    )


def test_a_warp_by_a_shift_is_a_shift(scene: EditedScene) -> None:
    shift = np.array([[1.0, 0, 5 / 64], [0, 1, 0], [0, 0, 1]])
    moved = _warped(scene.video, shift)
    np.testing.assert_allclose(moved[:, :, :-5], scene.video[:, :, 5:], atol=1e-9)


def test_a_camera_looks_at_the_origin_of_its_plane() -> None:
    """A point to the right appears to the right; a farther one higher up, that is, smaller y."""
    view = _plane_view(0.8)
    place = [
        (view @ point)[:2] / (view @ point)[2]
        for point in np.array([[0, 0, 1], [0.1, 0, 1], [0, 0.1, 1]])
    ]
    np.testing.assert_allclose(place[0], 0, atol=1e-12)
    assert place[1][0] > 0
    assert place[1][1] == pytest.approx(0)
    assert place[2][1] < 0


def test_same_seed_same_edits(episodes: list[np.ndarray]) -> None:
    some = episodes[:2]
    first, again, other = (edited_episodes(some, clip_frames=2, seed=seed) for seed in (1, 1, 2))
    assert list(first) == list(EDITS)
    for cause, clips in first.items():
        assert len(clips) == len(some)
        assert all(clip.shape == (2, 1, 64, 64, 3) for clip in clips)
        np.testing.assert_array_equal(clips, again[cause])
        assert not np.array_equal(clips, other[cause])


def test_a_scene_without_arm_or_target_has_no_such_edits() -> None:
    still = [paint(seed, moves=False)[:, None] for seed in range(3)]
    assert list(edited_episodes(still, clip_frames=2, seed=0)) == [
        "lighting",
        "background",
        "clutter",
        "camera",
        "unknown",
    ]


def test_large_frames_give_the_same_clips(episodes: list[np.ndarray]) -> None:
    large = [episode[:5].repeat(2, axis=2).repeat(3, axis=3) for episode in episodes[:2]]
    small = [episode[:5] for episode in episodes[:2]]
    clips = [edited_episodes(some, clip_frames=1, seed=0) for some in (small, large)]
    np.testing.assert_array_equal(clips[0]["camera"], clips[1]["camera"])


def test_bad_input_is_refused(episodes: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="`episodes` must not be empty"):
        edited_episodes([], clip_frames=3, seed=0)
    with pytest.raises(ValueError, match="`clip_frames` must be 1 or more"):
        edited_episodes(episodes, clip_frames=0, seed=0)
