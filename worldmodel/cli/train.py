"""Train tokenizer, dynamics, confidence head and judges on a clip store.

The same command, given again, continues a run, wherever it was stopped. SIGTERM and --max-hours
stop it after the step it is in, with a checkpoint and exit code 0. `accelerate launch -m worldmodel
train ...` trains on several processes; TensorBoard events are in the stages' folders below --out.
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
    """Folder of the run (default: runs/<name of the data>-<preset>); a run there is continued."""
    tokenizer: str | None = None
    """Trained diffusers autoencoder, a folder or a hub name ("stabilityai/sd-vae-ft-mse"): only its
    whitening is fitted; None: train the preset's."""
    stage: str | None = None
    """The only stage to train: tokenizer, dynamics, confidence or judge; None: all."""
    model: str | None = None
    """Trained model, a folder or a shipped name ("tabletop"), whose --stage "confidence" or "judge"
    is trained anew on --data; its other parts are kept."""
    restart: str | None = None
    """Stage to train anew, with all after it: tokenizer, dynamics, confidence or judge."""
    max_hours: float | None = None
    """Stop after so many hours, to be continued by the same command; None: train to the end."""
    json: bool = False
    """Print the result as JSON."""


def run(command: Command) -> int:
    """Train; the model ends up in `<out>/model`."""
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
