"""Heatmaps: interpolation against SciPy, colours against matplotlib, and the legend."""

import numpy as np
import pytest
from matplotlib import colormaps
from scipy.ndimage import zoom

from worldmodel.monitors.heatmaps import (
    LEGEND_WIDTH,
    colours,
    heatmap,
    legend,
    overlay,
    palette,
    upsample,
    with_legend,
)


@pytest.mark.parametrize("size", [(16, 24), (64, 48)])
def test_upsampling_is_scipys_bilinear_zoom(size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random((4, 6))
    factors = (size[0] / 4, size[1] / 6)
    expected = zoom(values, factors, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(upsample(values, *size), expected, atol=1e-9)


def test_lightness_rises_with_confidence() -> None:
    np.testing.assert_array_equal(colours(np.array([0.0, 1.0])), palette()[[0, 255]])
    expected = np.round(255 * np.array(colormaps["cividis"](np.linspace(0, 1, 256)))[:, :3])
    np.testing.assert_array_equal(palette(), expected)
    lightness = palette() @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(np.convolve(lightness, np.ones(4) / 4, "valid")) > 0).all()


def test_channels_are_averaged() -> None:
    confidence = np.stack([np.zeros((2, 2)), np.ones((2, 2))])
    np.testing.assert_array_equal(
        heatmap(confidence, 8, 8), np.broadcast_to(palette()[128], (8, 8, 3))
    )


def test_overlay_keeps_the_scene_and_loses_its_colours() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:, 4:] = 255
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (8, 8, 3))
    confidence = np.full((2, 2), 0.5)
    shown = overlay(frame, confidence)
    assert (shown[:, 4:].astype(int) - shown[:, :4] == 102).all()  # 40% of the contrast is left
    np.testing.assert_array_equal(overlay(red, confidence, opacity=1.0), heatmap(confidence, 8, 8))
    hue = overlay(red, confidence, opacity=0.0)
    assert (hue == hue[..., :1]).all()


def test_legend_runs_from_one_at_the_top_to_zero_at_the_bottom() -> None:
    bar = legend(64)[18:56, 10]
    np.testing.assert_array_equal(bar[[0, -1]], palette()[[255, 0]])
    picture = with_legend(np.zeros((64, 64, 3), np.uint8))
    assert picture.shape == (64, 64 + LEGEND_WIDTH, 3)
    labels = legend(64)[:, 27:]
    assert labels.min() < 100  # the numbers are drawn


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="`height` must be at least 48 pixels"):
        legend(32)
    with pytest.raises(ValueError, match=r"`confidence` must be \[h, w\] or \[channel, h, w\]"):
        heatmap(np.ones((2, 2, 2, 2)), 8, 8)
    with pytest.raises(ValueError, match="`confidence` must hold probabilities"):
        heatmap(np.full((2, 2), 1.5), 8, 8)
