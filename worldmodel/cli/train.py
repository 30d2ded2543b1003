"""Train tokenizer, dynamics, compositor, confidence head and success classifiers on a clip store.

To continue an interrupted run, start the same command again. SIGTERM and --max-hours stop it after
the current step, with a checkpoint and exit code 0. `accelerate launch -m worldmodel train ...`
trains on several processes. TensorBoard events are in the folder of each stage below --out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel train`."""

    data: Path
    """Clip store made by `worldmodel data convert` or `worldmodel data collect`."""
    preset: str = "smoke"
    """Recipe: "smoke" (minutes on a laptop), "tabletop" (the shipped checkpoint), "bridge-256" or
    "droid-3view" (600 million parameters, for GPUs)."""
    out: Path | None = None
    """Folder of the run (default: runs/<data>-<preset>); an existing run is continued."""
    tokenizer: str | None = None
    """Pretrained diffusers autoencoder, a folder or a hub name ("stabilityai/sd-vae-ft-mse"), of
    which only the latent whitening is fitted; None: train the tokenizer of the preset."""
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
    json: bool = False
    """Print the result as JSON."""


def run(command: Command) -> int:
    """Train and save the model in `<out>/model`."""
    from worldmodel.datasets.clip_store import ClipStore
    from worldmodel.training.parallel import all_processes
    from worldmodel.training.stages import train
    from worldmodel.training.stopping import TrainingStopped

    store = ClipStore.open(command.data)
    out = command.out or Path("runs") / f"{store.path.stem}-{command.preset}"
    result: dict[str, Any] = {"model": str(out / "model")}
    try:
        model = train(
            store,
            command.preset,
            out,
            restart=command.restart,
            stage=command.stage,
            model=command.model,
            tokenizer=command.tokenizer,
            max_hours=command.max_hours,
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
