"""Fleet drift: a fair game without drift, quick detection with it."""

import io
from itertools import permutations

import numpy as np
import pytest
from jaxtyping import Float
from scipy.signal import lfilter
from scipy.stats import norm

from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.guarantees.drift import SHIFTS, FleetDrift, block_means, payoffs, settled

ALPHA = 0.05


def capitals(
    scores: Float[np.ndarray, "fleet episode"], n: int
) -> Float[np.ndarray, "fleet watched"]:
    """The capital of every fleet after each episode beyond the first `n`, without equal scores."""
    stakes = np.full((len(scores), len(SHIFTS)), 1 / len(SHIFTS))
    course = []
    for t in range(n, scores.shape[1]):
        rank = (scores[:, :t] > scores[:, t, None]).sum(axis=1) + 1
        stakes = settled(stakes, payoffs(rank, t + 1), t - n)
        course.append(stakes.sum(axis=1))
    return np.stack(course, axis=1)


def first_alarms(scores: Float[np.ndarray, "fleet episode"], n: int) -> Float[np.ndarray, " fleet"]:
    """Fleet episodes until drift is found, from 1; infinity if it never is."""
    found = capitals(scores, n) >= 1 / ALPHA
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, np.inf)


def test_class_equals_the_simulated_game() -> None:
    scores = np.random.default_rng(11).normal(size=(5, 60))
    scores[:3, 30:] += 1.0
    for row, course in zip(scores, capitals(scores, 19), strict=True):
        drift = FleetDrift(ALPHA).fit(row[:19])
        for score, capital in zip(row[19:], course, strict=True):
            assert drift.update(score) == (capital >= 1 / ALPHA)
            assert drift.capital_ == pytest.approx(capital, rel=1e-12)
            if drift.found_:
                break


@pytest.mark.parametrize("size", [1, 2, 20, 1000, 100_000])
def test_bets_are_fair(size: int) -> None:
    paid = payoffs(np.arange(1, size + 1), size)
    np.testing.assert_allclose(paid.mean(axis=0), 1.0, rtol=1e-9)
    assert (paid >= 0).all()
    assert (np.diff(paid, axis=0) <= 1e-6).all()  # a higher score never pays less
    np.testing.assert_allclose(paid[:, 0], 1.0, rtol=1e-6)  # no shift, nothing won


def test_bets_pay_the_likelihood_ratio_of_a_shift() -> None:
    """With many slices a slice's mass ratio is the ratio of densities in its middle."""
    size = 100_000
    rank = np.array([10, 1000, 50_000, 90_000])
    score = norm.isf((rank - 0.5) / size)
    ratio = norm.pdf(score[:, None], loc=SHIFTS) / norm.pdf(score)[:, None]
    np.testing.assert_allclose(payoffs(rank, size), ratio, rtol=1e-3)


def test_the_mean_capital_over_all_orders_is_one() -> None:
    """Exact: exchangeable scores come in every order equally often; 5 scores, one calibrated."""
    capitals = []
    for order in permutations(np.arange(5.0)):
        drift = FleetDrift(0.5).fit(np.array(order[:1]))
        drift.alpha = 1e-12  # never stop
        for score in order[1:]:
            drift.update(score)
        capitals.append(drift.capital_)
    assert np.mean(capitals) == pytest.approx(1.0, abs=1e-12)
    assert np.std(capitals) > 0.1


@pytest.mark.parametrize("n", [1, 19, 59])
def test_false_alarms_stay_below_alpha(n: int) -> None:
    """1500 fleets of 200 episodes, seed 0: 0.05 plus 3 standard errors is 0.067."""
    scores = np.random.default_rng(0).gumbel(size=(1500, n + 200))
    rate = np.mean(np.isfinite(first_alarms(scores, n)))
    assert 0.005 < rate <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / 1500)


def autocorrelated(rng: np.random.Generator, num_fleets: int, num_episodes: int) -> np.ndarray:
    """Scores [fleet, episode]: stationary AR(1) of 0.6 between neighbouring episodes."""
    steps = rng.standard_normal((num_fleets, num_episodes))
    steps[:, 1:] *= 0.8
    return lfilter([1.0], [1.0, -0.6], steps, axis=1)


