"""Cross-validation of confidence on recorded episodes: each is held out of training once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.calibration.episodes import (
    PARTS,
    BenchmarkData,
    imagined,
    make_banks,
    seconds_per_frame,
)
from benchmarks.calibration.heads import HeadRecipe
from benchmarks.calibration.methods import Comparison
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.convert import open_target
from worldmodel.datasets.dataset import Dataset
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.episodes.load import load_named
from worldmodel.model import WorldModel
from worldmodel.rollouts.open_loop import START
from worldmodel.training.presets import get_preset
from worldmodel.training.stages import train

LEFT_OUT = "left out"
"""Name of the group of held-out episodes."""
COMPARED = (
    HeadRecipe(head="continuous_scale", rule="logarithmic", event="velocity"),
    HeadRecipe(head="continuous_scale", rule="logarithmic"),
    HeadRecipe(head="fixed_scale", rule="logarithmic"),
    HeadRecipe(head="multi_class", rule="logarithmic"),
    HeadRecipe(),
    HeadRecipe(corrupted=True, familiarity=True),
)
"""Heads trained on each fold."""


def make_folds(dataset: Dataset, folds: int) -> list[list[str]]:
    """Split episodes into folds; copies (equal actions) count once.

    Raises:
        ValueError: fewer than two different episodes per fold.
    """
    different: dict[bytes, str] = {}
    for name in dataset.episode_ids:
        if dataset.summary(name).num_frames > START:
            different.setdefault(dataset.episode(name).actions.tobytes(), name)
    names = list(different.values())
    if not 2 <= folds <= len(names) // 2:
        raise ValueError(
            f"`folds` must be from 2 to {len(names) // 2}, half the number of different episodes "
            f"of {dataset.path} with more than {START} frames; got {folds}."
        )
    return [names[number::folds] for number in range(folds)]


def left_out_comparisons(
    path: Path, *, folds: int, preset: str, steps: int, seed: int, folder: Path
) -> list[Comparison]:
    """Train one model per fold without its episodes, to be evaluated on them.

    Trainings are kept in `folder` and resumed.
    """
    dataset = open_dataset(path)
    held_out = make_folds(dataset, folds)
    comparisons = []
    for number, names in enumerate(held_out):
        training = [name for fold in held_out if fold is not names for name in fold]
        fold_folder = folder / f"fold-{number}"
        fold_folder.mkdir(parents=True, exist_ok=True)
        store = copied(dataset, training, fold_folder / "train.zarr")
        model = train(store, preset, fold_folder / "run")
        gather = partial(prepared, model, dataset, names, preset=preset, seed=seed)
        comparisons.append(Comparison(model, gather, steps, recipes=COMPARED, seed=seed))
    return comparisons


def copied(dataset: Dataset, names: Sequence[str], path: Path) -> ClipStore:
    """Copy episodes to a clip store; an incomplete store is completed."""
    store = open_target(path, dataset, encoding="jpeg", height=None)
    for name in names:
        if name not in store:
            store.add(dataset.episode(name))
    return store


def prepared(
    model: WorldModel, dataset: Dataset, names: Sequence[str], *, preset: str, seed: int
) -> BenchmarkData:
    """Training, calibration and evaluation data of a fold."""
    split = model.config.provenance["split"]
    learn = load_named(model, dataset, split["confidence"])
    untouched = split["untouched"] or split["confidence"]
    calibrate = imagined(model, load_named(model, dataset, untouched), seed=seed)
    evaluated = load_named(model, dataset, names)
    horizon = get_preset(preset).horizon
    return BenchmarkData(
        learn=partial(make_banks, model, learn, passes=8, horizon=horizon, seed=seed),
        calibrate=calibrate,
        corrupt=lambda: calibrate,
        groups={LEFT_OUT: imagined(model, evaluated, seed=seed + len(PARTS))},
        seconds_per_frame=seconds_per_frame(model, evaluated),
    )
