"""Speed of imagination: the cached rollout against the published loop of the same network.

    python -m benchmarks.speed.imagination            # half an hour on one core
    python -m benchmarks.speed.imagination --quick    # two minutes, smallest sizes; writes no file

Both sides run the same random weights in the same process, in turns, on one thread, timed in CPU
seconds to limit the effect of other load. The cost of the published loop depends only on the number
of frames in its window. For the larger sizes it is timed at windows of 2, 6 and 10 frames and
interpolated; later frames cost the same as the tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.provenance import (
    RESULTS,
    cpu_info,
    git_commit,
    one_thread,
    processor,
    today,
    versions,
)
from benchmarks.speed.plain_reference import PlainConfig, PlainDiT, plain_rollout
from worldmodel import WorldModel, imagination
from worldmodel.c3_import import load_c3
from worldmodel.imagination import frames
from worldmodel.networks import attention, c3_rollout
from worldmodel.networks.c3 import C3Network
from worldmodel.networks.rollout import RolloutInputs
from worldmodel.networks.sampler import Sampling

WINDOW = 10
EPSILON = torch.tensor([0.5])


@dataclass(frozen=True, kw_only=True)
class ImaginationSize:
    """Size of a network and its latents."""

    name: str
    side: int
    """Latent height and width."""
    patch: int
    dim: int
    layers: int
    heads: int
    sampled: bool = False
    """Whether to time the published loop at three windows only."""

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2


SIZES = (
    ImaginationSize(name="8x8, patch 2", side=8, patch=2, dim=128, layers=4, heads=4),
    ImaginationSize(name="8x8", side=8, patch=1, dim=128, layers=4, heads=4),
    ImaginationSize(name="16x16", side=16, patch=2, dim=384, layers=6, heads=6, sampled=True),
    ImaginationSize(name="32x32", side=32, patch=2, dim=256, layers=4, heads=4, sampled=True),
)


@dataclass(kw_only=True)
class ImaginationRow:
    """Results of one size and batch, in CPU seconds of one thread."""

    size: str
    tokens: int
    dim: int
    batch: int
    rounds: int
    published_s: dict[int, float] = field(default_factory=dict)
    """Total frames -> time of the published loop."""
    exact_s: dict[int, float] = field(default_factory=dict)
    stale_s: float = 0.0
    """Time of 20 frames with a stale key/value cache after the window slides."""
    bf16_s: dict[int, float] = field(default_factory=dict)
    matmul_share: float = 0.0
    """Achieved share of the machine's peak for matrix products."""
    error: float = 0.0
    """Maximum difference between latents of the exact rollout and the published loop."""
    without: dict[str, float] = field(default_factory=dict)
    """Technique -> time of 10 frames without it, relative to all techniques."""