def by_blocks(scores: np.ndarray, size: int) -> np.ndarray:
    blocks = [i // size for i in range(scores.shape[1])]
    return np.stack([block_means(row, blocks, size=size) for row in scores])


LIMIT = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / 400)


def test_blocks_keep_alpha_where_episodes_resemble_their_neighbours() -> None:
    """400 fleets, 59 calibration units and 100 of the fleet, seed 6: 3 standard errors."""
    rng = np.random.default_rng(6)
    alone = np.isfinite(first_alarms(autocorrelated(rng, 400, 159), 59)).mean()
    blocks = by_blocks(autocorrelated(rng, 400, 20 * 159), 20)
    assert np.isfinite(first_alarms(blocks, 59)).mean() <= LIMIT
    assert alone > 0.3


def test_blocks_of_a_robot_keep_alpha_where_robots_differ() -> None:
    """Every robot has 10 episodes in a row, and an offset of 1 standard deviation."""
    rng = np.random.default_rng(7)
    robots = rng.standard_normal((400, 159, 1))
    scores = (robots + rng.standard_normal((400, 159, 10))).reshape(400, -1)
    assert np.isfinite(first_alarms(by_blocks(scores, 10), 59)).mean() <= LIMIT
    assert np.isfinite(first_alarms(scores[:, :259], 59)).mean() > 0.2


def test_blocks_of_a_day_over_the_same_robots_keep_alpha() -> None:
    """Three robots with fixed offsets, in turn; days differ by 1 standard deviation."""
    rng = np.random.default_rng(8)
    days = rng.standard_normal((400, 159, 1))
    robots = np.tile(rng.standard_normal((400, 1, 3)), (1, 1, 3))
    scores = (days + robots + rng.standard_normal((400, 159, 9))).reshape(400, -1)
    assert np.isfinite(first_alarms(by_blocks(scores, 9), 59)).mean() <= LIMIT


def test_smaller_blocks_and_surplus_episodes_do_not_count() -> None:
    days = ["mo", "tu", "mo", "we", "tu", "mo"]
    means = block_means(np.array([1.0, 2.0, 3.0, 50.0, 4.0, 60.0]), days, size=2)
    assert means.tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="got size 0 and 1 blocks for 2 scores"):
        block_means(np.zeros(2), ["mo"], size=0)


def test_equal_scores_add_no_false_alarms() -> None:
    """Scores of three values; 40 fleets of 50 episodes, seed 1: 3 standard errors."""
    scores = np.random.default_rng(1).choice([0.0, 1.0, 2.0], p=[0.8, 0.15, 0.05], size=(40, 69))
    fleets = [FleetDrift(ALPHA, seed=s).fit(row[:19]) for s, row in enumerate(scores)]
    found = [
        [drift.update(score) for score in row[19:]][-1]
        for drift, row in zip(fleets, scores, strict=True)
    ]
    assert np.mean(found) <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / 40)


@pytest.mark.parametrize(("shift", "bar"), [(1.0, 10), (3.0, 3)])
def test_shift_is_detected_within_a_few_episodes(shift: float, bar: float) -> None:
    """Median of 1001 fleets, 100 calibration episodes, seed 2.

    A shift of one standard deviation is found within 10 episodes by 0.59 of fleets, 5.7 standard
    errors above one half.
    """
    scores = np.random.default_rng(2).normal(size=(1001, 160))
    scores[:, 100:] += shift
    assert np.median(first_alarms(scores, 100)) <= bar


def test_late_shift_is_detected() -> None:
    """500 fleets, 59 calibration and 100 nominal episodes, seed 3; the median is about 18."""
    scores = np.random.default_rng(3).normal(size=(500, 219))
    scores[:, 159:] += 1.0
    found = first_alarms(scores, 59)
    assert np.median(found[found > 100] - 100) <= 22


def test_lower_scores_are_no_drift() -> None:
    scores = np.random.default_rng(4).normal(size=(200, 159))
    scores[:, 59:] -= 2.0
    assert np.isinf(first_alarms(scores, 59)).all()


