"""Measure the quality of imagined frames by sampler and number of steps.

    OMP_NUM_THREADS=1 python -m benchmarks.sampler_quality

Simulates held-out tabletop episodes, imagines them once per sampler and seed, and compares the
result with the simulator's frames. Takes twenty minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.intervals import mean_and_interval
from benchmarks.provenance import RESULTS, git_commit, hardware, today, versions
from worldmodel.envs.collect import Collection
from worldmodel.episodes.clips import LatentBatch, collate_latents
from worldmodel.episodes.episode import Episode
from worldmodel.evaluation.simulate import simulate
from worldmodel.model import WorldModel
from worldmodel.networks.sampler import Sampling
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts
from worldmodel.rollouts.quality import psnr_per_frame
from worldmodel.rollouts.reliability import calibration_table

HORIZONS = (1, 5, 10, 16)
START = 4
"""Real frames before the first imagined frame."""
KINDS: dict[str, dict[str, Any]] = {
    "euler": {},
    "heun": {"method": "heun"},
    "eta 0.5": {"eta": 0.5},
    "eta 1": {"eta": 1.0},
}
STEPS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class SamplerRow:
    """Results of one sampler: means over episodes and seeds, 95% bootstrap intervals."""

    sampler: str
    num_steps: int
    psnr_db: dict[int, tuple[float, float, float]]
    """Horizon -> mean and interval."""
    gain_db: dict[int, tuple[float, float, float]]
    """Horizon -> mean and interval of the gain over copying the last real frame."""
    spread: dict[int, float]
    """Horizon -> root mean variance between seeds, in latent standard deviations."""
    error: dict[int, float]
    """Horizon -> root mean square error of the mean over seeds, in latent standard deviations."""
    ece: dict[int, float]
    """Horizon -> pooled expected calibration error without recalibration, of the first seed."""
    cpu_ms: float
    """CPU time per frame and rollout, with confidence and without decoding."""


def settings() -> list[tuple[str, Sampling]]:
    """All samplers; with one step they are identical, so that one appears once."""
    rows = [("any", Sampling())]
    for name, options in KINDS.items():
        rows += [(name, Sampling(num_steps=n, **options)) for n in STEPS[1:]]
    return rows


class SamplerExperiment:
    """Episodes and the PSNR of the baseline: copying the last real frame."""

    def __init__(self, model: WorldModel, episodes: Sequence[Episode]) -> None:
        self.model, self.episodes = model, episodes
        longest = START + max(HORIZONS)
        self.clips: LatentBatch = collate_latents([e.batch.cut(longest) for e in episodes])
        self.real = {h: self.pictures(START - 1 + h) for h in (0, *HORIZONS)}
        self.copied = {h: psnr_per_frame(self.real[0], self.real[h]) for h in HORIZONS}

    def pictures(self, frame: int) -> torch.Tensor:
        """Real frames of all episodes at index `frame`."""
        return torch.stack([episode.frames[frame, 0] for episode in self.episodes])

    def imagine(self, sampling: Sampling, seed: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Roll out every episode once; returns latents, confidence and CPU seconds."""
        clips, count = self.clips, len(self.episodes)
        started = time.process_time()
        imagined = self.model.imagine(
            clips.latents[:, :START].float(),
            clips.actions[:, :-1],
            action_valid=clips.action_valid[:, :-1],
            seeds=range(seed * count, (seed + 1) * count),
            epsilon=EPSILONS,
            sampling=sampling,
        )
        return imagined.latents, imagined.confidence, time.process_time() - started

    def ece(self, latents: torch.Tensor, confidence: torch.Tensor) -> dict[int, float]:
        """Pooled expected calibration error by horizon, without recalibration."""
        truth = self.clips.latents[:, START:].float()
        horizon = np.arange(1, truth.shape[1] + 1)
        rollouts = [
            EpisodeRollouts(*row, horizon) for row in zip(truth, latents, confidence, strict=True)
        ]
        table = calibration_table(rollouts, horizons=HORIZONS)
        return {h: summary.ece for h, summary in table.items()}

    def row(self, name: str, sampling: Sampling, seeds: int) -> SamplerRow:
        """Measure one sampler."""
        runs = [self.imagine(sampling, seed) for seed in range(seeds)]
        latents = torch.stack([run[0] for run in runs])
        truth = self.clips.latents[:, START:].float()
        psnr = {}
        for h in HORIZONS:
            decoded = self.model.decode(latents[:, :, h - 1, 0])
            psnr[h] = np.mean([psnr_per_frame(d, self.real[h]) for d in decoded], axis=0)
        squared_error = (latents.mean(0) - truth).square()
        return SamplerRow(
            sampler=name,
            num_steps=sampling.num_steps,
            psnr_db={h: mean_and_interval(psnr[h]) for h in HORIZONS},
            gain_db={h: mean_and_interval(psnr[h] - self.copied[h]) for h in HORIZONS},
            spread={h: float(latents[:, :, h - 1].var(0).mean().sqrt()) for h in HORIZONS},
            error={h: float(squared_error[:, h - 1].mean().sqrt()) for h in HORIZONS},
            ece=self.ece(runs[0][0], runs[0][1]),
            cpu_ms=1000 * min(run[2] for run in runs) / latents[0, :, :, 0, 0, 0, 0].numel(),
        )


