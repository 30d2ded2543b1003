"""Compare baselines with the confidence head: error ranking, calibration and cost.

    OMP_NUM_THREADS=1 python -m benchmarks.calibration.baseline_cost DATA MEMBER MEMBER

for example runs/tabletop-calibration.zarr runs/ensemble/member1 runs/ensemble/member2.

Uses held-out nominal episodes: every second one fits the curves that map scores to confidence, the
others are for evaluation. `python -m benchmarks.calibration` adds shifts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.calibration.baselines import BASELINES, divided_by_motion, ensemble, sampled
from benchmarks.calibration.rescore import Scores, by_segment
from benchmarks.calibration.score_curves import fit_scores, with_confidence
from benchmarks.provenance import RESULTS, git_commit, hardware, today, versions
from worldmodel.calibration.choose_episodes import untouched_episodes
from worldmodel.calibration.features import MONITOR_EPSILON
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.load import load_named
from worldmodel.model import WorldModel
from worldmodel.monitors.metrics.rank_correlation import (
    AssociationSummary,
    shepherds_pi,
    summarize_association,
)
from worldmodel.monitors.reliability.measures import bin_forecasts, expected_calibration_error
from worldmodel.rollouts.open_loop import EPSILONS, START, EpisodeRollouts, roll_out
from worldmodel.rollouts.quality import CopyGain, copy_gains, psnr_per_frame

HORIZONS = (1, 4, 8, 16)
HEAD = "confidence head"


@dataclass(frozen=True, kw_only=True)
class BaselineRow:
    """Results of one anomaly score."""

    name: str
    association: AssociationSummary
    pi_at: dict[int, float]
    """Horizon -> π over subpatches at that horizon."""
    ece: float
    """Expected calibration error pooled over ε, on the evaluation half."""
    brier: float
    """Mean Brier score over ε, on the evaluation half."""
    stated_cost: float
    """Network passes relative to a plain rollout."""
    measured_cost: float
    """CPU time of rollout and score relative to the rollout."""


@dataclass(frozen=True, kw_only=True)
class MemberRow:
    """Rollout quality of one network by horizon."""

    name: str
    error: dict[int, float]
    """Mean absolute error in latent standard deviations."""
    psnr_db: dict[int, float]


def imagined_only(values: Scores, rollouts: Sequence[EpisodeRollouts], horizon: int | None) -> Any:
    """Values of each episode at one horizon; None: at all horizons."""
    masks = [r.horizon > 0 if horizon is None else r.horizon == horizon for r in rollouts]
    return [
        v[torch.from_numpy(mask)].numpy().ravel() for v, mask in zip(values, masks, strict=True)
    ]


def evaluate(
    name: str,
    scores: Scores,
    rollouts: Sequence[EpisodeRollouts],
    forecasts: Sequence[EpisodeRollouts],
    costs: tuple[float, float],
) -> BaselineRow:
    """Error ranking of scores, and calibration of the confidence in `forecasts`."""
    errors = [rollout.error for rollout in rollouts]

    def pairs(horizon: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        trust = [-score for score in imagined_only(scores, rollouts, horizon)]
        return trust, imagined_only(errors, rollouts, horizon)

    def pi(horizon: int) -> float:
        trust, error = (np.concatenate(parts) for parts in pairs(horizon))
        return shepherds_pi(trust, error, rng=np.random.default_rng(0))[0]

    confidence = np.concatenate(
        [
            r.confidence[torch.from_numpy(r.horizon > 0)].float().numpy().reshape(-1, 10)
            for r in forecasts
        ]
    )
    correct = np.concatenate(imagined_only(errors, rollouts, None))[:, None] <= np.array(EPSILONS)
    return BaselineRow(
        name=name,
        association=summarize_association(*pairs(None), rng=np.random.default_rng(0)),
        pi_at={h: pi(h) for h in HORIZONS},
        ece=float(expected_calibration_error(bin_forecasts(confidence, correct))),
        brier=float(np.square(confidence - correct).mean()),
        stated_cost=costs[0],
        measured_cost=costs[1],
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Call a function; returns its result and its CPU seconds."""
    started = time.process_time()
    return work(), time.process_time() - started


