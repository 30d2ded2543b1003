"""Speed of the recurrent network against the transformer, in the same run.

    python -m benchmarks.speed.networks            # ten minutes on two cores
    python -m benchmarks.speed.networks --quick    # few rounds; writes no file

Both networks have the sizes of their presets (`tabletop`, `fast`) with random weights, since speed
does not depend on them. They alternate in one process, on one thread, in CPU seconds; a ratio is
the median over rounds of the ratio within a round. The last rows are wall time on all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.markdown import markdown_table, results_page
from benchmarks.provenance import RESULTS, git_commit, hardware, one_thread, today, versions
from worldmodel.imagination import Imagination, Network, imagine
from worldmodel.networks.confidence_heads import EPSILONS, Head, build_head
from worldmodel.networks.dynamics import Dynamics, DynamicsConfig
from worldmodel.networks.recurrent import RecurrentConfig, RecurrentDynamics
from worldmodel.networks.rollout import RolloutInputs
from worldmodel.networks.sampler import Sampling
from worldmodel.training.presets import FAST, TABLETOP

START = 1
BATCHES = (1, 64)
SEARCH = 1024, 15
"""Rollouts and frames of one search for a plan."""
LATE, EARLY = 500, 20
"""Frames of one rollout whose costs are compared."""


def networks() -> dict[str, tuple[Network, Head]]:
    """Both networks and their confidence heads."""
    torch.manual_seed(0)
    assert isinstance(TABLETOP.dynamics, DynamicsConfig)
    assert isinstance(FAST.dynamics, RecurrentConfig)
    built: dict[str, tuple[Network, Head]] = {}
    for name, preset in (("transformer", TABLETOP), ("recurrent", FAST)):
        config = preset.dynamics
        network: Network
        if isinstance(config, RecurrentConfig):
            network = RecurrentDynamics(config)
        else:
            network = Dynamics(config)
        head = build_head(config.dim, config.channels * config.patch**2, preset.confidence)
        built[name] = network.eval(), head.eval()
    return built


def inputs(network: Network, *, batch: int, frames: int) -> RolloutInputs:
    """Random rollouts of `frames` frames."""
    c = network.config
    generator = torch.Generator().manual_seed(0)
    rows = START + frames - 1
    return RolloutInputs(
        context=torch.randn((batch, START, 1, c.channels, c.height, c.width), generator=generator),
        actions=0.1 * torch.randn((batch, rows, c.action_dim), generator=generator),
        action_valid=torch.ones((batch, rows), dtype=torch.bool),
        seeds=range(batch),
    )


def roll(network: Network, head: Head | None, given: RolloutInputs) -> None:
    """Imagine, with confidence if there is a head."""
    epsilon = torch.tensor(EPSILONS if head else ())
    imagine(network, head, given, sampling=Sampling(), epsilon=epsilon)


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def ratio_row(name: str, one: list[float], other: list[float], frames: int) -> dict[str, Any]:
    """Medians of both, and of their ratio."""
    return {
        "what": name,
        "transformer_ms": 1000 * float(np.median(one)) / frames,
        "recurrent_ms": 1000 * float(np.median(other)) / frames,
        "ratio": float(np.median(np.array(one) / np.array(other))),
    }


def measure(rounds: int) -> list[dict[str, Any]]:
    """All comparisons on one thread."""
    built, rows = networks(), []
    for batch in BATCHES:
        frames = 40 if batch == 1 else 15
        given = {name: inputs(net, batch=batch, frames=frames) for name, (net, _) in built.items()}
        for with_head in (False, True):
            times: dict[str, list[float]] = {name: [] for name in built}
            for turn in range(rounds + 1):
                for name, (network, head) in built.items():
                    used = head if with_head else None
                    spent = cpu_s(partial(roll, network, used, given[name]))
                    if turn:  # the first round warms up
                        times[name].append(spent)
            label = f"batch {batch}{', with confidence' if with_head else ''}"
            one, other = times["transformer"], times["recurrent"]
            rows.append(ratio_row(label, one, other, frames * batch))
    return rows


def growth(rounds: int) -> float:
    """Cost of frame `LATE` of a rollout of the recurrent network relative to frame `EARLY`."""
    network, _ = networks()["recurrent"]
    given = inputs(network, batch=64, frames=LATE)
    ratios = []
    for _ in range(rounds):
        rollout, spent = Imagination(network, given, sampling=Sampling()), []
        for row in range(START - 1, LATE):
            rows = given.actions[:, [row]], given.action_valid[:, [row]]
            spent.append(cpu_s(partial(rollout.step, *rows)))
        ratios.append(np.median(spent[-10:]) / np.median(spent[EARLY - 5 : EARLY + 5]))
    return float(np.median(ratios))


def search_s(rounds: int, *, precision: str) -> float:
    """Wall seconds of a search on all cores, the best of `rounds`."""
    network, _ = networks()["recurrent"]
    batch, frames = SEARCH
    given = inputs(network, batch=batch, frames=frames)
    spent = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            roll(network, None, given)
        spent.append(time.perf_counter() - started)
    return min(spent)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="3 rounds; writes no file")
    arguments = parser.parse_args()
    commit, rounds = git_commit(), 3 if arguments.quick else arguments.rounds
    with one_thread():
        rows, late = measure(rounds), growth(min(rounds, 3))
    torch.set_num_threads(os.cpu_count() or 1)
    searches = {p: search_s(min(rounds, 5), precision=p) for p in ("float32", "bf16")}
    facts = {
        "hardware": hardware(),
        "load": f"load {os.getloadavg()[0]:.1f}",
        "versions": versions("torch"),
        "commit": f"commit {commit}",
        "date": today(),
    }
    batch, frames = SEARCH
    table = markdown_table(
        ("what", "transformer, CPU ms a frame", "recurrent", "ratio"),
        [
            (
                r["what"],
                f"{r['transformer_ms']:.2f}",
                f"{r['recurrent_ms']:.3f}",
                f"{r['ratio']:.1f}",
            )
            for r in rows
        ],
    )
    other = markdown_table(
        ("what", "value"),
        [
            (f"frame {LATE} over frame {EARLY}, recurrent", f"{late:.2f}"),
            *(
                (f"{batch} rollouts x {frames} frames, all cores, {name}", f"{value:.2f} s")
                for name, value in searches.items()
            ),
        ],
    )
    module = "benchmarks.speed.networks"
    page = results_page("Speed of the two networks", module, facts, [table, other])
    print(page)
    if not arguments.quick:
        (RESULTS / "networks.md").write_text(page, encoding="utf-8")
        stored = {**facts, "rows": rows, "late_over_early": late, "search_s": searches}
        text = json.dumps(stored, indent=1) + "\n"
        (RESULTS / "networks.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
