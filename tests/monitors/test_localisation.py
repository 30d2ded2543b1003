"""Localisation metrics against scikit-learn, an exhaustive threshold count and hand-made cases."""

import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score, roc_curve

from worldmodel.monitors.metrics.localisation import (
    pixel_aupro,
    pixel_auroc,
    pointing,
    score_picture,
    summarize_localisation,
)

TIED = (True, False)


def draw(seed: int, *, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    """A map that knows a little of a mask of several regions."""
    rng = np.random.default_rng(seed)
    mask = rng.random((24, 30)) < 0.06
    mask[3:9, 5:12] = True
    surprise = rng.normal(size=mask.shape) + mask
    return (surprise.round(), mask) if tied else (surprise, mask)


def overlap_curve(surprise: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False positive rate and mean overlap of the regions, counted threshold by threshold."""
    regions, number = label(mask, structure=np.ones((3, 3)))
    points = [(0.0, 0.0)]
    for threshold in np.unique(surprise)[::-1]:
        found = surprise >= threshold
        shares = [found[regions == region].mean() for region in range(1, number + 1)]
        points.append((found[~mask].mean(), np.mean(shares)))
    x, y = np.array(points).T
    return x, y


def area_below(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Normalised area up to `limit`, on a fine grid between the corners of the curve."""
    grid = np.unique(np.append(x[x <= limit], np.linspace(0, limit, 4001)))
    jump = y[x == 0].max()  # the curve rises at 0 before it moves to the right
    values = np.where(grid == 0, jump, np.interp(grid, x, y))
    return float(np.trapezoid(values, grid) / limit)


@pytest.mark.parametrize("tied", TIED)
@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_scikit_learns(seed: int, tied: bool) -> None:
    surprise, mask = draw(seed, tied=tied)
    expected = roc_auc_score(mask.ravel(), surprise.ravel())
    assert pixel_auroc(surprise, mask) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("tied", TIED)
def test_aupro_is_the_area_counted_threshold_by_threshold(tied: bool, limit: float) -> None:
    for seed in range(4):
        surprise, mask = draw(seed, tied=tied)
        expected = area_below(*overlap_curve(surprise, mask), limit)
        assert pixel_aupro(surprise, mask, limit=limit) == pytest.approx(expected, abs=1e-3)


def test_aupro_of_one_region_is_a_partial_area_of_the_roc_curve() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[4:9, 3:15] = True
    surprise = np.random.default_rng(0).normal(size=mask.shape) + mask
    x, y, _ = roc_curve(mask.ravel(), surprise.ravel(), drop_intermediate=False)
    assert pixel_aupro(surprise, mask) == pytest.approx(area_below(x, y, 0.3), abs=1e-3)
    assert pixel_aupro(surprise, mask, limit=1.0) == pytest.approx(
        roc_auc_score(mask.ravel(), surprise.ravel()), abs=1e-9
    )


def test_a_small_region_counts_as_much_as_a_large_one() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[:5, :6], mask[9, 9] = True, True
    small_missed = np.where(mask, 1.0, 0.0)
    small_missed[9, 9] = -1.0
    assert pixel_aupro(small_missed, mask) == pytest.approx(0.5)
    assert pixel_auroc(small_missed, mask) > 0.95


def test_regions_that_touch_at_a_corner_are_one() -> None:
    surprise = np.array([[1.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.5]])
    corner = np.eye(3, dtype=bool) & (np.arange(3) < 2)[:, None]
    # One of two pixels found, then all the others before the second: 1/2 throughout.
    assert pixel_aupro(surprise, corner, limit=0.5) == pytest.approx(0.5)


def test_a_rise_at_the_limit_itself_has_no_area() -> None:
    mask = np.zeros((2, 6), dtype=bool)
    mask[0, :2] = True
    surprise = np.array([[9.0, 1.0, 8.0, 7.0, 6.0, 0.0], [0.0] * 6])
    assert pixel_aupro(surprise, mask) == pytest.approx(0.5)  # its second pixel comes at 3 of 10


def test_random_maps_score_chance_and_the_mask_itself_scores_one() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:26, 20:36] = True
    blind = [score_picture(rng.random((64, 64)), mask) for _ in range(300)]
    mean = {name: np.mean([score[name] for score in blind]) for name in blind[0]}
    # Standard errors over 300 maps: about 0.001, 0.001 and 0.014.
    assert mean["auroc"] == pytest.approx(0.5, abs=0.005)
    assert mean["aupro"] == pytest.approx(0.15, abs=0.005)
    assert mean["pointing"] == pytest.approx(mean["mask_share"], abs=0.05)
    constant = score_picture(np.zeros((64, 64)), mask)
    assert constant["auroc"] == 0.5
    assert constant["aupro"] == pytest.approx(0.15)
    assert constant["pointing"] == constant["mask_share"] == 1 / 16
    perfect = score_picture(mask.astype(float), mask)
    assert (perfect["auroc"], perfect["aupro"], perfect["pointing"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("tolerance", "hit"), [(0.0, 0.0), (2.0, 0.0), (2.9, 1.0), (15.0, 1.0)])
def test_pointing_allows_for_a_distance(tolerance: float, hit: float) -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[6:, 6:] = True
    surprise = np.zeros((9, 9))
    surprise[4, 4] = 1.0  # two rows and two columns away: 2.83 pixels
    assert pointing(surprise, mask, tolerance=tolerance) == hit


def test_intervals_resample_episodes_not_pictures() -> None:
    rng = np.random.default_rng(0)
    effect = rng.normal(0.8, 0.1, 30)
    scores = [
        dict.fromkeys(("auroc", "aupro", "pointing", "mask_share"), value)
        for value in effect
        for _ in range(10)
    ]
    episodes = [name for name in range(30) for _ in range(10)]
    table = summarize_localisation(scores, episodes, rng=rng)
    assert (table.num_pictures, table.num_episodes) == (300, 30)
    assert table.auroc == pytest.approx(effect.mean())
    low, high = table.auroc_interval
    assert high - low == pytest.approx(2 * 1.96 * effect.std() / np.sqrt(30), rel=0.15)
    apart = summarize_localisation(scores, list(range(300)), rng=rng)
    assert np.ptp(apart.auroc_interval) < 0.5 * (high - low)
    assert summarize_localisation(scores[:10], episodes[:10], rng=rng).aupro_interval is None


def test_wrong_input_is_refused() -> None:
    surprise, mask = draw(0, tied=False)
    for measure in (pixel_auroc, pixel_aupro, pointing):
        with pytest.raises(ValueError, match=r"`mask` must have pixels .* it is empty"):
            measure(surprise, np.zeros_like(mask))
        with pytest.raises(ValueError, match=r"`mask` must have pixels .* it is full"):
            measure(surprise, np.ones_like(mask))
        with pytest.raises(ValueError, match="`surprise` must be finite"):
            measure(np.full_like(surprise, np.nan), mask)
    with pytest.raises(ValueError, match="`limit` must lie above 0"):
        pixel_aupro(surprise, mask, limit=0.0)
    with pytest.raises(ValueError, match="`tolerance` must be 0 pixels or more"):
        pointing(surprise, mask, tolerance=-1.0)
    with pytest.raises(ValueError, match="at least one picture, got 0 and 0"):
        summarize_localisation([], [], rng=np.random.default_rng(0))
