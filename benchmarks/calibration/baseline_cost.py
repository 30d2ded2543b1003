"""How well baselines rank errors beside the confidence head, and what they take.

    OMP_NUM_THREADS=1 python -m benchmarks.calibration.baseline_cost DATA MEMBER MEMBER

such as runs/tabletop-calibration.zarr runs/ensemble/member1 runs/ensemble/member2.

Nominal episodes that the model has not seen: every second one fits the curves that turn scores
into confidence, the others are judged. `python -m benchmarks.calibration` adds shifts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.calibration.baselines import BASELINES, divided_by_motion, ensemble, sampled
from benchmarks.calibration.rescore import Scores, by_window
from benchmarks.calibration.score_curves import fit_scores, with_confidence
from benchmarks.provenance import RESULTS, git_commit, hardware
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
from worldmodel.rollouts.quality import psnr_per_frame

HORIZONS = (1, 4, 8, 16)
HEAD = "confidence head"


@dataclass(frozen=True, kw_only=True)
class BaselineRow:
    """One way to tell where the model errs."""

    name: str
    association: AssociationSummary
    pi_at: dict[int, float]
    """Horizon -> π among subpatches so many frames ahead."""
    ece: float
    """Pooled calibration error over all ε, of the judged half."""
    brier: float
    """Mean Brier score over all ε, of the judged half."""
    stated_cost: float
    """Passes of the network, per pass of a plain rollout."""
    measured_cost: float
    """CPU time of rollout and score, per CPU time of the rollout."""


@dataclass(frozen=True, kw_only=True)
class MemberRow:
    """How good one network's rollouts are, so many frames ahead."""

    name: str
    error: dict[int, float]
    """Mean absolute error in latent standard deviations."""
    psnr_db: dict[int, float]


def imagined_only(values: Scores, rollouts: Sequence[EpisodeRollouts], horizon: int | None) -> Any:
    """Values of each episode at one horizon, or at all."""
    wanted = [r.horizon > 0 if horizon is None else r.horizon == horizon for r in rollouts]
    return [v[torch.from_numpy(w)].numpy().ravel() for v, w in zip(values, wanted, strict=True)]


