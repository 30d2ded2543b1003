"""Validate the split into aleatoric and epistemic uncertainty with two interventions.

    OMP_NUM_THREADS=1 python -m benchmarks.decomposition

Needs the data of recipes/tabletop.sh in runs/. (1) Widen the intent and keep the model: aleatoric
uncertainty should rise and epistemic uncertainty stay. (2) Remove training data and keep the
intent: epistemic uncertainty should rise; aleatoric uncertainty does not depend on the model. Also
measures how each part ranks rollout errors. Takes ten minutes on one CPU core; trained models are
kept in --out and reused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.intervals import mean_and_interval
from benchmarks.provenance import RESULTS, git_commit, hardware, today, versions
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.episodes.clips import LatentBatch, LatentClips, encode_episode, encode_store
from worldmodel.model import WorldModel
from worldmodel.networks.confidence_heads import ConfidenceConfig, build_head
from worldmodel.networks.dynamics import Dynamics, DynamicsConfig
from worldmodel.rollouts.decomposition import Intent, agreement, decompose_rollout
from worldmodel.rollouts.open_loop import START, roll_out
from worldmodel.training.config import LoopConfig
from worldmodel.training.loop import fit
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.stages import fit_normalisers

WIDTHS = (0.05, 0.1, 0.2)
HORIZON = 8
SHIPPED = Intent(num_sequences=4, num_seeds=2)
"""Fewer samples than `worldmodel imagine` uses, to save time."""
SMALL = DynamicsConfig(patch=2, dim=64, condition_dim=48, layers=2, heads=2, context=3)
TRAINING_EPISODES = 380
REMOVED: dict[str, Callable[[LatentBatch, int], bool]] = {
    "all": lambda episode, index: False,
    "5% left": lambda episode, index: index >= 0.05 * TRAINING_EPISODES,
    "no success left": lambda episode, index: bool((episode.success == 1).any()),
}
"""Intervention -> whether it removes a training episode; "all" keeps every episode."""
SEEDS = (0, 1, 2, 3)
"""Seeds of the small models' weights and batches."""
PARTS = ("aleatoric", "epistemic")

Parts = dict[str, np.ndarray]
"""Part of the uncertainty, or "error" -> one value per episode."""


@dataclass(frozen=True)
class SplitExperiment:
    """Held-out episodes and their uncertainty decomposition."""

    episodes: Sequence[LatentBatch]

    def measure(self, model: WorldModel, intent: Intent) -> Parts:
        """Uncertainty of every episode, and the error of a rollout under its own actions."""
        rows = [
            decompose_rollout(
                model, episode, intent, start=START, horizon=HORIZON, seed=1000 * index
            )
            for index, episode in enumerate(tqdm(self.episodes, "episodes"))
        ]
        short = [episode.cut(START + HORIZON) for episode in self.episodes]
        rollouts = roll_out(model, short, start=START, horizon=HORIZON)
        parts = {name: np.array([getattr(row, name) for row in rows]) for name in PARTS}
        parts["total"] = parts["aleatoric"] + parts["epistemic"]
        parts["error"] = np.array([float(r.error[START:].mean()) for r in rollouts])
        return parts


def train_small(
    shipped: str, episodes: Sequence[LatentBatch], kept: Sequence[LatentBatch], seed: int, out: Path
) -> WorldModel:
    """Train a small network on `kept`; scales of actions and changes come from all episodes."""
    torch.manual_seed(seed)
    model, dynamics = WorldModel.load(shipped), Dynamics(SMALL)
    model.dynamics = dynamics
    # Rollouts need a confidence head, but its output is unused: it stays untrained.
    model.confidence = build_head(SMALL.dim, SMALL.channels * SMALL.patch**2, ConfidenceConfig())
    fit_normalisers(model, episodes)
    loop = LoopConfig(
        steps=300, batch_size=8, muon_learning_rate=0.02, average_decay=0.98, seed=seed
    )
    objective = DynamicsObjective(dynamics, own_context=0.0, passes=1)
    fit(objective, LatentClips(kept, 6), loop, out)
    return model.eval()


def compared(base: Parts, other: Parts) -> dict[str, tuple[float, float, float]]:
    """Change of each value from `base` to `other`, paired by episode."""
    return {name: mean_and_interval(other[name] - base[name]) for name in base}


def described(parts: Parts) -> dict[str, Any]:
    """Means with intervals, and Kendall's tau of each part with the error."""
    rows = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    means = {name: mean_and_interval(values) for name, values in parts.items()}
    return {"mean": means, "kendall_tau": agreement(rows)}