def table(rows: Sequence[SamplerRow], facts: dict[str, Any]) -> str:
    """Results as Markdown."""
    base = rows[0].cpu_ms
    first = f"| sampler | steps | {' | '.join(f'PSNR at {h}' for h in HORIZONS)} | gain at 16 "
    lines = [
        first + "| spread at 16 | error at 16 | ECE at 16 | time |",
        "|" + "---|" * (len(HORIZONS) + 7),
    ]
    for row in rows:
        psnr = [f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in row.psnr_db.values()]
        mean, low, high = row.gain_db[16]
        cells = [row.sampler, row.num_steps, *psnr, f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"]
        cells += [f"{row.spread[16]:.3f}", f"{row.error[16]:.3f}", f"{row.ece[16]:.3f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{row.cpu_ms / base:.2f}"])) + " |")
    settings_text = "; ".join(f"{name}: {value}" for name, value in facts.items())
    return (
        "# Quality against sampler steps\n\n"
        f"{settings_text}.\n\n"
        "PSNR in dB of decoded pictures of the first view, by horizon in frames: mean over "
        "episodes and seeds, with a 95% bootstrap interval over episodes. Gain: over copying the "
        "last real frame. Spread: root mean variance between seeds; error: root mean square "
        "error of the mean over seeds, both in latent standard deviations. ECE: pooled expected "
        "calibration error without recalibration. Time: CPU time per frame, with confidence, "
        f"relative to one step ({base:.2f} ms per frame and rollout, in a batch of "
        f"{facts['episodes']}).\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    """Simulate, imagine, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=4, help="rollouts per episode and sampler")
    parser.add_argument(
        "--seed", type=int, default=3_000_003, help="seed of the simulated episodes"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    commit = git_commit()  # read first: the checkout may change during the run
    model = WorldModel.load(arguments.model)
    scene = Collection(renderer="ray", seed=arguments.seed)
    (episodes,) = simulate(model, [("held-out", scene, arguments.episodes)], workers=1).values()
    experiment = SamplerExperiment(model, episodes)
    experiment.imagine(Sampling(), 0)  # warm up
    rows = [
        experiment.row(name, sampling, arguments.seeds)
        for name, sampling in tqdm(settings(), "samplers", file=sys.stderr)
    ]
    facts = {
        "checkpoint": arguments.model,
        "episodes": arguments.episodes,
        "episode seed": arguments.seed,
        "seeds per episode": arguments.seeds,
        "renderer": scene.renderer,
        "hardware": hardware(),
        "versions": versions("torch"),
        "commit": commit,
        "date": today(),
    }
    text = table(rows, facts)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sampler_quality.md").write_text(text, encoding="utf-8")
    stored = {**facts, "copied_db": {h: mean_and_interval(v) for h, v in experiment.copied.items()}}
    (arguments.out / "sampler_quality.json").write_text(
        json.dumps({**stored, "rows": [asdict(row) for row in rows]}, indent=1) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
