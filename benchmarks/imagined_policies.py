"""Measure how well imagined outcomes of policies agree with true ones, from the first frame.

    OMP_NUM_THREADS=1 python -m benchmarks.imagined_policies --seed 9700003

Records scripted policies in scenes of their own seed, the same scenes for every policy, replays
their actions in the world model from the first real frame and reads success from the last imagined
frames. Two families of policies, `misplace` and `stops`, never occur in the training mixture.
Takes about half an hour on one CPU core for three tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from benchmarks.markdown import markdown_table, results_page
from benchmarks.provenance import (
    RESULTS,
    git_commit,
    hardware,
    note_if_looked_at,
    today,
    versions,
)
from worldmodel.checkpoint import check_trained, checkpoint_folder
from worldmodel.envs.policies import HELD_OUT_FAMILIES, policy_family
from worldmodel.episodes.clips import LatentBatch, collate_latents
from worldmodel.episodes.imagine_clip import imagine_clip
from worldmodel.evaluation.evaluate import LAST_FRAMES
from worldmodel.evaluation.simulate import policy_episodes
from worldmodel.evaluation.statistics import mmrv
from worldmodel.model import WorldModel
from worldmodel.networks.recurrent import RecurrentDynamics

COMMON = ("clean", "noise_010", "noise_020", "noise_030", "bias_015", "bias_020", "bias_030")
POLICIES = {
    "pick_place": (
        *COMMON, "late_grip", "early_release", "babble",
        "misplace_050", "misplace_070", "stops_30", "stops_60",
    ),
    "push": (*COMMON, "bias_010", "noise_015", "babble", "stops_30", "stops_60"),
    "lift": (*COMMON, "late_grip", "early_release", "babble", "stops_30", "stops_60"),
}  # fmt: skip
"""Task -> policies, in levels that differ in their true success."""
BATCH = 50
LIFTED = 0.09
"""Height (m) from which the object counts as lifted, as in the task "lift"."""
FRAMES_AHEAD = (1, 10, 20, 39)
"""Horizons of the object's error."""
RESAMPLES = 2000
Probability = Float[np.ndarray, "policy scene"]
Outcome = Bool[np.ndarray, "policy scene"]


@dataclass(frozen=True)
class Replayed:
    """True and predicted outcomes of every policy in every scene."""

    true: Outcome
    imagined: Probability
    """Success classifier on the last imagined frames."""
    classified: Probability
    """The same classifier on the true latents of those frames: what it could reach at best."""
    from_actions: Probability
    objects: Float[np.ndarray, "policy scene time 3"] | None
    """Imagined positions of the object; None for networks without a readout."""
    true_objects: Float[np.ndarray, "policy scene time 3"]


@torch.inference_mode()
def replay(model: WorldModel, batches: Sequence[Sequence[LatentBatch]]) -> Replayed:
    """Imagine every episode from its first frame under its recorded actions."""
    columns: dict[str, list[np.ndarray]] = {}
    for episodes in batches:
        parts: dict[str, list[np.ndarray]] = {}
        for first in range(0, len(episodes), BATCH):
            for name, value in _replay_batch(model, episodes[first : first + BATCH]).items():
                parts.setdefault(name, []).append(value)
        for name, values in parts.items():
            columns.setdefault(name, []).append(np.concatenate(values))
    stacked = {name: np.stack(values) for name, values in columns.items()}
    return Replayed(objects=stacked.pop("objects", None), **stacked)


def _replay_batch(model: WorldModel, episodes: Sequence[LatentBatch]) -> dict[str, np.ndarray]:
    batch = collate_latents(list(episodes))
    true = batch.latents.float()
    imagined = imagine_clip(model, batch, 1, epsilon=())
    assert batch.objects is not None, "the simulator records objects"
    found = {
        "true": batch.success[:, -1] > 0.5,
        "imagined": _success(model, imagined.latents, batch),
        "classified": _success(model, true, batch),
        "from_actions": model.action_judge(batch.actions, batch.task).sigmoid(),
        "true_objects": batch.objects[:, 1:, :3],
    }
    if isinstance(model.dynamics, RecurrentDynamics):
        found["objects"] = model.dynamics.readout_of(imagined.latents, imagined.features)[0]
    return {name: value.numpy() for name, value in found.items()}


