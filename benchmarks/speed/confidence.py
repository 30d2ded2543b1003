"""Time of the confidence head relative to a rollout, compared with an ensemble of three models.

    python -m benchmarks.speed.confidence            # minutes on one core
    python -m benchmarks.speed.confidence --quick    # few rounds, under a minute

Times the shipped model without confidence, with the confidence of ten error thresholds, and three
times over like an ensemble of three. The head is also timed alone on the features of the same
rollout, which is less sensitive to other load; so are other heads of the same width with random
weights. All alternate in one process, on one thread, in CPU seconds. A cost is the median over
rounds of its ratio to the bare rollout of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import (
    RESULTS,
    git_commit,
    hardware,
    one_thread,
    today,
    versions,
)
from worldmodel.imagination import imagine, state_confidence
from worldmodel.model import WorldModel
from worldmodel.networks.confidence_heads import EPSILONS, ConfidenceConfig, Head, build_head
from worldmodel.networks.rollout import RolloutInputs

START = 4
"""Real frames before the first imagined frame."""
FRAMES = 16
"""Imagined frames per rollout."""
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
    """Results of one batch size."""

    batch: int
    rounds: int
    frame_ms: float
    """CPU milliseconds per frame of the batch without confidence, median over rounds."""
    added: dict[str, list[float]]
    """Addition -> lower quartile, median and upper quartile of its time relative to the bare
    rollout."""


def random_inputs(model: WorldModel, batch: int) -> RolloutInputs:
    """Random context and small actions; they do not affect the time of a rollout."""
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
    """Untrained head of another kind, as wide as the model's own."""
    c = model.config.dynamics
    torch.manual_seed(0)
    wide = replace(config, hidden=model.config.confidence.hidden)
    head = build_head(c.dim, c.channels * c.patch**2, wide).eval()
    if config.familiarity:
        head.fit_familiarity(torch.randn(8, c.tokens, c.dim))
    return head


def seconds(run: Callable[[], Any], repeats: int = 1) -> float:
    """CPU seconds of one call, median over repeats."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return float(np.median(times))


def one_round(model: WorldModel, inputs: RolloutInputs, heads: dict[str, Head]) -> dict[str, float]:
    """CPU seconds of every variant, once; "bare" is the rollout without confidence."""
    levels, network = torch.tensor(EPSILONS), model.dynamics
    roll = partial(imagine, network, inputs=inputs, sampling=model.sampling)
    bare = partial(roll, None, epsilon=levels[:0])
    with_head = partial(roll, model.confidence, epsilon=levels)
    features = bare().features
    # Symmetric order: a drift of the machine's speed favours neither.
    order = [seconds(run) for run in (bare, with_head, with_head, bare)]
    times = {"bare": (order[0] + order[3]) / 2}
    for name, head in heads.items():
        times[name] = seconds(partial(state_confidence, network, head, features, levels), 3)
    times["whole rollout, shipped"] = (order[1] + order[2]) / 2 - times["bare"]
    times[f"ensemble of {MEMBERS}"] = sum(seconds(bare) for _ in range(MEMBERS)) - times["bare"]
    return times


def measure(model: WorldModel, batch: int, rounds: int) -> HeadCostRow:
    """Time all variants in turns, after one warm-up round."""
    assert model.confidence is not None, "the shipped model has a confidence head"
    heads = {f"{model.config.confidence.head} (shipped)": model.confidence}
    for config in OTHERS:
        name = config.head + (", familiarity" if config.familiarity else "")
        heads[name] = fresh_head(model, config)
    inputs = random_inputs(model, batch)
    by_round = [one_round(model, inputs, heads) for _ in range(rounds + 1)][1:]
    bare = np.array([times.pop("bare") for times in by_round])
    added = {name: np.array([times[name] for times in by_round]) / bare for name in by_round[0]}
    return HeadCostRow(
        batch=batch,
        rounds=rounds,
        frame_ms=1e3 * float(np.median(bare)) / FRAMES,
        added={name: np.quantile(r, (0.25, 0.5, 0.75)).tolist() for name, r in added.items()},
    )


def table(rows: list[HeadCostRow]) -> str:
    """Added time as Markdown."""
    lines = [
        "| batch | frame without, ms | " + " | ".join(rows[0].added) + " |",
        "|" + "---|" * (2 + len(rows[0].added)),
    ]
    for r in rows:
        cells = [f"{m:+.1%} ({a:+.1%} to {b:+.1%})" for a, m, b in r.added.values()]
        lines.append(f"| {r.batch} | {r.frame_ms:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def settings() -> dict[str, Any]:
    """Hardware, versions and settings."""
    return {
        "hardware": hardware(), "cores": os.cpu_count(),
        "versions": versions("torch", "numpy"), "commit": git_commit(), "date": today(),
        "model": "tabletop", "context": START, "frames": FRAMES, "epsilons": list(EPSILONS),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds; writes no file")
    options = parser.parse_args()
    with one_thread(), torch.no_grad():
        about, model = settings(), WorldModel.load("tabletop")
        print(json.dumps(about, indent=2), flush=True)
        rounds = {1: 3, 8: 1} if options.quick else {1: 30, 8: 15}
        rows = []
        for batch, count in rounds.items():
            rows.append(measure(model, batch, count))
            print(table(rows[-1:]), flush=True)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        content = {"about": about, "rows": [asdict(row) for row in rows]}
        (RESULTS / "confidence_cost.json").write_text(
            json.dumps(content, indent=2) + "\n", encoding="utf-8"
        )
        (RESULTS / "confidence_cost.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