def build(size: ImaginationSize) -> tuple[PlainDiT, C3Network]:
    """Build both networks with the same random weights; ours is imported from a file."""
    config = PlainConfig(
        channels=4, patch=size.patch, dim=size.dim, heads=size.heads, layers=size.layers
    )
    plain = PlainDiT(config).randomize(0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(plain.state_dict(), file)
        network = load_c3(file, heads=size.heads, window=WINDOW, height=size.side, width=size.side)
        return plain, network


def random_inputs(size: ImaginationSize, batch: int, total: int) -> tuple[torch.Tensor, ...]:
    """Context of one frame, actions and noise, in the layout of the published loop."""
    generator = torch.Generator().manual_seed(0)
    shape = (size.side, size.side, 4)
    actions = torch.randn(batch, total, 7, generator=generator)
    actions[:, 0] = 0
    context = torch.randn(batch, 1, *shape, generator=generator)
    return context, actions, torch.randn(batch, total - 1, *shape, generator=generator)


def channels_third(latents: torch.Tensor) -> torch.Tensor:
    """Convert [batch time h w channel] to [batch time view channel h w]."""
    return latents.permute(0, 1, 4, 2, 3)[:, :, None]


def ours(
    network: C3Network, size: ImaginationSize, batch: int, total: int, *, window: str = "exact"
) -> tuple[np.ndarray, torch.Tensor]:
    """Run our rollout; returns CPU seconds per frame and latents."""
    context, actions, noise = random_inputs(size, batch, total)
    inputs = RolloutInputs(
        context=channels_third(context), actions=actions[:, 1:], noise=channels_third(noise),
        action_valid=torch.ones(batch, total - 1, dtype=torch.bool), seeds=range(batch),
    )  # fmt: skip
    sampling = Sampling(num_steps=10, method="ddim", window=window)
    seconds, latents, start = [], [], time.process_time()
    for frame in frames(network, inputs, sampling=sampling, epsilon=EPSILON):
        now = time.process_time()
        seconds.append(now - start)
        latents.append(frame.latent)
        start = now
    return np.array(seconds), torch.stack(latents, 1)


def published(network: PlainDiT, size: ImaginationSize, batch: int) -> np.ndarray:
    """CPU seconds per frame of the published loop, for windows of 2 to 10 frames."""
    windows = (2, 6, WINDOW) if size.sampled else range(2, WINDOW + 1)
    seconds = []
    for in_window in windows:
        context, actions, noise = random_inputs(size, batch, in_window)
        past = torch.cat((context, noise), dim=1)[:, : in_window - 1]
        start = time.process_time()
        plain_rollout(network, past, actions, noise[:, :1], window=WINDOW)
        seconds.append(time.process_time() - start)
    return np.interp(np.arange(2, WINDOW + 1), list(windows), seconds)


def without_cache() -> Any:
    """Patch: recompute the context at every sampler step."""
    denoise = c3_rollout.Step.denoise

    def recompute(step: Any, noisy: torch.Tensor, level: float) -> torch.Tensor:
        step.rollout.waiting = None
        step.rollout.restart()
        return denoise(step, noisy, level)

    return patch.object(c3_rollout.Step, "denoise", recompute)


def with_confidence_at_every_step() -> Any:
    """Patch: run the confidence head at every sampler step."""
    denoise = c3_rollout.Step.denoise

    def both(step: Any, noisy: torch.Tensor, level: float) -> torch.Tensor:
        clean = denoise(step, noisy, level)
        step.confidence()
        return clean

    return patch.object(c3_rollout.Step, "denoise", both)


def slow_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU with PyTorch's kernel."""
    return F.gelu(x, approximate="tanh")


WITHOUT: dict[str, Callable[[], Any]] = {
    "key/value cache": without_cache,
    "confidence once per frame": with_confidence_at_every_step,
    "faster GELU": lambda: patch.object(attention, "gelu_in_place", slow_gelu),
    "chunked MLP": lambda: patch.object(attention, "ROWS", 1 << 30),
    "laid-out weights": lambda: patch.object(imagination, "lay_out_for_inference", lambda _: None),
}
"""Technique -> patch that disables it."""


def ablate(size: ImaginationSize, batch: int, rounds: int) -> dict[str, float]:
    """Time of 10 frames without each technique, relative to all techniques."""
    _, network = build(size)
    times: dict[str, list[float]] = {name: [] for name in ("all", *WITHOUT)}
    for _ in range(rounds):
        for name in times:
            fresh = build(size)[1] if name == "laid-out weights" else network
            with ExitStack() as stack:
                if name in WITHOUT:
                    stack.enter_context(WITHOUT[name]())
                times[name].append(ours(fresh, size, batch, WINDOW)[0].sum())
    return {name: min(times[name]) / min(times["all"]) for name in WITHOUT}


def matmul_peak(size: int = 1024, repeats: int = 10) -> float:
    """Operations per second of a large float32 matrix product, best of `repeats`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds)


def measure(size: ImaginationSize, batch: int, rounds: int) -> ImaginationRow:
    """Measure one row: minimum per frame over `rounds` interleaved rounds."""
    plain, network = build(size)
    half = build(size)[1].to(torch.bfloat16)
    row = ImaginationRow(
        size=size.name, tokens=size.tokens, dim=size.dim, batch=batch, rounds=rounds
    )
    context, actions, noise = random_inputs(size, batch, 4)
    truth, _ = plain_rollout(plain, context, actions, noise, window=WINDOW)
    row.error = float((ours(network, size, batch, 4)[1] - channels_third(truth)).abs().max())
    kinds: dict[str, list[np.ndarray]] = {"published": [], "exact": [], "stale": [], "bf16": []}
    for _ in range(rounds):
        kinds["published"].append(published(plain, size, batch))
        kinds["exact"].append(ours(network, size, batch, 20)[0])
        kinds["stale"].append(ours(network, size, batch, 20, window="stale")[0])
        kinds["bf16"].append(ours(half, size, batch, 20)[0])
    best = {name: np.min(times, axis=0) for name, times in kinds.items()}
    row.published_s = {10: best["published"].sum()}
    row.published_s[20] = row.published_s[10] + 10 * best["published"][-1]
    for target, name in ((row.exact_s, "exact"), (row.bf16_s, "bf16")):
        target |= {10: best[name][:9].sum(), 20: best[name].sum()}
    row.stale_s = best["stale"].sum()
    with FlopCounterMode(display=False) as counter:
        ours(network, size, batch, WINDOW)
    row.matmul_share = counter.get_total_flops() / row.exact_s[10] / matmul_peak()
    return row


def flatness(name: str, begin: Callable[[], Iterator[Any]], num_frames: int) -> dict[str, Any]:
    """Time per frame near frame 20 and near the end of a rollout, and memory growth.

    The two alternate frame by frame, so other load slows both.
    """
    early, late = begin(), begin()
    for _ in range(10):
        next(early)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(num_frames - 30):
        next(late)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds: dict[str, list[float]] = {"early": [], "late": []}
    for _ in range(20):
        for which, rollout in (("early", early), ("late", late)):
            start = time.process_time()
            next(rollout)
            seconds[which].append(time.process_time() - start)
    ms = {which: 1e3 * float(np.median(times)) for which, times in seconds.items()}
    return {
        "rollout": name, "ms_at_frame_20": ms["early"],
        f"ms_at_frame_{num_frames - 20}": ms["late"],
        "ratio": ms["late"] / ms["early"], "peak_memory_growth_mb": growth,
    }  # fmt: skip


def long_rollouts(num_frames: int = 520) -> list[dict[str, Any]]:
    """Measure the shipped model and an imported network far beyond their windows."""
    model = WorldModel.load("tabletop")
    c = model.config.dynamics
    shape = (1, 4, c.views, c.channels, c.height, c.width)
    generator = torch.Generator().manual_seed(0)
    inputs = RolloutInputs(
        context=torch.randn(shape, generator=generator),
        actions=0.01 * torch.randn(1, num_frames + 3, c.action_dim, generator=generator),
        action_valid=torch.ones(1, num_frames + 3, dtype=torch.bool), seeds=[0],
    )  # fmt: skip
    ours = partial(frames, model.dynamics, inputs, sampling=model.sampling)
    results = [flatness("tabletop", ours, num_frames)]
    network = build(SIZES[0])[1]
    context, actions, _ = random_inputs(SIZES[0], 1, num_frames + 1)
    inputs = RolloutInputs(
        context=channels_third(context), actions=actions[:, 1:], seeds=[0],
        action_valid=torch.ones(1, num_frames, dtype=torch.bool),
    )  # fmt: skip
    for window in ("exact", "stale"):
        sampling = Sampling(num_steps=10, method="ddim", window=window)
        imported = partial(frames, network, inputs, sampling=sampling, epsilon=EPSILON)
        results.append(flatness(f"imported, {window}", imported, num_frames))
    return results


def table(rows: list[ImaginationRow]) -> str:
    """Speed-ups as Markdown."""
    lines = [
        "| latents | tokens | width | batch | published, s per frame | exact, T=10 | exact, T=20 |"
        " stale, T=20 | bf16, T=10 | of matmul peak | difference |",
        "|" + "---|" * 11,
    ]
    for r in rows:
        lines.append(
            f"| {r.size} | {r.tokens} | {r.dim} | {r.batch} | {r.published_s[10] / 9:.3f} "
            f"| x{r.published_s[10] / r.exact_s[10]:.1f} "
            f"| x{r.published_s[20] / r.exact_s[20]:.1f} "
            f"| x{r.published_s[20] / r.stale_s:.1f} | x{r.published_s[10] / r.bf16_s[10]:.1f} "
            f"| {r.matmul_share:.0%} | {r.error:.0e} |"
        )
    lines += ["", "| latents | " + " | ".join(WITHOUT) + " |", "|" + "---|" * (1 + len(WITHOUT))]
    for r in rows:
        if r.without:
            lines.append(
                f"| {r.size} | " + " | ".join(f"x{v:.2f}" for v in r.without.values()) + " |"
            )
    return "\n".join(lines)


def settings() -> dict[str, Any]:
    """Hardware, versions and settings."""
    flags = cpu_info()
    return {
        "cpu": processor(), "cores": os.cpu_count(),
        "amx": "amx_bf16" in flags, "avx512_bf16": "avx512_bf16" in flags,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only",
        "versions": versions("torch", "numpy"), "commit": git_commit(), "date": today(),
        "threads": 1,
        "steps": 10, "window": WINDOW, "matmul_peak_gflops": matmul_peak() / 1e9,
    }  # fmt: skip


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smallest sizes only; writes no file")
    options = parser.parse_args()
    with one_thread(), torch.no_grad():
        about = settings()
        print(json.dumps(about, indent=2))
        rows = []
        for size in SIZES[: 2 if options.quick else None]:
            for batch in (1, 8):
                rounds = 5 if size.dim == 128 and batch == 1 else 2 if size.dim == 128 else 1
                rows.append(measure(size, batch, rounds))
                if batch == 1:
                    rows[-1].without = ablate(size, batch, rounds)
                print(table(rows[-1:]), flush=True)
        long = long_rollouts(100 if options.quick else 520)
    print(table(rows))
    print(json.dumps(long, indent=2))
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        content = {"about": about, "rows": [asdict(row) for row in rows], "long": long}
        (RESULTS / "imagination.json").write_text(
            json.dumps(content, indent=2) + "\n", encoding="utf-8"
        )
        (RESULTS / "imagination.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
