"""Simulate nominal episodes and check the monitor's statistical guarantees.

    OMP_NUM_THREADS=1 python -m benchmarks.promises          # two minutes on one CPU core
    OMP_NUM_THREADS=1 python -m benchmarks.promises --quick  # seconds; writes no file

Common alternatives without a guarantee are measured too. Exit code 1 if a guarantee is violated by
more than two standard errors of the simulation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import lfilter
from scipy.special import ndtr

from benchmarks.provenance import RESULTS, git_commit, processor, today, versions
from worldmodel.monitors.guarantees.drift import SHIFTS, FleetDrift, payoffs, settled
from worldmodel.monitors.guarantees.episode_threshold import EpisodeThreshold

PHIS = (0.0, 0.5, 0.9, 0.98)
FRAMES = 40
ALPHA, DELTA = 0.05, 0.05
NUM_FLEET = 200
"""Episodes per fleet."""
MAX_DELAY = 10
"""Limit of the median delay, in episodes, for a shift of one standard deviation."""
ENOUGH = 59
"""Minimum number of calibration episodes for which that limit applies."""
BETWEEN = 0.6
"""Autocorrelation of the scores of neighbouring episodes of a fleet."""
PER_ROBOT = 10
"""Episodes per robot, whose scores share a robot's offset of one standard deviation."""
CHUNK = 50_000
"""Episodes per simulated batch."""


@dataclass(frozen=True, kw_only=True)
class PromiseSize:
    """Size of the simulation per row."""

    episodes: int = 10_000
    """Independent pairs of a calibration set and a new episode."""
    sets: int = 4_000
    """Calibration sets whose true alarm rate is computed."""
    fleets: int = 1_000
    pool: int = 200_000
    """Nominal episodes for the true rate of a threshold and the spread of scores."""


QUICK = PromiseSize(episodes=2_000, sets=500, fleets=200, pool=50_000)


@dataclass(frozen=True, kw_only=True)
class PromiseRow:
    """One measured value."""

    what: str
    phi: float | None
    n: int | None
    """Calibration episodes."""
    value: float
    error: float | None = None
    """Standard error of `value`."""
    bar: str = ""
    kept: bool | None = None
    """Whether the guarantee holds; None: no limit is set."""


def frames(rng: np.random.Generator, phi: float, count: int) -> np.ndarray:
    """Scores [count, FRAMES] of nominal episodes: stationary AR(1), standard normal per frame."""
    steps = rng.standard_normal((count, FRAMES), dtype=np.float32)
    steps[:, 1:] *= np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], steps, axis=1)


def suprema(rng: np.random.Generator, phi: float, *shape: int) -> np.ndarray:
    """Largest score of each nominal episode, in an array of `shape`."""
    total = int(np.prod(shape))
    parts = [
        frames(rng, phi, min(CHUNK, total - first)).max(axis=1) for first in range(0, total, CHUNK)
    ]
    return np.concatenate(parts).astype(np.float64).reshape(shape)


def share(
    what: str, phi: float | None, n: int | None, hits: np.ndarray, *, limit: float | None = None
) -> PromiseRow:
    """Frequency of an event that may be at most `limit`."""
    value = float(np.mean(hits))
    if limit is None:
        return PromiseRow(
            what=what, phi=phi, n=n, value=value, error=np.sqrt(value * (1 - value) / len(hits))
        )
    error = np.sqrt(limit * (1 - limit) / len(hits))
    bar, kept = f"at most {limit:g} + 2 SE", bool(value <= limit + 2 * error)
    return PromiseRow(what=what, phi=phi, n=n, value=value, error=error, bar=bar, kept=kept)


def promise_a(rng: np.random.Generator, phi: float, size: PromiseSize) -> Iterator[PromiseRow]:
    """Guarantee (a): alarm rate on a new episode, one per calibration set."""
    for n in (19, 59, 150):
        scores = suprema(rng, phi, size.episodes, n + 1)
        alarms = [EpisodeThreshold(ALPHA).fit(row[:-1]).exceeded(row[-1]) for row in scores]
        yield share("(a) alarm in an episode", phi, n, np.array(alarms), limit=ALPHA)


def promise_b(rng: np.random.Generator, phi: float, size: PromiseSize) -> Iterator[PromiseRow]:
    """Guarantee (b): true alarm rate of each calibration set's threshold, on a large pool."""
    pool = np.sort(suprema(rng, phi, size.pool))
    for n in (59, 150):
        sets = suprema(rng, phi, size.sets, n)
        for delta, name in ((DELTA, "(b) rate above 0.05"), (None, "the same of (a)'s threshold")):
            limits = [EpisodeThreshold(ALPHA, delta=delta).fit(row).value_ for row in sets]
            rates = 1 - np.searchsorted(pool, limits, side="right") / len(pool)
            yield share(f"{name}, by calibration set", phi, n, rates > ALPHA, limit=delta)


def first_alarm(scores: np.ndarray, n: int, seed: int) -> float:
    """Number of fleet episodes until drift is detected; infinity if it never is."""
    drift = FleetDrift(ALPHA, seed=seed).fit(scores[:n])
    return next((t for t, score in enumerate(scores[n:], 1) if drift.update(score)), np.inf)


