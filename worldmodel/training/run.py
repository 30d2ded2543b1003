"""Training run: folder, provenance of the model, and how a run starts or resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldmodel.checkpoint import check_trained, recover_folder
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import Dataset as Episodes
from worldmodel.datasets.resampling import resampled
from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig
from worldmodel.networks.tokenizer import Tokenizer
from worldmodel.training.config import LoopConfig
from worldmodel.training.fine_tune import Start, fine_tuned, kept_stages, start_record
from worldmodel.training.loop import Items, Validate, fit
from worldmodel.training.new_model import model_actions, new_model
from worldmodel.training.presets import Preset
from worldmodel.training.settings import Settings, flat, to_toml
from worldmodel.training.splits import Split
from worldmodel.training.stopping import Stop
from worldmodel.training.trackers import start_trackers
from worldmodel.write_lock import lock_while_alive

PARTS = {
    "tokenizer": ("tokenizer",),
    "dynamics": ("dynamics",),
    "compositor": ("compositor",),
    "pictures": ("picture_confidence",),
    "confidence": ("confidence",),
    "judge": ("judge", "action_judge"),
}
"""Stage -> the parts of the model that it trains, in the order of their dependencies."""
ORDER = tuple(PARTS)
MISSING = object()
"""Stands for a field that a stored run lacks."""
OPTIONAL = ("compositor", "pictures")
"""Stages without which a model works, too."""


def needed(stage: str) -> tuple[str, ...]:
    """Stages that must be trained before `stage`; none needs those in `OPTIONAL`.

    >>> needed("confidence")
    ('tokenizer', 'dynamics')
    """
    return tuple(name for name in ORDER[: ORDER.index(stage)] if name not in OPTIONAL)


@dataclass(frozen=True)
class Run:
    """One training run: data, preset and output folder."""

    store: ClipStore
    settings: Settings
    folder: Path
    split: Split
    stop: Stop
    tokenizer: str | None = None
    """Folder or hub name of a trained autoencoder; None: train one."""
    source: str | None = None
    """Folder or name of a trained model of which one stage is retrained; None: no such model."""
    start: Start | None = None
    """Model to fine-tune; None: an untrained one."""
    log_with: tuple[str, ...] = ()
    """Experiment trackers."""

    @property
    def preset(self) -> Preset:
        """Sizes and schedules."""
        return self.settings.preset

    @property
    def data(self) -> Episodes:
        """Episodes resampled to the model's rate and actions."""
        return resampled(self.store, model_actions(self.store, self.preset))

    def fit(
        self,
        objective: nn.Module,
        dataset: Items,
        config: LoopConfig,
        *,
        name: str,
        validate: Validate | None = None,
    ) -> None:
        """Train one stage in its own folder."""
        folder, computing = self.folder / name, self.preset.computing
        fit(
            objective, dataset, config, folder,
            computing=computing, stop=self.stop, validate=validate, track=self.track,
        )  # fmt: skip

    def track(self, folder: Path) -> list[Any]:
        """Started experiment trackers of a stage."""
        return start_trackers(self.log_with, folder, flat(self.preset))


def provenance(run: Run) -> dict[str, Any]:
    """Provenance record of a checkpoint: data, preset, split and versions."""
    return {
        "data": run.store.path.name,
        "data_attributes": run.store.attributes,
        "preset": run.settings.name,
        "tokenizer": run.tokenizer,
        "model": run.source,
        "init": start_record(run.start),
        "recipe": json.loads(json.dumps(asdict(run.preset))),
        "split": asdict(run.split),
        "versions": {
            name: version(name) for name in ("worldmodel", "torch", "diffusers", "accelerate")
        },
        "stages": [],
    }


def prepare(run: Run, *, stage: str | None, restart: str | None) -> None:
    """Write the model to train into `<run>/model`: a new one, or that of an earlier run.

    All settings are written into `<run>/config.toml`.

    Raises:
        ValueError: the folder holds another run, another process writes it, or a stage before
            `stage` is missing.
    """
    folder = run.folder / "model"
    recover_folder(folder)
    if folder.is_dir():
        hold(run)
        model = WorldModel.load(folder)
        check_same_run(model.config.provenance, run)
        if restart is not None:
            forget(run, model, [restart] if stage else ORDER[ORDER.index(restart) :])
            model.save(folder)
            remove(folder / "monitor")
    elif run.source is None:
        model = first_model(run)
    else:
        assert stage is not None, "a trained source model needs a single stage"
        model = start_from(run, stage)
    if stage is not None:
        check_trained(model.config.provenance, folder, *needed(stage))
    if not folder.is_dir():
        hold(run)
        (run.folder / "config.toml").write_text(to_toml(run.settings), encoding="utf-8")
        model.save(folder)


def first_model(run: Run) -> WorldModel:
    """Model before the first step of a run: untrained, or the one to fine-tune."""
    if run.start is None:
        model = new_model(run.store, run.preset, run.tokenizer)
        model.config.provenance.update(provenance(run))
        return model
    trained = WorldModel.load(run.start.source)
    model = fine_tuned(run.store, run.preset, trained)
    record = {"starts_from": trained.config.provenance, "stages": kept_stages(run.start)}
    model.config.provenance.update(provenance(run) | record)
    return model


