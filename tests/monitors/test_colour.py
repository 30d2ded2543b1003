"""Colour channel: distances against brute force, small objects, several views."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from worldmodel.monitors.channels.colour import ColourChannel


def film(rng: np.random.Generator, num_frames: int = 4, views: tuple[int, ...] = ()) -> np.ndarray:
    """Brownish pictures."""
    shape = (num_frames, *views, 16, 16, 3)
    return (np.array([120, 80, 50]) + rng.integers(-20, 20, shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def channel() -> ColourChannel:
    rng = np.random.default_rng(0)
    return ColourChannel().fit([film(rng, 40) for _ in range(10)])


def test_distances_equal_a_brute_force_search() -> None:
    rng = np.random.default_rng(1)
    seen = rng.integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    asked = rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    cells = (seen.reshape(-1, 3) // 4).astype(float), (asked.reshape(-1, 3) // 4).astype(float)
    expected = 4 * cdist(cells[1], cells[0]).min(axis=1).reshape(1, 8, 8)
    found = ColourChannel().fit([seen]).pixel_scores(asked)
    assert found == pytest.approx(expected, rel=1e-3)  # the table holds half precision


def test_familiar_colours_score_zero_whatever_their_place(channel: ColourChannel) -> None:
    rng = np.random.default_rng(2)
    assert (channel.score(film(rng)) < 6).all()


def test_two_pixels_of_a_new_colour_are_enough(channel: ColourChannel) -> None:
    frames = film(np.random.default_rng(3))
    frames[2, 5, 5:7] = (30, 60, 230)
    score = channel.score(frames)
    assert score[2] > 100
    assert (score[[0, 1, 3]] < 6).all()
    assert channel.pixel_scores(frames)[2].argmax() in (5 * 16 + 5, 5 * 16 + 6)


def test_score_is_the_largest_over_views(channel: ColourChannel) -> None:
    frames = film(np.random.default_rng(4), views=(2,))
    alone = channel.score(frames)
    frames[:, 1, :4, :4] = (0, 255, 0)
    assert (channel.score(frames) > alone + 100).all()


@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_places_hold_the_pixels_they_cover(channel: ColourChannel, shape: tuple[int, ...]) -> None:
    frames = film(np.random.default_rng(6), 1)
    frames[0, 13:15, 1:3] = (0, 0, 255)
    places = channel.place_scores(frames, shape)[0]
    assert places.shape == shape
    row, column = 14 * shape[0] // 16, 2 * shape[1] // 16
    assert places[row, column] == places.max() > 50
    assert (places > 50).sum() <= 2


def test_saved_and_loaded_scores_are_equal(channel: ColourChannel) -> None:
    frames = np.random.default_rng(5).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    again = ColourChannel.from_arrays(channel.arrays())
    assert np.array_equal(again.score(frames), channel.score(frames))


def test_empty_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="`videos` needs at least one frame"):
        ColourChannel().fit([])