def judged(
    name: str,
    scores: Scores,
    rollouts: Sequence[EpisodeRollouts],
    stated: Sequence[EpisodeRollouts],
    costs: tuple[float, float],
) -> BaselineRow:
    """How well scores rank errors, and how well the confidence `stated` from them held."""
    errors = [rollout.error for rollout in rollouts]

    def pairs(horizon: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        calibration = [-score for score in imagined_only(scores, rollouts, horizon)]
        return calibration, imagined_only(errors, rollouts, horizon)

    def pi(horizon: int) -> float:
        calibration, error = (np.concatenate(parts) for parts in pairs(horizon))
        return shepherds_pi(calibration, error, rng=np.random.default_rng(0))[0]

    confidence = np.concatenate(
        [
            r.confidence[torch.from_numpy(r.horizon > 0)].float().numpy().reshape(-1, 10)
            for r in stated
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
    """What a function returns, and the CPU seconds it took."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def rows(
    model: WorldModel, members: Sequence[WorldModel], episodes: Sequence[Episode]
) -> list[BaselineRow]:
    """Every baseline, and the model's own head as it is shipped."""
    batches = [episode.batch for episode in episodes]
    rollouts = roll_out(model, batches)
    alone = by_window(lambda network, window: sampled(network, window.inputs))
    # By turns, and the fastest of each: the difference is small, and others use the machine too.
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
    found = [judged(HEAD, doubt[1::2], rollouts[1::2], rollouts[1::2], (1.0, with_head / plain))]
    made: dict[str, tuple[Scores, float]] = {}
    for name, baseline in tqdm(methods.items()):
        base, _, over = name.partition(" / ")
        if over:  # dividing takes no time to speak of; scoring anew would
            made[name] = divided_by_motion(made[base][0], rollouts), made[base][1]
        else:
            made[name] = timed(partial(baseline.score, model, batches, rollouts, seed=0))
        scores, seconds = made[name]
        fitted = fit_scores(rollouts[::2], scores[::2])
        stated = with_confidence(rollouts[1::2], scores[1::2], fitted)
        costs = (baseline.cost.relative(model.sampling), 1 + seconds / plain)
        found.append(judged(name, scores[1::2], rollouts[1::2], stated, costs))
    return found


def quality(name: str, model: WorldModel, episodes: Sequence[Episode]) -> MemberRow:
    """Latent error and PSNR of a network's rollouts, from the first frames of episodes."""
    rollouts = roll_out(model, [episode.batch for episode in episodes])
    error, psnr = {}, {}
    for horizon in HORIZONS:
        frame = START - 1 + horizon
        error[horizon] = float(np.mean([r.error[frame].mean() for r in rollouts]))
        shown = model.decode(torch.stack([r.imagined[frame, 0] for r in rollouts]))
        real = torch.stack([episode.frames[frame, 0] for episode in episodes])
        psnr[horizon] = float(psnr_per_frame(shown, real).mean())
    return MemberRow(name=name, error=error, psnr_db=psnr)


def table(
    found: Sequence[BaselineRow], networks: Sequence[MemberRow], facts: dict[str, Any]
) -> str:
    """Both tables as Markdown."""
    ahead = " | ".join(f"π at {h}" for h in HORIZONS)
    lines = [
        f"| score | π | {ahead} | AUSE | ECE | Brier | passes | CPU time |",
        "|" + "---|" * (len(HORIZONS) + 7),
    ]
    for row in sorted(found, key=lambda row: row.association.pi):
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
    told = "; ".join(f"{name}: {value}" for name, value in facts.items())
    count = found[0].association
    return (
        f"# Baselines beside the confidence head\n\n{told}.\n\n"
        "π: rank correlation of trust (the negated score) with the error, outliers left out, over "
        f"{count.num_pairs:,} subpatches of {count.num_episodes} judged episodes, "
        f"{count.num_used:,} of them used, with a 95% interval over redrawn episodes; "
        f"-1 is best. AUSE: 0 is best, chance is {count.ause_chance:.3f}. "
        f"ECE and Brier: over all ε from {EPSILONS[0]} to {EPSILONS[-1]}, "
        "of the confidence that isotonic curves make of the score; the head's as it is shipped. "
        "Passes: of the network, per pass of a plain rollout, where the score is computed along "
        "with the rollout. CPU time: of rollout and score as computed here, after the rollout, per "
        "CPU time of a rollout without any confidence.\n\n"
        + "\n".join(lines)
        + "\n\nError: mean absolute error in latent standard deviations; PSNR in dB. Members that "
        "are weaker than the checkpoint make the ensemble a weaker baseline than one of equals.\n"
    )


def main() -> None:
    """Imagine, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="clip store of nominal episodes")
    parser.add_argument("members", nargs="+", help="further members of the ensemble")
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--frames", type=int, default=START + max(HORIZONS), help="of each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    commit = git_commit()  # before the run: the checkout may move on while it lasts
    model = WorldModel.load(arguments.model)
    members = [WorldModel.load(folder) for folder in arguments.members]
    store = ClipStore.open(arguments.data)
    names = untouched_episodes(model, store)[: arguments.episodes]
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
    found = rows(model, members, episodes)
    loops = [
        {
            part: member.config.provenance["recipe"][part]
            for part in ("dynamics_loop", "rollout_loop")
        }
        for member in members
    ]
    steps = {f"{d['steps']}+{r['steps']}" for d, r in (loop.values() for loop in loops)}
    facts = {
        "checkpoint": arguments.model,
        "data": f"{arguments.data.name}, nominal, unseen",
        "episodes": f"{len(names)} of {arguments.frames} frames, half to fit, half judged",
        "steps of the further members": " and ".join(sorted(steps)),
        "hardware": hardware(),
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
    }
    text = table(found, networks, facts)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "baselines.md").write_text(text)
    stored = {
        **facts,
        "rows": [asdict(r) for r in found],
        "networks": [asdict(n) for n in networks],
    }
    (arguments.out / "baselines.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