def test_only_the_order_of_scores_counts() -> None:
    scores = np.random.default_rng(5).normal(size=90)
    plain, bent = FleetDrift().fit(scores[:30]), FleetDrift().fit(np.exp(scores[:30]))
    for score in scores[30:]:
        assert plain.update(score) == bent.update(np.exp(score))
    assert plain.capital_ == bent.capital_


def test_restored_state_continues_the_test() -> None:
    """Saved as a plain archive after every tenth of 60 episodes, half of them with equal scores."""
    scores = np.random.default_rng(6).normal(size=80).round(1)
    through, restarted = (FleetDrift(seed=7).fit(scores[:20]) for _ in range(2))
    for t, score in enumerate(scores[20:]):
        if t % 10 == 0:
            file = io.BytesIO()
            np.savez(file, **restarted.arrays())
            file.seek(0)
            restarted = FleetDrift.from_arrays(np.load(file, allow_pickle=False))
        through.update(score)
        restarted.update(score)
        assert restarted.capital_ == through.capital_
    assert restarted.num_episodes_ == 60
    assert restarted.num_calibration_ == 20


def test_found_drift_stays_found_until_the_next_fit() -> None:
    calm = np.random.default_rng(8).normal(size=59)
    drift = FleetDrift().fit(calm)
    alarms = [drift.update(9.0) for _ in range(10)]
    assert alarms == sorted(alarms)
    assert alarms[-1]
    assert drift.update(-9.0)
    assert FleetDrift.from_arrays(drift.arrays()).found_
    assert not drift.fit(calm).found_
    assert (drift.capital_, drift.num_episodes_) == (1.0, 0)


def test_seed_only_breaks_ties() -> None:
    def course(scores: Float[np.ndarray, " episode"], seed: int) -> list[float]:
        drift = FleetDrift(seed=seed).fit(scores[:19])
        return [drift.capital_ for score in scores[19:] if not drift.update(score)]

    scores = np.random.default_rng(9).normal(size=60)
    assert course(scores, 0) == course(scores, 1)
    assert course(scores.round(), 0) != course(scores.round(), 1)
    assert course(scores.round(), 1) == course(scores.round(), 1)


def test_long_run_without_drift_costs_little() -> None:
    """Evidence that shrank with every calm episode could not come back; 25 fleets, seed 10.

    After t episodes the bet on no shift has (50 / (50 + t))^(2/3) of its stake left, 0.08 at
    2000; with a constant share of 0.01 it would be 1e-6.
    """
    scores = np.random.default_rng(10).normal(size=(25, 2059))
    assert np.median(capitals(scores, 59)[:, -1]) > 0.01


def test_wrong_input_is_refused() -> None:
    message = r"`alpha`=0\.05 needs at least 19 calibration episodes, got 18, which support 0\.0526"
    with pytest.raises(ValueError, match=message):
        FleetDrift(0.05).fit(np.arange(18.0))
    with pytest.raises(ValueError, match="`scores` must be finite"):
        FleetDrift(0.5).fit(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\), got 1\.0"):
        FleetDrift(1.0)
    with pytest.raises(ValueError, match="`seed` must be 0 or more, got -1"):
        FleetDrift(seed=-1)
    with pytest.raises(NotFittedError, match="FleetDrift is not fitted"):
        FleetDrift().update(0.0)
    drift = FleetDrift(0.5).fit(np.zeros(2))
    for broken in (np.nan, np.inf):
        with pytest.raises(ValueError, match="`score` must be finite"):
            drift.update(broken)
    assert drift.num_episodes_ == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stakes", np.ones(2)),
        ("stakes", np.array([0.5, np.nan, 0.5])),
        ("history", np.array([0.0, np.inf])),
        ("num_calibration", np.array(3)),
    ],
)
def test_invalid_state_is_refused(name: str, value: np.ndarray) -> None:
    arrays = FleetDrift(0.5).fit(np.zeros(2)).arrays()
    with pytest.raises(ValueError, match=r"`(stakes|history)` must"):
        FleetDrift.from_arrays({**arrays, name: value})