def hold(run: Run) -> None:
    """Keep other processes from writing the run folder until the run ends."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lock_while_alive(run, run.folder / ".lock", run.folder)


def remove(folder: Path) -> None:
    """Delete a folder if it exists."""
    if folder.exists():
        shutil.rmtree(folder)


def start_from(run: Run, stage: str) -> WorldModel:
    """Load the trained model `run.source` and reset the part that `stage` trains."""
    assert run.source is not None, "`run.source` is set"
    trained = WorldModel.load(run.source)
    if trained.states_confidence and stage == "confidence":
        raise ValueError(
            f"`model` must have no confidence head inside its network, got {run.source!r}; start "
            "from another model."
        )
    stored, own = trained.config.provenance, provenance(run)
    reset = {"compositor": OPTIONAL}.get(stage, (stage,))  # confidence is of one compositor
    own["stages"] = [name for name in stored.get("stages", ORDER[:2]) if name not in reset]
    own |= {"imported": stored["imported"]} if "imported" in stored else {}
    if stored.get("split") != json.loads(json.dumps(own["split"])):
        own["starts_from"] = stored
    reach = run.preset.horizon + run.preset.longest_start - 1
    config = replace(trained.config, provenance=own)
    if stage == "confidence":
        config = replace(config, confidence=run.preset.confidence, trained_horizon=reach)
    model = untrained_like(config, trained.tokenizer, seed=run.preset.confidence_loop.seed)
    for part in (name for name in PARTS if name != stage):
        for child in PARTS[part]:
            setattr(model, child, getattr(trained, child))
    drop(model, reset)
    return model


def drop(model: WorldModel, stages: Sequence[str]) -> None:
    """Remove the parts of optional stages from a model."""
    if "compositor" in stages:
        model.set_compositor(None)
    if "pictures" in stages:
        model.set_picture_confidence(None)


def untrained_like(config: ModelConfig, tokenizer: Tokenizer, *, seed: int) -> WorldModel:
    """Untrained model of this shape around a trained tokenizer, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldModel(config, tokenizer)


def check_same_run(stored: dict[str, Any], run: Run) -> None:
    """Raise if the stored run has another preset, setting, tokenizer, source model or split."""
    preset_name = run.settings.name
    if stored.get("preset") != preset_name:
        raise ValueError(
            f"{str(run.folder)!r} holds a run of preset {stored.get('preset')!r}; continue it with "
            f"that preset, or give another `out` for {preset_name!r}."
        )
    if stored.get("tokenizer") != run.tokenizer:
        raise ValueError(
            f"{str(run.folder)!r} holds a run with `tokenizer` {stored.get('tokenizer')!r}; "
            f"continue it with that one, or give another `out` for {run.tokenizer!r}."
        )
    if stored.get("model") != run.source:
        raise ValueError(
            f"{str(run.folder)!r} holds a run that started from `model` {stored.get('model')!r}; "
            f"continue it with that one, or give another `out` for {run.source!r}."
        )
    if stored.get("init") != start_record(run.start):
        raise ValueError(
            f"{str(run.folder)!r} holds a run with `init` {started(stored.get('init'))}; continue "
            f"it with that, or give another `out` for {started(start_record(run.start))}."
        )
    check_same_settings(stored.get("recipe", {}), run)
    if stored.get("split") != json.loads(json.dumps(asdict(run.split))):
        raise ValueError(
            f"{str(run.folder)!r} holds a run on other episodes than those of {run.store.path}; "
            "continue it with the same data, or give another `out`."
        )


def started(record: dict[str, Any] | None) -> str:
    """Start of a run in words."""
    if record is None:
        return "None"
    return f"{record['source']!r}{' and `tune_tokenizer`' if record['tunes_tokenizer'] else ''}"


def check_same_settings(stored: dict[str, Any], run: Run) -> None:
    """Raise if a setting differs from that of the stored run; it names the first such field.

    A field that the stored run lacks is newer than it and is not compared.
    """
    for path, value in flat(run.preset).items():
        found: Any = stored
        for name in path.split("."):
            found = found.get(name, MISSING) if isinstance(found, dict) else MISSING
        if found is not MISSING and found != json.loads(json.dumps(value)):
            raise ValueError(
                f"{str(run.folder)!r} holds a run with `{path}` {found!r}; continue it with that, "
                f"or give another `out` for {value!r}."
            )


def forget(run: Run, model: WorldModel, stages: Sequence[str]) -> None:
    """Reset stages: untrained parts; delete their checkpoints."""
    if run.source is None:
        fresh = first_model(run)
    else:
        seed = run.preset.confidence_loop.seed
        fresh = untrained_like(model.config, model.tokenizer, seed=seed)
    for part in (part for name in stages for part in PARTS[name]):
        setattr(model, part, getattr(fresh, part))
    drop(model, stages)
    done = model.config.provenance["stages"]
    kept = kept_stages(run.start)
    model.config.provenance["stages"] = [n for n in done if n not in stages or n in kept]
    folders = [*stages, "rollout"] if "dynamics" in stages else stages
    for folder in folders:
        remove(run.folder / folder)