def _success(model: WorldModel, latents: torch.Tensor, batch: LatentBatch) -> torch.Tensor:
    return model.judge(latents[:, -LAST_FRAMES:], batch.task).sigmoid().mean(1)


def correlation(predicted: np.ndarray, true: np.ndarray) -> float:
    """Pearson correlation of rates; NaN if one of them is constant."""
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(np.corrcoef(predicted, true)[0, 1])


def auc(score: np.ndarray, true: np.ndarray) -> float:
    """Probability that a success scores above a failure; NaN without both."""
    good, bad = score[true], score[~true]
    if not len(good) or not len(bad):
        return float("nan")
    above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
    return float(above)


def rates(probability: np.ndarray) -> Float[np.ndarray, " policy"]:
    """Share of the episodes of each policy that are classified as successes."""
    return (probability > 0.5).mean(1)


@dataclass(frozen=True, kw_only=True)
class PolicyAgreement:
    """Agreement of one predictor with the truth."""

    pearson: float
    interval: tuple[float, float]
    """95% bootstrap interval over scenes."""
    drop_one: float
    """Lowest correlation without one policy."""
    drop_family: float
    """Lowest correlation without one family of policies."""
    trained_families: float
    """Correlation without the families that the training mixture does not contain."""
    mmrv: float
    error: float
    """Mean absolute error of the rates."""
    auc: float
    within: float
    """Mean over policies with a true rate of .1 to .9 of the AUC within the policy."""
    success_given_failure: float
    failure_given_success: float

    @classmethod
    def of(cls, names: Sequence[str], predicted: Probability, true: Outcome) -> PolicyAgreement:
        """Compare predicted probabilities with true outcomes."""
        families = np.array([policy_family(name) for name in names])
        p, t = rates(predicted), true.mean(1)
        without = [correlation(p[families != f], t[families != f]) for f in dict.fromkeys(families)]
        singles = [correlation(np.delete(p, i), np.delete(t, i)) for i in range(len(names))]
        mixed = (t >= 0.1) & (t <= 0.9)
        known = ~np.isin(families, HELD_OUT_FAMILIES)
        low, high = np.nanquantile(resampled(predicted, true), [0.025, 0.975])
        return cls(
            pearson=correlation(p, t),
            interval=(float(low), float(high)),
            drop_one=min(singles),
            drop_family=min(without),
            trained_families=correlation(p[known], t[known]),
            mmrv=mmrv(p, t),
            error=float(np.abs(p - t).mean()),
            auc=auc(predicted.ravel(), true.ravel()),
            within=float(np.mean([auc(predicted[i], true[i]) for i in np.flatnonzero(mixed)])),
            success_given_failure=float((predicted[~true] > 0.5).mean()),
            failure_given_success=float((predicted[true] <= 0.5).mean()),
        )


def resampled(predicted: Probability, true: Outcome) -> Float[np.ndarray, " resample"]:
    """Correlations in bootstrap resamples of the scenes, the same ones in every call."""
    rng, count = np.random.default_rng(0), true.shape[1]
    scenes = rng.integers(count, size=(RESAMPLES, count))
    return np.array([correlation(rates(predicted[:, s]), true[:, s].mean(1)) for s in scenes])


def object_figures(found: Replayed) -> dict[str, float]:
    """Error of the imagined object (median, mm) by horizon, and lifts that never happened."""
    if found.objects is None:
        return {}
    distance = 1000 * np.linalg.norm(found.objects - found.true_objects, axis=-1)
    figures = {f"object_mm_at_{h}": float(np.median(distance[..., h - 1])) for h in FRAMES_AHEAD}
    lifted = found.true_objects[..., 2].max(-1) > LIFTED
    imagined = found.objects[..., 2].max(-1) > LIFTED
    figures["lift_given_no_lift"] = float(imagined[~lifted].mean()) if (~lifted).any() else 0.0
    figures["no_lift_given_lift"] = float((~imagined[lifted]).mean()) if lifted.any() else 0.0
    return figures