def rows(
    model: WorldModel, members: Sequence[WorldModel], episodes: Sequence[Episode]
) -> list[BaselineRow]:
    """Evaluate every baseline and the model's own head."""
    batches = [episode.batch for episode in episodes]
    rollouts = roll_out(model, batches)
    alone = by_segment(lambda network, segments: sampled(network, segments.inputs))
    # Alternate and take the fastest: the difference is small and the machine may be busy.
    turns = [
        (
            timed(partial(roll_out, model, batches)),
            timed(partial(alone, model, batches, rollouts, seed=0)),
        )
        for _ in range(3)
    ]
    with_head, plain = (min(turn[k][1] for turn in turns) for k in (0, 1))
    methods = {**BASELINES, f"ensemble of {1 + len(members)}": ensemble(members)}
    level = EPSILONS.index(MONITOR_EPSILON)
    doubt = [1 - rollout.confidence[..., level].float() for rollout in rollouts]
    results = [
        evaluate(HEAD, doubt[1::2], rollouts[1::2], rollouts[1::2], (1.0, with_head / plain))
    ]
    scored: dict[str, tuple[Scores, float]] = {}
    for name, baseline in tqdm(methods.items()):
        base, _, divisor = name.partition(" / ")
        if divisor:  # reuse the scores: the division itself takes no time
            scored[name] = divided_by_motion(scored[base][0], rollouts), scored[base][1]
        else:
            scored[name] = timed(partial(baseline.score, model, batches, rollouts, seed=0))
        scores, seconds = scored[name]
        fitted = fit_scores(rollouts[::2], scores[::2])
        forecasts = with_confidence(rollouts[1::2], scores[1::2], fitted)
        costs = (baseline.cost.relative(model.sampling), 1 + seconds / plain)
        results.append(evaluate(name, scores[1::2], rollouts[1::2], forecasts, costs))
    return results


def quality(name: str, model: WorldModel, episodes: Sequence[Episode]) -> MemberRow:
    """Latent error and PSNR of a network's rollouts from the start of episodes."""
    rollouts = roll_out(model, [episode.batch for episode in episodes])
    error, psnr = {}, {}
    for horizon in HORIZONS:
        frame = START - 1 + horizon
        error[horizon] = float(np.mean([r.error[frame].mean() for r in rollouts]))
        decoded = model.decode(torch.stack([r.imagined[frame, 0] for r in rollouts]))
        real = torch.stack([episode.frames[frame, 0] for episode in episodes])
        psnr[horizon] = float(psnr_per_frame(decoded, real).mean())
    return MemberRow(name=name, error=error, psnr_db=psnr)


def gain_over_copy(model: WorldModel, episodes: Sequence[Episode]) -> CopyGain:
    """Gain of the checkpoint's pictures over copying the last frame."""
    rollouts = roll_out(model, [episode.batch for episode in episodes])
    return CopyGain.of(copy_gains(model, episodes, rollouts, HORIZONS))


