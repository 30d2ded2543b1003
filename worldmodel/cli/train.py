"""Train tokenizer, dynamics, compositor, confidence head and success classifiers on a clip store.

To continue an interrupted run, start the same command again. SIGTERM and --max-hours stop it after
the current step, with a checkpoint and exit code 0. `accelerate launch -m worldmodel train ...`
trains on several processes. TensorBoard events are in the folder of each stage below --out.
`config.toml` there holds all settings; --config reads it. Settings: preset, then --config, then the
options with a name of their own, then --set; later ones win.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel train`."""

    data: Path
    """Clip store made by `worldmodel data convert` or `worldmodel data collect`."""
    preset: str | None = None
    """Recipe: "smoke" (minutes), "laptop" (hours on a CPU), "fast" (the shipped checkpoint),
    "tabletop" (its transformer), "gpu-day" (one GPU), "bridge-256" or "droid-3view" (600 million
    parameters, for GPUs). None: that of --config, or "smoke"."""
    config: Path | None = None
    """TOML file with settings, nested as in config.toml of a run; None: no file."""
    assignments: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="FIELD=VALUE")
    ] = ()
    """Any setting, such as dynamics.layers=6 or dynamics_loop.learning_rate=3e-4 (default:
    none)."""
    cameras: tuple[str, ...] | None = None
    """Names of the cameras to learn, in order; None: as many as the preset says, the first ones."""
    height: int | None = None
    """Height of the model's frames in pixels; the width follows the data. None: the preset's."""
    steps: int | None = None
    """Steps of the dynamics; all other stages keep their proportion to it. None: the preset's."""
    batch_size: int | None = None
    """Items per step of every stage; None: the preset's."""
    out: Path | None = None
    """Folder of the run (default: runs/<data>-<preset>); an existing run is continued."""
    tokenizer: str | None = None
    """Pretrained diffusers autoencoder, a folder or a hub name ("stabilityai/sd-vae-ft-mse"), of
    which only the latent whitening is fitted; None: train the tokenizer of the preset."""
    init: str | None = None
    """Trained model to fine-tune, a folder or a shipped name ("tabletop"): all stages start from
    its weights; None: from scratch. Its shape, tokenizer and action scales are kept."""
    tune_tokenizer: bool = False
    """With --init: train the tokenizer on, too; for frames of another kind."""
    stage: str | None = None
    """Train only this stage: tokenizer, dynamics, compositor, pictures, confidence or
    judge; None: all."""
    model: str | None = None
    """Trained model, a folder or a shipped name ("tabletop"); --stage "compositor", "pictures",
    "confidence" or "judge" is retrained on --data, and the other parts are kept."""
    restart: str | None = None
    """Retrain from this stage on: tokenizer, dynamics, compositor, pictures, confidence, judge."""
    max_hours: float | None = None
    """Stop after this many hours; the same command continues. None: train to the end."""
    log_with: tuple[str, ...] = ("tensorboard",)
    """Experiment trackers beside TensorBoard's events: "wandb", "trackio"."""
    json: bool = False
    """Print the result as JSON."""


def run(command: Command) -> int:
    """Train and save the model in `<out>/model`."""
    from worldmodel.datasets.clip_store import ClipStore
    from worldmodel.training.fine_tune import Start
    from worldmodel.training.parallel import all_processes
    from worldmodel.training.settings import Shorthands, resolve
    from worldmodel.training.stages import train
    from worldmodel.training.stopping import TrainingStopped

    settings = resolve(
        command.preset,
        config=command.config,
        assignments=command.assignments,
        shorthands=Shorthands(
            cameras=command.cameras, height=command.height, steps=command.steps,
            batch_size=command.batch_size,
        ),
    )  # fmt: skip
    if command.tune_tokenizer and command.init is None:
        raise ValueError("`--tune-tokenizer` needs `--init`, the model whose tokenizer to tune.")
    start = command.init and Start(command.init, command.tune_tokenizer)
    store = ClipStore.open(command.data)
    out = command.out or Path("runs") / f"{store.path.stem}-{settings.name}"
    result: dict[str, Any] = {"model": str(out / "model")}
    try:
        model = train(
            store,
            settings,
            out,
            restart=command.restart,
            stage=command.stage,
            model=command.model,
            tokenizer=command.tokenizer,
            init=start or None,
            max_hours=command.max_hours,
            log_with=command.log_with,
        )
    except TrainingStopped as stopped:
        text = result["stopped"] = str(stopped)
    else:
        counts = {
            name: sum(p.numel() for p in child.parameters())
            for name, child in model.named_children()
        }
        result["parameters"] = counts
        text = f"Model: {result['model']} ({sum(counts.values()):,} parameters)"
    if all_processes().is_main_process:
        print(json.dumps(result) if command.json else text)
    return 0
