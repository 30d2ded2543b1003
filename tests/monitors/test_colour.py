"""Colour channel: unfamiliar colours, missing colours, nuisances, several views."""

import numpy as np
import pytest

from worldmodel.monitors.channels.colour import (
    MEMORY,
    ColourChannel,
    area_means,
    running_minimum,
)
from worldmodel.monitors.nuisances import DEFAULTS, declared

SIDE = 32
NUISANCES = declared(DEFAULTS)
RED, GREEN, BLUE = (200, 40, 30), (40, 160, 60), (30, 60, 230)


def film(rng: np.random.Generator, num_frames: int = 4, views: tuple[int, ...] = ()) -> np.ndarray:
    """Brownish pictures with a red and a green square."""
    shape = (num_frames, *views, SIDE, SIDE, 3)
    frames = (np.array([120, 80, 50]) + rng.integers(-20, 20, shape)).astype(np.uint8)
    y, x = rng.integers(0, 8, 2)
    frames[..., 4 + y : 10 + y, 4 + x : 10 + x, :] = RED
    frames[..., 20:26, 20:26, :] = GREEN
    return frames


def absences(channel: ColourChannel, frames: np.ndarray) -> np.ndarray:
    return running_minimum(channel.anchor_distances(frames))


@pytest.fixture(scope="module")
def channel() -> ColourChannel:
    rng = np.random.default_rng(0)
    return ColourChannel().fit([film(rng, 20) for _ in range(12)], NUISANCES)


def test_areas_are_means_of_nine_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    means = area_means(frames)
    assert means.shape == (2, 3, 4, 3)
    assert means[1, 2, 1] == pytest.approx(frames[1, 2:5, 1:4].mean(axis=(0, 1)), abs=0.51)


def test_familiar_colours_score_zero_whatever_their_place(channel: ColourChannel) -> None:
    assert (channel.score(film(np.random.default_rng(2))) < 0.5).all()


def test_a_small_area_of_a_new_colour_is_enough(channel: ColourChannel) -> None:
    frames = film(np.random.default_rng(3))
    frames[2, 15:18, 5:8] = BLUE
    score = channel.score(frames)
    assert score[2] > 2 > 0.5 > score[[0, 1, 3]].max()
    assert np.unravel_index(channel.pixel_scores(frames)[2].argmax(), (SIDE, SIDE)) == (16, 6)


@pytest.mark.parametrize("nuisance", NUISANCES, ids=lambda nuisance: nuisance.name)
def test_declared_nuisances_are_familiar(channel: ColourChannel, nuisance) -> None:
    """A new colour stays above what any declared nuisance does to a familiar picture."""
    frames = film(np.random.default_rng(4), 20)
    shown = nuisance(frames, seed=1)
    odd = frames.copy()
    odd[:, 15:18, 5:8] = BLUE
    assert channel.score(shown).max() < channel.score(odd).min() / 3
    assert channel.missing_score(absences(channel, shown)).max() < 2


def test_without_declared_nuisances_they_are_unfamiliar() -> None:
    rng = np.random.default_rng(5)
    videos = [film(rng, 20) for _ in range(12)]
    plain = ColourChannel().fit(videos)
    brighter = declared(["exposure:0.1"])[0](videos[0])
    assert plain.score(videos[0]).max() == 0
    assert plain.score(brighter).max() > 1


def test_repainted_object_is_missed_although_its_new_colour_is_familiar(
    channel: ColourChannel,
) -> None:
    """The red square turns green, a colour that every familiar frame shows elsewhere."""
    frames = film(np.random.default_rng(6), 2 * MEMORY)
    repainted = frames.copy()
    repainted[4:][(frames[4:] == RED).all(axis=-1)] = GREEN
    missed = channel.missing_score(absences(channel, repainted))
    usual = channel.missing_score(absences(channel, frames))
    assert missed[:4] == pytest.approx(usual[:4])
    assert missed[4 + MEMORY - 2] < 1, "it was seen within the last frames"
    assert missed[4 + MEMORY :].min() > 5
    assert channel.score(repainted).max() < 0.5


def test_hidden_object_is_not_missed_at_once(channel: ColourChannel) -> None:
    frames = film(np.random.default_rng(7), 12)
    frames[3:8][(frames[3:8] == RED).all(axis=-1)] = (120, 80, 50)
    assert channel.missing_score(absences(channel, frames)).max() < 1


def test_score_is_the_largest_over_views() -> None:
    rng = np.random.default_rng(8)
    two = ColourChannel().fit([film(rng, 10, (2,)) for _ in range(12)], NUISANCES)
    frames = film(rng, 10, (2,))
    alone = two.score(frames), two.missing_score(absences(two, frames))
    frames[:, 1][(frames[:, 1] == RED).all(axis=-1)] = BLUE
    assert (two.score(frames) > alone[0] + 2).all()
    assert two.missing_score(absences(two, frames))[-1] > alone[1].max() + 2


@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_places_hold_the_areas_they_cover(channel: ColourChannel, shape: tuple[int, ...]) -> None:
    frames = film(np.random.default_rng(9), 1)
    frames[0, 27:30, 1:4] = BLUE
    places = channel.place_scores(frames, shape)[0]
    assert places.shape == shape
    row, column = 28 * shape[0] // SIDE, 2 * shape[1] // SIDE
    assert places[row, column] == places.max() > 2
    assert (places > 2).sum() <= 2


def test_saved_and_loaded_scores_are_equal(channel: ColourChannel) -> None:
    frames = np.random.default_rng(5).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    again = ColourChannel.from_arrays(channel.arrays())
    assert np.array_equal(again.score(frames), channel.score(frames))
    assert np.array_equal(again.anchor_distances(frames), channel.anchor_distances(frames))


def test_empty_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="`videos` needs at least one video"):
        ColourChannel().fit([])


def test_pictures_smaller_than_an_area_are_read() -> None:
    tiny = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    channel = ColourChannel().fit([tiny, tiny])
    assert channel.pixel_scores(tiny).shape == (4, 2, 2)