def table(
    results: Sequence[BaselineRow], networks: Sequence[MemberRow], facts: dict[str, Any]
) -> str:
    """Both tables as Markdown."""
    by_horizon = " | ".join(f"π at {h}" for h in HORIZONS)
    lines = [
        f"| score | π | {by_horizon} | AUSE | ECE | Brier | passes | CPU time |",
        "|" + "---|" * (len(HORIZONS) + 7),
    ]
    for row in sorted(results, key=lambda row: row.association.pi):
        a = row.association
        cells = [row.name, "{:.2f} ({:.2f} to {:.2f})".format(a.pi, *a.pi_interval)]
        cells += [f"{pi:.2f}" for pi in row.pi_at.values()]
        cells += [f"{a.ause:.3f}", f"{row.ece:.3f}", f"{row.brier:.4f}"]
        cells += [f"{row.stated_cost:.2f}", f"{row.measured_cost:.2f}"]
        lines.append("| " + " | ".join(cells).replace("nan", "n/a") + " |")
    heads = [*(f"error at {h}" for h in HORIZONS), *(f"PSNR at {h}" for h in HORIZONS)]
    lines += ["", f"| network | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for member in networks:
        cells = [f"{value:.3f}" for value in member.error.values()]
        cells += [f"{value:.2f}" for value in member.psnr_db.values()]
        lines.append(f"| {member.name} | {' | '.join(cells)} |")
    settings = "; ".join(f"{name}: {value}" for name, value in facts.items())
    count = results[0].association
    return (
        f"# Baselines and the confidence head\n\n{settings}.\n\n"
        "π: rank correlation of trust (the negated score) with the error, without outliers, over "
        f"{count.num_pairs:,} subpatches of {count.num_episodes} evaluation episodes, "
        f"{count.num_used:,} of them used, with a 95% bootstrap interval over episodes; -1 is "
        f"best. AUSE: 0 is best, chance is {count.ause_chance:.3f}. ECE and Brier: over ε from "
        f"{EPSILONS[0]} to {EPSILONS[-1]}, of the confidence from isotonic curves of the score; "
        "the head's without recalibration. Passes: network passes relative to a plain rollout, if "
        "the score is computed during the rollout. CPU time: rollout and score, computed after the "
        "rollout, relative to a rollout without confidence.\n\n"
        + "\n".join(lines)
        + "\n\nError: mean absolute error in latent standard deviations; PSNR in dB of decoded "
        "pictures. If members are weaker than the checkpoint, the ensemble is a weaker baseline "
        "than of equal models.\n"
    )


def main() -> None:
    """Roll out, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="clip store of nominal episodes")
    parser.add_argument("members", nargs="+", help="further members of the ensemble")
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument(
        "--frames", type=int, default=START + max(HORIZONS), help="frames per episode"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    commit = git_commit()  # read first: the checkout may change during the run
    model = WorldModel.load(arguments.model)
    members = [WorldModel.load(folder) for folder in arguments.members]
    store = ClipStore.open(arguments.data)
    names = untouched_episodes(model, store)[0][: arguments.episodes]
    episodes = [
        replace(episode, batch=episode.batch.cut(arguments.frames))
        for episode in load_named(model, store, names)
    ]
    networks = [
        quality(name, network, episodes)
        for name, network in zip(
            (arguments.model, *(Path(folder).name for folder in arguments.members)),
            (model, *members),
            strict=True,
        )
    ]
    results = rows(model, members, episodes)
    recipes = [member.config.provenance["recipe"] for member in members]
    steps = {f"{r['dynamics_loop']['steps']}+{r['rollout_loop']['steps']}" for r in recipes}
    gain = gain_over_copy(model, episodes[1::2])
    facts = {
        "checkpoint": arguments.model,
        "data": f"{arguments.data.name}, nominal, unseen",
        "episodes": f"{len(names)} of {arguments.frames} frames, half fitting, half evaluation",
        "gain of the checkpoint's pictures over copying the last frame": f"{gain.gain_db:+.1f} dB",
        "steps of the further members": " and ".join(sorted(steps)),
        "hardware": hardware(),
        "versions": versions("torch", "numpy", "scipy"),
        "commit": commit,
        "date": today(),
    }
    text = table(results, networks, facts)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "baselines.md").write_text(text, encoding="utf-8")
    stored = {
        **facts,
        "rows": [asdict(r) for r in results],
        "networks": [asdict(n) for n in networks],
    }
    (arguments.out / "baselines.json").write_text(
        json.dumps(stored, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