def measure(model: WorldModel, task: str, *, scenes: int, seed: int) -> dict[str, object]:
    """All figures of one task."""
    names = POLICIES[task]
    recorded = policy_episodes(model, names, task=task, episodes=scenes, seed=seed, workers=1)
    found = replay(model, [[episode.batch for episode in recorded[name]] for name in names])
    predictors = {
        "imagined": found.imagined,
        "actions alone": found.from_actions,
        "true latents": found.classified,
    }
    difference = resampled(found.imagined, found.true) - resampled(found.from_actions, found.true)
    return {
        "task": task,
        "policies": {
            name: [float(column[i].mean()) for column in (found.true, found.imagined > 0.5)]
            for i, name in enumerate(names)
        },
        "agreement": {
            name: asdict(PolicyAgreement.of(names, predicted, found.true))
            for name, predicted in predictors.items()
        },
        "imagined_minus_actions": np.nanquantile(difference, [0.025, 0.975]).tolist(),
        "failures": int((~found.true).sum()),
        **object_figures(found),
    }


def tables(results: Sequence[dict[str, object]]) -> list[str]:
    """Agreement of every predictor, rates of every policy, and the object's error."""
    columns = (
        "task", "predictor", "Pearson", "95%", "drop one", "drop family", "trained families",
        "MMRV", "error", "AUC", "within", "success given failure", "failure given success",
    )  # fmt: skip
    rows, policies, objects = [], [], []
    for result in results:
        for name, row in result["agreement"].items():  # type: ignore[attr-defined]
            low, high = row.pop("interval")
            first, *others = row.values()
            cells = [f"{value:.3f}" for value in others]
            rows.append((result["task"], name, f"{first:.3f}", f"{low:.2f} to {high:.2f}", *cells))
        for name, (true, imagined) in result["policies"].items():  # type: ignore[attr-defined]
            policies.append((result["task"], name, f"{true:.2f}", f"{imagined:.2f}"))
        shown = {k: v for k, v in result.items() if k.startswith(("object_mm", "lift", "no_lift"))}
        objects += [(result["task"], k, f"{v:.3g}") for k, v in shown.items()]
        low, high = result["imagined_minus_actions"]  # type: ignore[misc]
        objects.append((result["task"], "r, imagined - actions", f"{low:.2f} to {high:.2f}"))
    return [
        markdown_table(columns, rows),
        markdown_table(("task", "policy", "true rate", "imagined rate"), policies),
        markdown_table(("task", "figure", "value"), objects),
    ]


def main() -> None:
    """Record, imagine, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--tasks", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--scenes", type=int, default=50, help="scenes, the same for each policy")
    parser.add_argument("--seed", type=int, required=True, help="seed of the scenes")
    parser.add_argument("--name", default="imagined_policies", help="name of the result files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    commit = git_commit()
    note_if_looked_at(arguments.seed)
    model = WorldModel.load(arguments.model)
    check_trained(model.config.provenance, checkpoint_folder(arguments.model), "judge")
    results = [
        measure(model, task, scenes=arguments.scenes, seed=arguments.seed)
        for task in arguments.tasks
    ]
    facts = {
        "model": f"model {Path(arguments.model).name}",
        "seed": f"seed {arguments.seed}, {arguments.scenes} scenes",
        "hardware": hardware(),
        "versions": versions("torch", "mujoco"),
        "commit": f"commit {commit}",
        "date": today(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = json.dumps({**facts, "results": results}, indent=1) + "\n"
    (arguments.out / f"{arguments.name}.json").write_text(stored, encoding="utf-8")
    module = "benchmarks.imagined_policies"
    page = results_page("Imagined outcomes of policies", module, facts, tables(results))
    (arguments.out / f"{arguments.name}.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
