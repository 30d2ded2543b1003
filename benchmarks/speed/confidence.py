"""What confidence adds to the time of a rollout, against an ensemble of three models.

    python -m benchmarks.speed.confidence            # some minutes on one core
    python -m benchmarks.speed.confidence --quick    # few rounds, under a minute

The shipped model rolls out without confidence, with the confidence of ten error levels, and three
times over, as an ensemble of three of its size would. What its head adds is also timed alone, on
the features of the same rollout, which a busy machine disturbs less; so are heads of other kinds,
of the same width and with random weights. All take turns in one process, on one thread, in CPU
seconds; a cost is the median over rounds of its ratio to the bare rollout of the same round.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import RESULTS
from worldmodel.imagination import imagine, state_confidence
from worldmodel.model import WorldModel
from worldmodel.networks.confidence_heads import EPSILONS, ConfidenceConfig, Head, build_head
from worldmodel.networks.rollout import RolloutInputs

START = 4
"""Real frames before the first imagined one."""
FRAMES = 16
"""Imagined frames of a rollout."""
MEMBERS = 3
"""Models of the ensemble."""
OTHERS = (
    ConfidenceConfig(familiarity=True),
    ConfidenceConfig(head="multi_class", rule="logarithmic"),
    ConfidenceConfig(head="fixed_scale", rule="brier"),
    ConfidenceConfig(head="continuous_scale", rule="brier"),
)


@dataclass(frozen=True, kw_only=True)
class HeadCostRow:
    """What was measured at one batch size."""

    batch: int
    rounds: int
    frame_ms: float
    """CPU milliseconds of a frame of the batch without confidence, the median over rounds."""
    added: dict[str, list[float]]
    """What is added -> lower quartile, median and upper quartile of its time over that of the bare
    rollout."""


def random_inputs(model: WorldModel, batch: int) -> RolloutInputs:
    """Random context and small actions; the time of a rollout does not depend on them."""
    c = model.config.dynamics
    generator = torch.Generator().manual_seed(0)
    shape = (batch, START, c.views, c.channels, c.height, c.width)
    rows = START + FRAMES - 1
    return RolloutInputs(
        context=torch.randn(shape, generator=generator),
        actions=0.01 * torch.randn(batch, rows, c.action_dim, generator=generator),
        action_valid=torch.ones(batch, rows, dtype=torch.bool),
        seeds=range(batch),
    )


def fresh_head(model: WorldModel, config: ConfidenceConfig) -> Head:
    """A head of another kind for the same model, as wide as its own."""
    c = model.config.dynamics
    torch.manual_seed(0)
    wide = replace(config, hidden=model.config.confidence.hidden)
    head = build_head(c.dim, c.channels * c.patch**2, wide).eval()
    if config.familiarity:
        head.fit_familiarity(torch.randn(8, c.tokens, c.dim))
    return head


def seconds(run: Callable[[], Any], repeats: int = 1) -> float:
    """CPU seconds of one call, the median over some."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return float(np.median(taken))


def one_round(model: WorldModel, inputs: RolloutInputs, heads: dict[str, Head]) -> dict[str, float]:
    """CPU seconds of everything, once; "bare" is the rollout without confidence."""
    levels, network = torch.tensor(EPSILONS), model.dynamics
    roll = partial(imagine, network, inputs=inputs, sampling=model.sampling)
    bare = partial(roll, None, epsilon=levels[:0])
    whole = partial(roll, model.confidence, epsilon=levels)
    features = bare().features
    # In this order, a machine that gets slower or faster meanwhile favours neither.
    order = [seconds(run) for run in (bare, whole, whole, bare)]
    found = {"bare": (order[0] + order[3]) / 2}
    for name, head in heads.items():
        found[name] = seconds(partial(state_confidence, network, head, features, levels), 3)
    found["whole rollout, shipped"] = (order[1] + order[2]) / 2 - found["bare"]
    found[f"ensemble of {MEMBERS}"] = sum(seconds(bare) for _ in range(MEMBERS)) - found["bare"]
    return found


def measure(model: WorldModel, batch: int, rounds: int) -> HeadCostRow:
    """Time everything in turns; one round to warm up."""
    assert model.confidence is not None, "the shipped model has a head of ours"
    heads = {f"{model.config.confidence.head} (shipped)": model.confidence}
    for config in OTHERS:
        name = config.head + (", familiarity" if config.familiarity else "")
        heads[name] = fresh_head(model, config)
    inputs = random_inputs(model, batch)
    found = [one_round(model, inputs, heads) for _ in range(rounds + 1)][1:]
    bare = np.array([times.pop("bare") for times in found])
    added = {name: np.array([times[name] for times in found]) / bare for name in found[0]}
    return HeadCostRow(
        batch=batch,
        rounds=rounds,
        frame_ms=1e3 * float(np.median(bare)) / FRAMES,
        added={name: np.quantile(r, (0.25, 0.5, 0.75)).tolist() for name, r in added.items()},
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(rows: list[HeadCostRow]) -> str:
    """What each adds, as Markdown."""
    lines = [
        "| batch | frame without, ms | " + " | ".join(rows[0].added) + " |",
        "|" + "---|" * (2 + len(rows[0].added)),
    ]
    for r in rows:
        cells = [f"{m:+.1%} ({a:+.1%} to {b:+.1%})" for a, m, b in r.added.values()]
        lines.append(f"| {r.batch} | {r.frame_ms:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hardware() -> dict[str, Any]:
    """Machine, versions and settings."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.processor(), "cores": len(names),
        "python": platform.python_version(), "torch": torch.__version__, "threads": 1,
        "model": "tabletop", "context": START, "frames": FRAMES, "epsilons": list(EPSILONS),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written")
    options = parser.parse_args()
    with one_thread(), torch.no_grad():
        about, model = hardware(), WorldModel.load("tabletop")
        print(json.dumps(about, indent=2), flush=True)
        rounds = {1: 3, 8: 1} if options.quick else {1: 30, 8: 15}
        rows = []
        for batch, count in rounds.items():
            rows.append(measure(model, batch, count))
            print(table(rows[-1:]), flush=True)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        made = {"about": about, "rows": [asdict(row) for row in rows]}
        (RESULTS / "confidence_cost.json").write_text(json.dumps(made, indent=2) + "\n")
        (RESULTS / "confidence_cost.md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