def alarms(scores: np.ndarray, n: int) -> np.ndarray:
    """`first_alarm` of every fleet, one per row."""
    return np.array([first_alarm(row, n, seed) for seed, row in enumerate(scores)])


def delay(
    what: str, phi: float | None, n: int | None, first: np.ndarray, onset: int = 0
) -> PromiseRow:
    """Median delay over fleets without an alarm before the onset."""
    value = float(np.median(first[first > onset] - onset))
    if onset or n is None or n < ENOUGH:
        return PromiseRow(what=what, phi=phi, n=n, value=value)
    bar = f"median at most {MAX_DELAY}"
    return PromiseRow(what=what, phi=phi, n=n, value=value, bar=bar, kept=value <= MAX_DELAY)


def promise_c(rng: np.random.Generator, phi: float, size: PromiseSize) -> Iterator[PromiseRow]:
    """Guarantee (c): false alarms in 200 episodes, and delay of a shift from the first one on."""
    spread = suprema(rng, phi, size.pool // 4).std()
    for n in (19, 30, ENOUGH, 150):
        scores = suprema(rng, phi, size.fleets, n + NUM_FLEET)
        hits = np.isfinite(alarms(scores, n))
        yield share(f"(c) alarm in {NUM_FLEET} episodes", phi, n, hits, limit=ALPHA)
        scores[:, n:] += spread
        yield delay("(c) delay of a shift by 1 SD, episodes", phi, n, alarms(scores, n))


def other_shifts(rng: np.random.Generator, size: PromiseSize) -> Iterator[PromiseRow]:
    """Delay of smaller, larger and later shifts, and of an oracle that knows all but the onset."""
    phi, n = 0.9, ENOUGH
    spread = suprema(rng, phi, size.pool // 4).std()
    for shift, onset in ((0.5, 0), (2.0, 0), (3.0, 0), (1.0, 20), (1.0, 100), (2.0, 100)):
        scores = suprema(rng, phi, size.fleets, n + NUM_FLEET)
        scores[:, n + onset :] += shift * spread
        what = f"(c) delay of a shift by {shift:g} SD after {onset} episodes"
        first = alarms(scores, n)
        row = delay(what, phi, n, first, onset=onset)
        yield PromiseRow(what=what, phi=phi, n=n, value=row.value)
    for shift in (1.0, 2.0):
        yield delay(
            f"delay of a shift by {shift:g} SD after 100, with the law and the shift known",
            None,
            None,
            informed(rng, size.fleets, shift=shift, onset=100),
            onset=100,
        )


def informed(rng: np.random.Generator, fleets: int, *, shift: float, onset: int) -> np.ndarray:
    """First alarm of an oracle that knows the distribution N(0, 1) and the size of the shift.

    It bets an equal share of its capital on each of the 200 episodes as the onset.
    """
    scores = rng.standard_normal((fleets, NUM_FLEET))
    scores[:, onset:] += shift
    at_stake, first = np.zeros(fleets), np.full(fleets, np.inf)
    for t, score in enumerate(scores.T, 1):
        at_stake = (at_stake + 1 / NUM_FLEET) * np.exp(shift * score - shift**2 / 2)
        capital = at_stake + 1 - t / NUM_FLEET
        first = np.where(np.isinf(first) & (capital >= 1 / ALPHA), t, first)
    return first


def dependent_fleets(rng: np.random.Generator, size: PromiseSize) -> Iterator[PromiseRow]:
    """Guarantee (c) where episodes are not exchangeable, with and without blocks of them."""
    n, blocks = ENOUGH, ENOUGH + NUM_FLEET // 2

    def rate(scores: np.ndarray) -> np.ndarray:
        return np.isfinite(alarms(scores, n))

    for length in (1, 5, 10, 20):
        steps = rng.standard_normal((size.fleets, blocks * length))
        steps[:, 1:] *= np.sqrt(1 - BETWEEN**2)
        scores = lfilter([1.0], [1.0, -BETWEEN], steps, axis=1)
        means = scores.reshape(size.fleets, blocks, length).mean(axis=2)
        what = f"(c) AR({BETWEEN:g}) between episodes, blocks of {length}"
        yield share(what, None, n, rate(means), limit=ALPHA if length == 20 else None)
    robots = rng.standard_normal((size.fleets, blocks, 1))
    scores = robots + rng.standard_normal((size.fleets, blocks, PER_ROBOT))
    what = f"(c) other robots, {PER_ROBOT} episodes each"
    whole = scores.reshape(size.fleets, -1)[:, : n + NUM_FLEET]
    yield share(f"{what}, by episode", None, n, rate(whole))
    yield share(f"{what}, by robot", None, n, rate(scores.mean(axis=2)), limit=ALPHA)


def capital(ranks: np.ndarray, size: int) -> np.ndarray:
    """Capital of `FleetDrift`'s bets after each column of ranks among `size`."""
    stakes = np.full((len(ranks), len(SHIFTS)), 1 / len(SHIFTS))
    totals = []
    for t, column in enumerate(ranks.T):
        stakes = settled(stakes, payoffs(column, size), t)
        totals.append(stakes.sum(axis=1))
    return np.stack(totals, axis=1)


def broken(rng: np.random.Generator, phi: float, size: PromiseSize) -> Iterator[PromiseRow]:
    """Common alternatives without a guarantee."""
    nominal = frames(rng, phi, size.episodes)
    limit = np.quantile(frames(rng, phi, size.episodes), 1 - ALPHA)
    yield share(
        "instead of (a): 5% threshold per frame", phi, None, np.any(nominal > limit, axis=1)
    )
    slices = 1000
    ranks = np.ceil(slices * ndtr(-nominal.astype(np.float64))).astype(int).clip(1)
    hits = np.any(capital(ranks, slices) >= 1 / ALPHA, axis=1)
    yield share("instead of (a): e-process over frames", phi, None, hits)
    for n in (19, ENOUGH, 150):
        scores = suprema(rng, phi, size.fleets, n + NUM_FLEET)
        ranks = (scores[:, n:, None] < scores[:, None, :n]).sum(axis=2) + 1
        hits = np.any(capital(ranks, n + 1) >= 1 / ALPHA, axis=1)
        yield share("instead of (c): ranked among calibration only", phi, n, hits)


def refusals() -> Iterator[PromiseRow]:
    """Check that one calibration episode fewer than needed raises an error."""
    makers: dict[str, tuple[Callable[[], EpisodeThreshold | FleetDrift], int]] = {
        "(a)": (lambda: EpisodeThreshold(ALPHA), 18),
        "(b)": (lambda: EpisodeThreshold(ALPHA, delta=DELTA), 58),
        "(c)": (lambda: FleetDrift(ALPHA), 18),
    }
    for name, (make, n) in makers.items():
        refused = False
        try:
            make().fit(np.arange(float(n)))
        except ValueError as error:
            refused = f"at least {n + 1} calibration episodes" in str(error)
        what = f"{name} refused, naming the number needed"
        yield PromiseRow(what=what, phi=None, n=n, value=float(refused), bar="1", kept=refused)


def measure(size: PromiseSize, seed: int) -> list[PromiseRow]:
    """Measure every row; each group has its own random generator."""
    rows = list(refusals())
    for group, simulate in enumerate((promise_a, promise_b, promise_c, broken)):
        for number, phi in enumerate(PHIS):
            rows += simulate(np.random.default_rng((seed, group, number)), phi, size)
    rows += dependent_fleets(np.random.default_rng((seed, 8)), size)
    return rows + list(other_shifts(np.random.default_rng((seed, 9)), size))


def tables(rows: list[PromiseRow]) -> str:
    """Markdown: one line per value and n with one column per phi, then values without phi."""
    groups: dict[tuple[str, int | None], list[PromiseRow]] = {}
    for row in rows:
        groups.setdefault((row.what, row.n), []).append(row)
    by_phi = [f"| what | n | {' | '.join(f'phi {phi:g}' for phi in PHIS)} | SE | bar | kept |"]
    by_phi.append("|" + "---|" * (len(PHIS) + 5))
    once = ["| what | phi | n | measured | bar | kept |", "|" + "---|" * 6]
    for (what, n), group in groups.items():
        values = [f"{row.value:.4g}" for row in group]
        verdicts = [row.kept for row in group if row.kept is not None]
        kept = ("yes" if all(verdicts) else "NO") if verdicts else ""
        count, bar = "" if n is None else str(n), group[0].bar
        if len(group) == len(PHIS):
            error = max((row.error for row in group if row.error is not None), default=None)
            cells = [what, count, *values, "" if error is None else f"{error:.2g}", bar, kept]
            by_phi.append("| " + " | ".join(cells) + " |")
        else:
            phi = "" if group[0].phi is None else f"{group[0].phi:g}"
            once.append("| " + " | ".join([what, phi, count, *values, bar, kept]) + " |")
    return "\n".join([*by_phi, "", *once])


def main(arguments: list[str] | None = None) -> int:
    """Simulate, print and write; exit code 1 if a guarantee is violated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller simulation; writes no file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    size, commit, started = (
        QUICK if options.quick else PromiseSize(),
        git_commit(),
        time.process_time(),
    )
    rows = measure(size, options.seed)
    facts = (
        f"{processor()}; {versions('numpy', 'scipy')}; commit {commit}; {today()}; "
        f"{time.process_time() - started:.0f} s of CPU time.\n\n"
        f"alpha {ALPHA}, delta {DELTA}, seed {options.seed}. Episodes of {FRAMES} frames, scores "
        f"AR(1) with phi, standard normal per frame. {size}."
    )
    text = f"# Guarantees, simulated\n\n{facts}\n\n{tables(rows)}\n"
    print(text)
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "promises.md").write_text(text, encoding="utf-8")
    kept = all(row.kept in (None, True) for row in rows)
    print("Every guarantee holds." if kept else "A guarantee is VIOLATED.")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
