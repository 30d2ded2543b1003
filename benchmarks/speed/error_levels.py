"""Speed of imagination without a confidence head, and with ten error levels.

    python -m benchmarks.speed.error_levels    # two minutes on one core

C3's evaluation runs one rollout per error level; here, one rollout states all. The published loop's
time for ten levels is therefore ten times its time for one. Random weights, ten frames of ten
steps from one real frame, CPU seconds of one thread, minimum over rounds in turns.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.provenance import RESULTS, git_commit, hardware, one_thread, today, versions
from benchmarks.speed.imagination import (
    SIZES,
    WINDOW,
    ImaginationSize,
    channels_third,
    random_inputs,
)
from benchmarks.speed.plain_reference import PlainConfig, PlainDiT, plain_rollout
from worldmodel.c3_import import load_c3
from worldmodel.imagination import imagine_published
from worldmodel.networks.c3 import C3Network
from worldmodel.networks.confidence_heads import EPSILONS

ROUNDS = {"8x8": 3, "16x16": 1}
"""Size of the latents -> rounds."""
LEVELS = {"no head (WorldGym)": (), "1 error level": (0.5,), "10 error levels": EPSILONS}
"""Row -> error levels of the confidence."""


@dataclass(frozen=True, kw_only=True)
class ErrorLevelsRow:
    """Times of one rollout, or of ten for ten error levels of the published loop."""

    size: str
    kind: str
    rounds: int
    published_s: float
    ours_s: float
    error: float
    """Maximum difference between latents of both."""


def networks(size: ImaginationSize, *, has_head: bool) -> tuple[PlainDiT, C3Network]:
    """Both networks with the same random weights."""
    plain = PlainDiT(
        PlainConfig(
            channels=4,
            patch=size.patch,
            dim=size.dim,
            heads=size.heads,
            layers=size.layers,
            confidence_layers=int(has_head),
        )
    ).randomize(0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(plain.state_dict(), Path(folder) / "weights.pt")
        network = load_c3(
            Path(folder) / "weights.pt", heads=size.heads, window=WINDOW, height=size.side,
            width=size.side, spatial_rotary="standard", temporal_rotary="standard",
            objective="ddpm",
        )  # fmt: skip
    return plain, network


def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """CPU seconds of a call, and its result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def measure_levels(size: ImaginationSize, kind: str, rounds: int) -> ErrorLevelsRow:
    """Measure one row."""
    levels = LEVELS[kind]
    plain, network = networks(size, has_head=bool(levels))
    context, actions, noise = random_inputs(size, 1, WINDOW)
    shifted = channels_third(context), actions
    theirs, ours = [], []
    for _ in range(rounds):
        seconds, expected = timed(
            lambda: plain_rollout(plain, context, actions, noise, window=WINDOW)[0]
        )
        theirs.append(seconds * max(1, len(levels)))
        seconds, found = timed(
            lambda: (
                imagine_published(
                    network, *shifted, noise=channels_third(noise), epsilon=levels
                ).latents
            )
        )
        ours.append(seconds)
    return ErrorLevelsRow(
        size=size.name, kind=kind, rounds=rounds, published_s=min(theirs), ours_s=min(ours),
        error=float((found - channels_third(expected)).abs().max()),
    )  # fmt: skip


def table(rows: list[ErrorLevelsRow]) -> str:
    """Times and speed-ups as Markdown."""
    lines = [
        "| latents | confidence | rounds | published, s | here, s | speed-up | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.size} | {row.kind} | {row.rounds} | {row.published_s:.2f} | {row.ours_s:.2f} "
        f"| x{row.published_s / row.ours_s:.1f} | {row.error:.0e} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the table."""
    with one_thread(), torch.no_grad():
        about = {
            "hardware": hardware(), "versions": versions("torch"), "commit": git_commit(),
            "date": today(), "command": "python -m benchmarks.speed.error_levels",
        }  # fmt: skip
        sizes = [size for size in SIZES if size.name in ROUNDS]
        rows = [measure_levels(s, kind, ROUNDS[s.name]) for s in sizes for kind in LEVELS]
    print(table(rows))
    content = {"about": about, "rows": [asdict(row) for row in rows]}
    text = json.dumps(content, indent=2) + "\n"
    (RESULTS / "error_levels.json").write_text(text, encoding="utf-8")
    note = f"`{about['command']}`, {about['hardware']}, {about['date']}"
    (RESULTS / "error_levels.md").write_text(f"{table(rows)}\n\n{note}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