def widen_intent(experiment: SplitExperiment, model: WorldModel) -> dict[str, Any]:
    """Intervention 1: widen the intent."""
    by_width = {w: experiment.measure(model, replace(SHIPPED, width=w)) for w in WIDTHS}
    return {
        "rows": {f"width {w:g}": described(parts) for w, parts in by_width.items()},
        "moved": {
            f"width {WIDTHS[0]:g} to {w:g}": compared(by_width[WIDTHS[0]], by_width[w])
            for w in WIDTHS[1:]
        },
    }


def remove_data(
    experiment: SplitExperiment, shipped: str, episodes: Sequence[LatentBatch], out: Path
) -> dict[str, Any]:
    """Intervention 2: remove training data, per training seed and for the mean of seeds."""
    found: dict[tuple[str, int], Parts] = {}
    counts = {}
    for removed, goes in REMOVED.items():
        kept = [e for index, e in enumerate(episodes) if not goes(e, index)]
        counts[removed] = len(kept)
        for seed in SEEDS:
            folder = out / f"{removed.replace(' ', '-').replace('%', '')}-{seed}"
            model = train_small(shipped, episodes, kept, seed, folder)
            found[removed, seed] = experiment.measure(model, Intent())
    for removed in REMOVED:
        runs = [found[removed, seed] for seed in SEEDS]
        found[removed, -1] = {name: np.mean([r[name] for r in runs], axis=0) for name in runs[0]}
    names = {
        key: f"{key[0]}, {'mean of seeds' if key[1] < 0 else f'seed {key[1]}'}" for key in found
    }
    return {
        "training_episodes": counts,
        "rows": {names[key]: described(parts) for key, parts in found.items()},
        "moved": {
            f"all to {names[key]}": compared(found["all", key[1]], parts)
            for key, parts in found.items()
            if key[0] != "all"
        },
    }


def rows_table(rows: dict[str, Any]) -> str:
    """Markdown table of means and Kendall's taus."""
    lines = ["| | aleatoric | epistemic | error | tau aleatoric | tau epistemic |"]
    lines.append("|---" * 6 + "|")
    for name, row in rows.items():
        taus = (row["kendall_tau"][part] for part in PARTS)
        ends = ["n/a" if tau is None else with_interval((tau[0], *tau[1]), "+.2f") for tau in taus]
        lines.append("| " + " | ".join([name, *figures(row["mean"], ""), *ends]) + " |")
    return "\n".join(lines)


def moved_table(rows: dict[str, Any]) -> str:
    """Markdown table of changes."""
    lines = ["| | aleatoric | epistemic | error |", "|---" * 4 + "|"]
    lines += ["| " + " | ".join([name, *figures(row, "+")]) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def figures(row: dict[str, Any], sign: str) -> list[str]:
    """Both parts and the error, with intervals."""
    forms = {**dict.fromkeys(PARTS, f"{sign}.1f"), "error": f"{sign}.3f"}
    return [with_interval(row[name], form) for name, form in forms.items()]


def with_interval(figure: Sequence[float], form: str) -> str:
    """Value with its interval."""
    value, low, high = (format(number, form) for number in figure)
    return f"{value} ({low} to {high})"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--train", type=Path, default=Path("runs/tabletop-train.zarr"))
    parser.add_argument("--data", type=Path, default=Path("runs/tabletop-calibration.zarr"))
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/decomposition"))
    arguments = parser.parse_args()
    commit = git_commit()
    model, store = WorldModel.load(arguments.model), ClipStore.open(arguments.data)
    names = store.episode_ids[: arguments.episodes]
    experiment = SplitExperiment([encode_episode(model, store.episode(name)) for name in names])
    train = ClipStore.open(arguments.train)
    episodes = encode_store(model, train, train.episode_ids[:TRAINING_EPISODES])
    result = {
        "facts": {
            "checkpoint": arguments.model, "episodes": arguments.episodes, "horizon": HORIZON,
            "draws": asdict(SHIPPED), "draws of small models": asdict(Intent()),
            "hardware": hardware(), "versions": versions("torch", "numpy", "scipy"),
            "commit": commit, "date": today(),
        },
        "removed data": remove_data(experiment, arguments.model, episodes, arguments.out),
        "widened intent": widen_intent(experiment, model),
    }  # fmt: skip
    facts = "; ".join(f"{name}: {value}" for name, value in result["facts"].items())
    parts = ["# Splitting uncertainty: two interventions", f"{facts}.",
             "Entropies in nats, error in latent standard deviations; means over episodes with 95% "
             "bootstrap intervals over episodes; changes are paired by episode; tau: Kendall's tau "
             "of a part with the error over episodes."]  # fmt: skip
    for title in ("widened intent", "removed data"):
        parts += [f"## {title.capitalize()}", rows_table(result[title]["rows"])]
        parts += ["Changes:", moved_table(result[title]["moved"])]
    text = "\n\n".join(parts) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "decomposition.md").write_text(text, encoding="utf-8")
    (RESULTS / "decomposition.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
